"""A video model: transformer, text encoder, codec and the numbers that belong to them."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from astrolabe_rollout.codec import VideoCodec
from astrolabe_rollout.geometry import Geometry
from astrolabe_rollout.schedule import FlowSchedule
from astrolabe_rollout.text import TextEncoder
from astrolabe_rollout.transformer import CausalWan

#: What becomes of the cache when the prompt changes within a video: it stays; it is computed anew
#: from the newest latents with the new prompt, the sink left or replaced (LongLive); or it is cut
#: down to its first and its last two frames (Infinity-RoPE).
Switch = Literal["keep", "recache", "recache_all", "flush"]


@dataclass(frozen=True)
class VideoModel:
    """All that is needed to turn prompts into videos.

    Args:
        transformer: The causal transformer; the only part that is trained.
        encoder: Text encoder, frozen.
        codec: Video codec, frozen.
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
    """

    transformer: CausalWan
    encoder: TextEncoder
    codec: VideoCodec
    schedule: FlowSchedule
    denoising_steps: tuple[int, ...] = (1000, 750, 500, 250)
    fps: float = 16.0
    first_steps: tuple[int, ...] | None = None
    switch: Switch = "keep"
    rebuild: int | None = None
    warped: bool = False

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
        """Return embeddings ``[n, L, D]`` of prompts; equal prompts are encoded once."""
        return self.encoder.embed(prompts)

    def freeze(self) -> "VideoModel":
        """Put every part in evaluation mode without gradients; return self."""
        for part in (self.transformer, self.encoder, self.codec):
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)
        return self
