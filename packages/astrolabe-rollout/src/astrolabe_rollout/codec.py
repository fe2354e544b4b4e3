"""The embedded model's video codec: principal components in, a small convolutional decoder out.

It has the interface and the time axis of Wan's causal VAE: the first latent frame is one pixel
frame, each later one is four. Frames are coded independently of each other, so decoding streams
without any state.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import silu


@runtime_checkable
class DecodeStream(Protocol):
    """Decodes a batch of videos piece by piece."""

    def __call__(self, latents: Tensor) -> Tensor:
        """Turn the next latents ``[N, f, C, h, w]`` into uint8 ``[N, F, 3, H, W]``."""

    def fork(self, count: int) -> "DecodeStream":
        """Return a stream of ``count`` continuations of each video, next to each other."""


@runtime_checkable
class VideoCodec(Protocol):
    """What a model asks of its video codec, here and of one of your own.

    The first latent frame is one pixel frame, each later one `Geometry.temporal` of them (4 below).
    """

    def encode(self, pixels: Tensor) -> Tensor:
        """Turn uint8 ``[N, F, 3, H, W]``, F = 4 f - 3, into latents ``[N, f, C, h, w]``."""

    def decode(self, latents: Tensor, first: bool = True) -> Tensor:
        """Turn latents ``[N, f, C, h, w]`` into uint8 pixels; ``first`` if they start the video."""

    def stream(self) -> DecodeStream:
        """Return a decoder of new videos that is called with one piece after the other.

        The pieces together equal what `decode` makes of the whole; memory does not grow.
        """


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(silu(self.first(silu(x))))
        return out


class PatchCodec(nn.Module):
    """Encode patches of 4 frames x 8 x 8 pixels by principal components, decode by convolutions.

    Args:
        channels: Principal components kept, the latent channels.
        width: Channels of the decoder at the resolution of the latents.
    """

    spatial, temporal = 8, 4

    def __init__(self, channels: int = 16, width: int = 128) -> None:
        super().__init__()
        size = self.temporal * 3 * self.spatial**2
        self.mean: Tensor
        self.basis: Tensor
        self.register_buffer("mean", torch.zeros(size))
        # Columns are principal directions divided by the scale that normalises each latent channel.
        self.register_buffer("basis", torch.zeros(size, channels))
        self.decoder = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            _Residual(width),
            _Residual(width),
            nn.Conv2d(width, 4 * 80, 1),
            nn.PixelShuffle(2),
            _Residual(80),
            nn.Conv2d(80, 4 * 40, 1),
            nn.PixelShuffle(2),
            _Residual(40),
            nn.Conv2d(40, 4 * 3 * self.temporal, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def patches(self, pixels: Tensor) -> Tensor:
        """Cut uint8 ``[N, F, 3, H, W]`` into ``[N, f, h, w, 768]`` patches in [-1, 1].

        Raises:
            ValueError: If F is not 1 more than a multiple of 4.
        """
        n, frames, _, height, width = pixels.shape
        if frames % self.temporal != 1:
            raise ValueError(
                f"a video has 4 k + 1 pixel frames, this one has {frames}. "
                f"Cut it to {(frames - 1) // 4 * 4 + 1}."
            )
        groups = torch.cat([pixels[:, :1].expand(-1, self.temporal - 1, -1, -1, -1), pixels], 1)
        p, h, w = self.spatial, height // self.spatial, width // self.spatial
        cut = groups.reshape(n, -1, self.temporal, 3, h, p, w, p).permute(0, 1, 4, 6, 2, 3, 5, 7)
        return cut.reshape(n, -1, h, w, self.temporal * 3 * p * p).float() / 127.5 - 1

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Turn uint8 ``[N, F, 3, H, W]`` into latents ``[N, f, C, h, w]``, F = 4 f - 3."""
        return ((self.patches(pixels) - self.mean) @ self.basis).movedim(-1, 2)

    def reconstruct(self, latents: Tensor) -> Tensor:
        """Return the four frames of each latent.

        Args:
            latents: ``[M, C, h, w]``.

        Returns:
            ``[M, 4, 3, 8 h, 8 w]``, in [-1, 1] but for overshoot.
        """
        return torch.unflatten(self.decoder(latents), 1, (self.temporal, 3))

    @torch.no_grad()
    def decode(self, latents: Tensor, first: bool = True) -> Tensor:
        """Turn latents ``[N, f, C, h, w]`` into uint8 ``[N, F, 3, H, W]``.

        Args:
            latents: Normalised latents.
            first: Whether the video starts with them; then the first one gives one frame, not four.
        """
        groups = self.reconstruct(latents.flatten(0, 1))
        frames = torch.unflatten(groups, 0, latents.shape[:2]).flatten(1, 2)  # [N, 4 f, 3, H, W]
        pixels = ((frames + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return pixels[:, self.temporal - 1 :] if first else pixels

    def stream(self) -> DecodeStream:
        """Return a decoder of new videos, piece by piece."""
        return PatchStream(self)


class PatchStream:
    """Decodes piece by piece; all that there is to remember is whether the video has begun."""

    def __init__(self, codec: PatchCodec, first: bool = True) -> None:
        self.codec, self.first = codec, first

    def __call__(self, latents: Tensor) -> Tensor:
        """See `DecodeStream`."""
        pixels = self.codec.decode(latents, self.first)
        self.first = False
        return pixels

    def fork(self, count: int) -> "PatchStream":
        """See `DecodeStream`."""
        return PatchStream(self.codec, self.first)
