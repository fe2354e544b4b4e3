"""Wan 2.1's causal VAE (diffusers) as a codec whose decoder streams."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from astrolabe_rollout.extras import wan_extra
from astrolabe_rollout.wan_config import check_vae

with wan_extra():
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan


class WanCodec(nn.Module):
    """Pixels to normalised latents and back.

    Latents are ``(z - mean) / std`` with the constants of the VAE's own configuration. Videos are
    coded one after the other, so memory does not grow with the batch.

    Args:
        vae: diffusers' VAE, of any size; frozen.

    Raises:
        CheckpointError: If its configuration is not one of Wan 2.1's; see `check_vae`.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        super().__init__()
        self.vae = vae.eval().requires_grad_(False)
        self.mean: Tensor
        self.std: Tensor
        config: Any = vae.config  # diffusers types it as a dict
        check_vae(config, "the VAE")
        shape = (1, 1, -1, 1, 1)
        self.register_buffer("mean", torch.tensor(config.latents_mean).view(shape), False)
        self.register_buffer("std", torch.tensor(config.latents_std).view(shape), False)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Turn uint8 ``[N, F, 3, H, W]``, F = 4 f - 3, into latents ``[N, f, C, h, w]``, float32.

        The latent is the mode of the VAE's distribution: the same pixels give the same latents.

        Raises:
            ValueError: If F is not 1 more than a multiple of 4.
        """
        frames = pixels.shape[1]
        if frames % 4 != 1:
            raise ValueError(
                f"a video has 4 k + 1 pixel frames, this one has {frames}. "
                f"Cut it to {max((frames - 1) // 4 * 4 + 1, 1)}."
            )
        dtype, device = self.vae.dtype, self.vae.device
        latents = []
        for video in pixels:
            scaled = video.to(device).to(dtype).transpose(0, 1)[None] / 127.5 - 1
            latents.append(self.vae.encode(scaled).latent_dist.mode())
        raw = torch.cat(latents).transpose(1, 2).float()  # [N, f, C, h, w]
        return (raw - self.mean.to(raw)) / self.std.to(raw)

    def decode(self, latents: Tensor, first: bool = True) -> Tensor:
        """Turn whole videos' latents ``[N, f, C, h, w]`` into uint8 ``[N, F, 3, H, W]``.

        Raises:
            ValueError: If the latents do not start their videos: this decoder remembers.
        """
        if not first:
            raise ValueError(
                "Wan's VAE cannot decode from the middle of a video, as its convolutions look "
                "back. Decode all pieces, in order, with one stream()."
            )
        return self.stream()(latents)

    def stream(self) -> "WanStream":
        """Return a decoder of new videos, piece by piece.

        The features that the decoder's convolutions look back on belong to the stream, so several
        can take turns; they have a fixed size (the last two frames of every layer).
        """
        return WanStream(self)


class WanStream:
    """Decodes piece by piece.

    Args:
        codec: Whose VAE decodes.
        memories: What is remembered of each video; by default they begin.
    """

    def __init__(self, codec: WanCodec, memories: Sequence["_Memory"] = ()) -> None:
        self.codec, self.memories = codec, list(memories)

    def __call__(self, latents: Tensor) -> Tensor:
        """See `DecodeStream`."""
        return to_uint8(self.float(latents))

    @torch.no_grad()
    def float(self, latents: Tensor) -> Tensor:
        """Like a call, but in [-1, 1] and the VAE's dtype."""
        vae, mean, std = self.codec.vae, self.codec.mean, self.codec.std
        if not self.memories:
            self.memories = [_Memory(vae) for _ in latents]
        raw = latents * std.to(latents) + mean.to(latents)
        raw = raw.to(vae.device, vae.dtype).transpose(1, 2)  # [N, C, f, h, w]
        videos = [
            memory.decode(video[None]) for memory, video in zip(self.memories, raw, strict=True)
        ]
        return torch.cat(videos).transpose(1, 2)

    def fork(self, count: int) -> "WanStream":
        """See `DecodeStream`; what is remembered is shared until a continuation replaces it."""
        return WanStream(self.codec, [m.copy() for m in self.memories for _ in range(count)])


class _Memory:
    """What the decoder remembers of one video: diffusers' own loop, without its forgetting."""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae
        vae.clear_cache()  # type: ignore[no-untyped-call]  # sets up the list that is copied here
        self.features: list[Tensor | str | None] = [None] * len(vae._feat_map)
        self.first = True

    def copy(self) -> "_Memory":
        """Return a memory of the same, to go on in another way."""
        other = _Memory(self.vae)
        other.features, other.first = list(self.features), self.first
        return other

    @property
    def nbytes(self) -> int:
        """Bytes of the features held."""
        return sum(part.nbytes for part in self.features if isinstance(part, Tensor))

    def decode(self, raw: Tensor) -> Tensor:
        """Decode ``[1, C, f, h, w]`` to ``[1, 3, F, H, W]`` in [-1, 1]."""
        hidden = self.vae.post_quant_conv(raw)
        frames = []
        for frame in hidden.split(1, 2):
            frames.append(
                self.vae.decoder(
                    frame, feat_cache=self.features, feat_idx=[0], first_chunk=self.first
                )
            )
            self.first = False
        return torch.cat(frames, 2).clamp(-1, 1)


def to_uint8(pixels: Tensor) -> Tensor:
    """Turn pixels in [-1, 1] into 0 to 255."""
    return ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
