"""Few-step sampling of a chunk as distilled models learn it: Self-Forcing's consistency sampler."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from astrolabe_rollout.cache import KVCache
from astrolabe_rollout.schedule import add_noise, to_x0
from astrolabe_rollout.transformer import CausalWan

#: Fresh Gaussian noise for denoising step 0, 1, ... of a chunk, ``[B, f, C, h, w]``.
Noise = Callable[[int], Tensor]


@torch.no_grad()
def sample_chunk(
    transformer: CausalWan,
    sigmas: Sequence[float],
    embeds: Tensor,
    cache: KVCache,
    noise: Noise,
    frames: int,
) -> Tensor:
    """Sample the next chunk and leave its clean keys and values in the cache.

    From pure noise, ``x_0 = x - σ_i v``, then fresh noise down to σ_{i+1}; one more pass at
    timestep 0 writes the context that later chunks see.

    Args:
        transformer: The model.
        sigmas: Falling noise levels, the first is 1.
        embeds: Text ``[B, L, D]``.
        cache: Cache of the video so far.
        noise: Where noise comes from.
        frames: Latent frames of the chunk.

    Returns:
        Clean latents ``[B, frames, C, h, w]``.
    """
    cache.open(frames)
    x = noise(0)
    for step, sigma in enumerate(sigmas):
        if step:
            x = add_noise(x, noise(step), sigma)
        timestep = x.new_full(x.shape[:2], 1000 * sigma)
        x = to_x0(x, transformer.forward_chunk(x, timestep, embeds, cache), sigma)
    write_clean(transformer, x, embeds, cache)
    return x


@torch.no_grad()
def write_clean(transformer: CausalWan, latents: Tensor, embeds: Tensor, cache: KVCache) -> None:
    """Write the keys and values of clean latents into the open chunk and close it."""
    transformer.forward_chunk(latents, latents.new_zeros(latents.shape[:2]), embeds, cache)
    cache.close()


@torch.no_grad()
def prefill(
    transformer: CausalWan, latents: Tensor, embeds: Tensor, cache: KVCache, chunk: int
) -> None:
    """Fill a cache with clean latents ``[B, f, C, h, w]``, chunk by chunk."""
    for part in torch.split(latents, chunk, 1):
        cache.open(part.shape[1])
        write_clean(transformer, part, embeds, cache)
