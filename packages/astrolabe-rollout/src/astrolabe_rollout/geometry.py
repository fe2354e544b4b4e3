"""How pixels, latents, tokens, chunks and windows count each other.

The only place that knows the factors of the video codec (time x4, space x8 for Wan) and of the
patches. The first latent frame holds one pixel frame, every later one ``temporal`` of them (Wan
2.1's causal VAE).
"""

from dataclasses import dataclass
from functools import cached_property

from astrolabe_rollout.seeds import whole_number


@dataclass(frozen=True)
class Geometry:
    """Sizes of one video model.

    Args:
        height, width: Picture size in pixels.
        channels: Latent channels.
        spatial, temporal: Pixels and pixel frames for each latent pixel and latent frame.
        patch: Side of a token in latent pixels.
        chunk: Latent frames that are denoised together.
        window: Capacity of the KV cache in latent frames, sink and the open chunk included;
            ``None`` keeps all.
        sink: Latent frames at the start of the video that never leave the cache.

    Raises:
        TypeError: If a size is no whole number.
        ValueError: If a size is below 1 (``sink`` below 0), sizes do not divide, or the window
            cannot hold sink and chunk.
    """

    height: int
    width: int
    channels: int = 16
    spatial: int = 8
    temporal: int = 4
    patch: int = 2
    chunk: int = 3
    window: int | None = None
    sink: int = 0

    def __post_init__(self) -> None:
        for name, size in vars(self).items():
            if name == "window" and size is None:
                continue
            whole_number(name, size)
            if size < (name != "sink"):
                raise ValueError(f"{name} is {size}. Set it to {int(name != 'sink')} or more.")
        step = self.spatial * self.patch
        if self.height % step or self.width % step:
            raise ValueError(
                f"a picture of {self.height}x{self.width} pixels does not divide into patches. "
                f"Choose multiples of {step}."
            )
        if self.window is not None and self.window < self.sink + self.chunk:
            raise ValueError(
                f"window={self.window} cannot hold sink={self.sink} and one chunk={self.chunk}. "
                f"Set window to {self.sink + self.chunk} or more."
            )

    @cached_property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of a latent frame."""
        return self.height // self.spatial, self.width // self.spatial

    @cached_property
    def tokens(self) -> int:
        """Tokens of one latent frame."""
        height, width = self.latent_size
        return (height // self.patch) * (width // self.patch)

    @property
    def context(self) -> int:
        """Latent frames that a window's first chunk sees besides itself; 0 for a global cache."""
        return 0 if self.window is None else self.window - self.chunk

    def held(self, before: int) -> list[int]:
        """Numbers of the frames in a context, oldest first, once so many have been sampled.

        The sink comes first, then the newest.
        """
        count = min(before, self.context)
        sink = min(self.sink, count)
        return [*range(sink), *range(before - count + sink, before)]

    def pixel_frames(self, latent_frames: int, first: bool = True) -> int:
        """Pixel frames of so many latent frames; ``first`` if the video starts with them."""
        return self.temporal * latent_frames - (self.temporal - 1 if first else 0)

    def latent_frames(self, pixel_frames: int) -> int:
        """Latent frames of a video that has so many pixel frames.

        Raises:
            ValueError: If no whole number of chunks has so many; names the nearest that do.
        """
        latent = (pixel_frames - 1) // self.temporal + 1
        if pixel_frames < 1 or (pixel_frames - 1) % self.temporal or latent % self.chunk:
            low = max(latent // self.chunk, 1) * self.chunk
            near = [self.pixel_frames(n) for n in (low, low + self.chunk)]
            raise ValueError(
                f"{pixel_frames} pixel frames are no whole number of chunks of {self.chunk} latent "
                f"frames. Take {near[0]} or {near[1]}."
            )
        return latent

    def latent_frames_within(self, pixel_frames: int) -> int:
        """Latent frames of the longest video that has at most so many pixel frames, 1 or more."""
        return (pixel_frames - 1) // self.temporal + 1

    def chunks(self, latent_frames: int) -> int:
        """Chunks in so many latent frames.

        Raises:
            TypeError: If they are no whole number.
            ValueError: If they are no whole number of chunks; names the nearest that are.
        """
        whole_number("the number of latent frames", latent_frames)
        if latent_frames < 1 or latent_frames % self.chunk:
            low = max(latent_frames // self.chunk, 1) * self.chunk
            near = [f"{n} ({self.pixel_frames(n)} pixel frames)" for n in (low, low + self.chunk)]
            raise ValueError(
                f"{latent_frames} latent frames are no whole number of chunks of {self.chunk}. "
                f"Take {near[0]} or {near[1]}."
            )
        return latent_frames // self.chunk
