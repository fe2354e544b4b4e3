"""What a reward may not see: plain figures of a video that drift when a policy games its rewards.

Left out on purpose: any judgement. A monitor has no better end; what tells is that it moves.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Final

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torch.nn import functional

from astrolabe_rewards.frames import LUMA, evenly_spaced
from astrolabe_rewards.keys import FPS, MONITOR, PIXELS
from astrolabe_rewards.reward import check_pixels, checked_fps
from astrolabe_rewards.wiring import Rewired

#: The figures, in the order in which they are written; the thumbnail comes after them.
FIGURES: Final = ("brightness", "saturation", "sharpness", "motion")
THUMBNAIL_FRAMES, THUMBNAIL_SIDE = 4, 8
THUMBNAIL: Final = THUMBNAIL_FRAMES * 3 * THUMBNAIL_SIDE**2
_PAIRS = 16  # of neighbouring frames in which a video is looked at, evenly over its length
_VALUES = 2**24  # pixel values that are made float at once


class Monitors(Rewired):
    """Figures of each video that are watched and never trained on.

    Reads ``("video","pixels")`` and ``("video","fps")``; writes, float32 ``[*B, 1]``,

    - ``("monitor","brightness")``: mean luma, 0 to 1;
    - ``("monitor","saturation")``: mean chroma, the largest minus the least of R, G, B, 0 to 1;
    - ``("monitor","sharpness")``: mean size of the gradient of luma, per pixel;
    - ``("monitor","motion")``: mean change of luma, per second (NaN for a single frame);

    and ``("monitor","thumbnail")``, float16 ``[*B, 768]``: four frames at 8x8 pixels in RGB, 0 to
    1, from which `distance`, `diversity` and `drift` follow once the pixels are gone. A long video
    is looked at in 16 pairs of neighbouring frames.

    Args:
        in_keys: Where pixels and fps are, in this order.
        out_keys: Where the four figures and the thumbnail go, in the order above.

    Raises:
        ValueError: If there are not two and five of them.
    """

    def __init__(
        self,
        *,
        in_keys: Sequence[NestedKey] | None = None,
        out_keys: Sequence[NestedKey] | None = None,
    ) -> None:
        super().__init__()
        written = [(MONITOR, name) for name in (*FIGURES, "thumbnail")]
        self._wire("Monitors", [PIXELS, FPS], written, in_keys, out_keys)

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the figures of a batch of any shape.

        Raises:
            KeyError: If the batch lacks one of ``in_keys``.
            TypeError: If pixels are not uint8.
            ValueError: If their shape is wrong.
        """
        missing = [key for key in self.in_keys if tensordict.get(key, None) is None]
        if missing:
            raise KeyError(f"Monitors: the batch lacks {missing}; it reads {self.in_keys}.")
        pixels = tensordict.get(self.in_keys[0])
        check_pixels(pixels, "Monitors")
        shape = tensordict.batch_size
        videos = pixels.reshape(-1, *pixels.shape[-4:])
        fps = checked_fps(tensordict.get(self.in_keys[1]), len(videos), "Monitors").to(
            pixels.device
        )
        # Under autocast pixels would be rounded, and halves are refused on a CPU.
        with torch.autocast(pixels.device.type, enabled=False):
            parts = [measure(videos[part], fps[part]) for part in _parts(videos)]
            columns = [torch.cat(part) for part in zip(*parts, strict=True)]  # [n] or [n, 768]
        for key, values in zip(self.out_keys, columns, strict=True):
            tensordict.set(key, values.reshape(*shape, *(values.shape[1:] or (1,))))
        return tensordict


def measure(videos: Tensor, fps: Tensor) -> tuple[Tensor, ...]:
    """Measure videos at once.

    Args:
        videos: uint8 ``[N, F, 3, H, W]``.
        fps: float32 ``[N]``, frames per second.

    Returns:
        Brightness, saturation, sharpness and motion, float32 ``[N]`` each, and thumbnails, float16
        ``[N, 768]``. A single frame has no motion that could be measured: NaN.
    """
    chosen = evenly_spaced(videos.shape[1], THUMBNAIL_FRAMES)
    small = functional.adaptive_avg_pool2d(
        videos[:, chosen].flatten(0, 1).float() / 255, THUMBNAIL_SIDE
    )  # [4 N, 3, 8, 8]
    thumbnails = small.reshape(len(videos), THUMBNAIL).half()

    first, second = _pairs(videos.shape[1])
    frames = sorted({*first, *second})
    place = {frame: index for index, frame in enumerate(frames)}
    red, green, blue = (videos[:, frames].float() / 255).unbind(2)  # [N, P, H, W] each
    chroma = torch.maximum(red, torch.maximum(green, blue))
    chroma -= torch.minimum(red, torch.minimum(green, blue))
    luma = float(LUMA[0]) * red + float(LUMA[1]) * green + float(LUMA[2]) * blue
    moved = luma[:, [place[i] for i in second]] - luma[:, [place[i] for i in first]]
    motion = moved.abs().mean((1, 2, 3)) * fps
    return (
        luma.mean((1, 2, 3)),
        chroma.mean((1, 2, 3)),
        _gradient(luma).mean((1, 2, 3)),
        motion if videos.shape[1] > 1 else torch.full_like(motion, math.nan),
        thumbnails,
    )


def distance(first: Tensor, second: Tensor) -> Tensor:
    """Root mean square difference of thumbnails, 0 to 1, ``[...]``."""
    return (first.float() - second.float()).square().mean(-1).sqrt()


def diversity(thumbnails: Tensor, groups: Tensor) -> float:
    """Mean distance between two videos of a group, over all such pairs of all groups.

    Args:
        thumbnails: ``[n, 768]``.
        groups: int64 ``[n]``, equal for videos that are compared.

    Returns:
        0 to 1; NaN if no group has two videos.
    """
    found = []
    for group in torch.unique(groups).tolist():
        members = thumbnails[groups == group].float()
        rows, columns = torch.triu_indices(len(members), len(members), offset=1)
        found.append(distance(members[rows], members[columns]))
    return float(torch.cat(found).mean()) if found else float("nan")


def drift(thumbnails: Tensor) -> float:
    """Mean distance between the first and the last window of a video.

    Args:
        thumbnails: ``[N, T, 768]``.
    """
    return float(distance(thumbnails[:, 0], thumbnails[:, -1]).mean())


def _pairs(num_frames: int) -> tuple[list[int], list[int]]:
    """First and second frames of at most 16 pairs of neighbours; a single frame is its own."""
    count = num_frames - 1
    if not count:
        return [0], [0]
    first = evenly_spaced(count, _PAIRS) if count > _PAIRS else list(range(count))
    return first, [frame + 1 for frame in first]


def _gradient(luma: Tensor) -> Tensor:
    """Size of the gradient, ``[..., H, W]``; 0 beyond the last row and column."""
    across = functional.pad(luma.diff(dim=-1), (0, 1))
    down = functional.pad(luma.diff(dim=-2), (0, 0, 0, 1))
    return torch.hypot(across, down)


def _parts(videos: Tensor) -> Iterator[slice]:
    """Slices of the videos that fit into memory as floats, at least one (it may be empty)."""
    frames = min(videos.shape[1], 2 * _PAIRS)
    each = max(1, _VALUES // max(1, frames * videos[0, 0].numel() if len(videos) else 1))
    for start in range(0, max(len(videos), 1), each):
        yield slice(start, start + each)
