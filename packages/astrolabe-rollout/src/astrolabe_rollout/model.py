"""A video model: transformer, text encoder, codec and the numbers that belong to them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, get_args

import torch
from torch import Tensor, nn

from astrolabe_rollout.causal import Transformer
from astrolabe_rollout.checks import kind, require
from astrolabe_rollout.codec import VideoCodec
from astrolabe_rollout.geometry import Geometry
from astrolabe_rollout.schedule import FlowSchedule
from astrolabe_rollout.text import PromptEncoder

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from astrolabe_rollout.text import TextEncoder
    from astrolabe_rollout.transformer import CausalWan

    # A model that names no types is one of Wan's.
    T = TypeVar("T", bound=Transformer, default=CausalWan)
    E = TypeVar("E", bound=PromptEncoder | None, default=TextEncoder)
else:
    from typing import TypeVar

    T, E = TypeVar("T"), TypeVar("E")

#: What becomes of the cache when the prompt changes within a video: it stays; it is computed anew
#: from the newest latents with the new prompt, the sink left or replaced (LongLive); or it is cut
#: down to its first and its last two frames (Infinity-RoPE).
Switch = Literal["keep", "recache", "recache_all", "flush"]


@dataclass(frozen=True)
class VideoModel(Generic[T, E]):
    """All that is needed to turn prompts into videos.

    Args:
        transformer: The causal transformer; the only part that is trained. Any network as a
            `CausalTransformer`, or what `astrolabe_rollout.causal.Transformer` describes.
        encoder: Text encoder, frozen; None where embeddings come from elsewhere.
        codec: Video codec, frozen; see `astrolabe_rollout.codec.VideoCodec`.
        schedule: Noise levels.
        denoising_steps: The few-step list that the model was distilled to.
        fps: Pixel frames per second of its videos.
        first_steps: The list for a video's first chunk, where it differs (frame-wise models
            distilled to one or two steps).
        switch: What happens to the cache at a change of the prompt.
        rebuild: Latent frames from which the cache is computed anew before every chunk (Krea);
            None for a cache that rolls.
        warped: Whether the lists hold timesteps as the model is told them (Krea), not places in the
            table of noise levels; each has the noise level nearest to it in the table.

    Raises:
        TypeError: If a part lacks what is asked of it, or a number is none.
        ValueError: If the lists, the frame rate or the rules cannot be.
    """

    transformer: T
    encoder: E
    codec: VideoCodec
    schedule: FlowSchedule
    denoising_steps: tuple[int, ...] = (1000, 750, 500, 250)
    fps: float = 16.0
    first_steps: tuple[int, ...] | None = None
    switch: Switch = "keep"
    rebuild: int | None = None
    warped: bool = False

    def __post_init__(self) -> None:
        require(self.transformer, Transformer, "transformer")
        require(self.codec, VideoCodec, "codec")
        if self.encoder is not None:
            require(self.encoder, PromptEncoder, "encoder")
        if not isinstance(self.geometry, Geometry):
            raise TypeError(
                f"the transformer's geometry is {self.geometry!r}. Give it an "
                "astrolabe_rollout.Geometry(height, width, ...)."
            )
        if not isinstance(self.schedule, FlowSchedule):
            raise TypeError(
                f"schedule is {self.schedule!r}. Give an astrolabe_rollout.FlowSchedule(shift)."
            )
        if not self.fps > 0:
            raise ValueError(f"fps is {self.fps}. Give pixel frames per second, such as 16.")
        if self.switch not in get_args(Switch):
            raise ValueError(
                f"switch is {self.switch!r}. Choose from: {', '.join(get_args(Switch))}."
            )
        for steps in (self.denoising_steps, self.first_steps):
            if steps is not None:
                self.schedule.warp(steps)  # refuses a bad list

    @property
    def geometry(self) -> Geometry:
        """Sizes of the model."""
        return self.transformer.geometry

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise levels at which the model samples, falling from 1."""
        return self._sigmas(self.denoising_steps)

    @property
    def first_sigmas(self) -> tuple[float, ...]:
        """Noise levels of a video's first chunk."""
        return self._sigmas(self.first_steps or self.denoising_steps)

    @property
    def timesteps(self) -> tuple[float, ...]:
        """What the transformer is told at each of `sigmas`."""
        return self._timesteps(self.denoising_steps)

    @property
    def first_timesteps(self) -> tuple[float, ...]:
        """What the transformer is told at each of `first_sigmas`."""
        return self._timesteps(self.first_steps or self.denoising_steps)

    def timestep(self, sigma: Tensor) -> Tensor:
        """Return what the transformer is told at noise levels: ``1000 σ``, or the list's own."""
        timestep = 1000 * sigma
        if self.warped:
            for level, told in zip(self.sigmas, self.timesteps, strict=True):
                timestep = torch.where(sigma == level, told, timestep)
        return timestep

    def _sigmas(self, steps: tuple[int, ...]) -> tuple[float, ...]:
        if not self.warped:
            return self.schedule.warp(steps)
        return tuple(self.schedule.nearest(torch.tensor(steps, dtype=torch.float64)).tolist())

    def _timesteps(self, steps: tuple[int, ...]) -> tuple[float, ...]:
        if self.warped:
            return tuple(map(float, steps))
        return tuple(1000 * sigma for sigma in self.schedule.warp(steps))

    def text(self, prompts: list[str]) -> Tensor:
        """Return embeddings ``[n, L, D]`` of prompts; equal prompts are encoded once.

        Raises:
            ValueError: If the model has no text encoder, or its embeddings are of another shape.
        """
        if self.encoder is None:
            raise ValueError(
                "this model has no text encoder. Give it one, or write embeddings into the batch."
            )
        embeds = self.encoder.embed(prompts)
        if embeds.ndim != 3 or len(embeds) != len(prompts) or not embeds.is_floating_point():
            raise ValueError(
                f"the text encoder gives {kind(embeds)} for {len(prompts)} prompts. "
                f"Let it give floats [{len(prompts)}, L, D]."
            )
        return embeds

    def freeze(self) -> "VideoModel[T, E]":
        """Put every part in evaluation mode without gradients; return self."""
        for part in (self.transformer, self.encoder, self.codec):
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)
        return self


#: A model of any kind, such as one of your own.
AnyModel = VideoModel[Any, Any]


def check_model(module: str, model: object) -> None:
    """Refuse what is no model, such as a network alone.

    Raises:
        TypeError: Says what it is.
    """
    if not isinstance(model, VideoModel):
        raise TypeError(
            f"{module}: model is a {type(model).__name__}. Give an astrolabe_rollout.VideoModel: "
            "transformer, text encoder, codec and schedule."
        )
