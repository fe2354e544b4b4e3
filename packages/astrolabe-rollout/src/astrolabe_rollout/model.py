"""A video model: transformer, text encoder, codec and the numbers that belong to them."""

from dataclasses import dataclass

from torch import Tensor, nn

from astrolabe_rollout.codec import VideoCodec
from astrolabe_rollout.geometry import Geometry
from astrolabe_rollout.schedule import FlowSchedule
from astrolabe_rollout.text import TextEncoder, encode_distinct
from astrolabe_rollout.transformer import CausalWan


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
    """

    transformer: CausalWan
    encoder: TextEncoder
    codec: VideoCodec
    schedule: FlowSchedule
    denoising_steps: tuple[int, ...] = (1000, 750, 500, 250)
    fps: float = 16.0

    @property
    def geometry(self) -> Geometry:
        """Sizes of the model."""
        return self.transformer.geometry

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise levels at which the model samples, falling from 1."""
        return self.schedule.warp(self.denoising_steps)

    def text(self, prompts: list[str]) -> Tensor:
        """Return embeddings ``[n, L, D]`` of prompts; equal prompts are encoded once."""
        return encode_distinct(self.encoder, prompts)

    def freeze(self) -> "VideoModel":
        """Put every part in evaluation mode without gradients; return self."""
        for part in (self.transformer, self.encoder, self.codec):
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)
        return self
