"""Few-step sampling of a chunk as distilled models learn it: Self-Forcing's consistency sampler."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from astrolabe_rollout.batch_cache import Cache
from astrolabe_rollout.cache import KVCache
from astrolabe_rollout.causal import Transformer
from astrolabe_rollout.schedule import add_noise, to_x0

#: Fresh Gaussian noise for denoising step 0, 1, ... of a chunk, ``[B, f, C, h, w]``.
Noise = Callable[[int], Tensor]


@torch.no_grad()
def sample_chunk(
    transformer: Transformer,
    sigmas: Sequence[float],
    embeds: Tensor,
    cache: Cache,
    noise: Noise,
    frames: int,
    *,
    timesteps: Sequence[float] | None = None,
    cut: bool = False,
    clean: bool = True,
    visited: list[Tensor] | None = None,
) -> Tensor:
    """Sample the next chunk and leave its clean keys and values in the cache.

    From pure noise, ``x_0 = x - σ_i v``, then fresh noise down to σ_{i+1}; one more pass at
    timestep 0 writes the context that later chunks see.

    Args:
        transformer: The model.
        sigmas: Falling noise levels, the first is 1.
        embeds: Text ``[B, L, D]``.
        cache: Cache of the video so far, or those of the batch.
        noise: Where noise comes from.
        frames: Latent frames of the chunk.
        timesteps: What the model is told of each noise level; by default ``1000 σ``.
        cut: Whether the chunk begins a scene by a hard cut, see `KVCache.open`.
        clean: Whether to make the last pass. Without it the cache keeps what the last denoising
            step wrote; for models that compute the cache anew before the next chunk anyway.
        visited: Gets what was denoised at each noise level, in order.

    Returns:
        Clean latents ``[B, frames, C, h, w]``.
    """
    cache.open(frames, cut)
    x = noise(0)
    told = [1000 * sigma for sigma in sigmas] if timesteps is None else timesteps
    for step, (sigma, timestep) in enumerate(zip(sigmas, told, strict=True)):
        if step:
            x = add_noise(x, noise(step), sigma)
        if visited is not None:
            visited.append(x)
        every = x.new_full(x.shape[:2], timestep)
        x = to_x0(x, transformer.forward_chunk(x, every, embeds, cache), sigma)
    if clean:
        write_clean(transformer, x, embeds, cache)
    else:
        cache.close()
    return x


@torch.no_grad()
def write_clean(transformer: Transformer, latents: Tensor, embeds: Tensor, cache: Cache) -> None:
    """Write the keys and values of clean latents into the open chunk and close it."""
    transformer.forward_chunk(latents, latents.new_zeros(latents.shape[:2]), embeds, cache)
    cache.close()


@torch.no_grad()
def prefill(
    transformer: Transformer, latents: Tensor, embeds: Tensor, cache: Cache, chunk: int
) -> None:
    """Fill a cache with clean latents ``[B, f, C, h, w]``, chunk by chunk."""
    for part in torch.split(latents, chunk, 1):
        cache.open(part.shape[1])
        write_clean(transformer, part, embeds, cache)


@torch.no_grad()
def recache(
    transformer: Transformer, latents: Tensor, embeds: Tensor, cache: KVCache, *, keep_sink: bool
) -> None:
    """Write the cache anew under a new prompt, from the frames it holds (LongLive's KV recache).

    One pass at timestep 0 over all of these frames together, without a causal order among them. As
    long as the cache holds the whole video, all of it is written anew; later, the sink keeps the
    keys and values of the prompt before, or the oldest frames at hand become the new sink.

    Args:
        transformer: The model.
        latents: The newest clean latents of the video, ``[B, n, C, h, w]``, at least as many as the
            cache holds.
        embeds: The new prompt, ``[B, L, D]``.
        cache: Cache of the video so far, with a window.
        keep_sink: Whether the sink stays.

    Raises:
        ValueError: If there are too few latents.
    """
    frames = cache.length
    if frames < cache.end:
        if keep_sink:
            frames -= cache.rule.sink
        else:
            cache.restart(cache.end - frames)
            cache.open(frames)
    if latents.shape[1] < frames:
        raise ValueError(
            f"a new prompt needs the newest {frames} latent frames, {latents.shape[1]} are given."
        )
    if not cache.opened:
        cache.reopen(frames)
    write_clean(transformer, latents[:, latents.shape[1] - frames :], embeds, cache)


@torch.no_grad()
def rebuild(
    transformer: Transformer, context: Tensor, embeds: Tensor, cache: Cache, chunk: int
) -> None:
    """Compute the cache anew from clean latents, at positions from 0 (Krea's rule for each chunk).

    Args:
        transformer: The model.
        context: ``[B, n, C, h, w]``, see `rebuild_context`.
        embeds: Text ``[B, L, D]``.
        cache: Emptied first; holds at least n frames and a chunk.
        chunk: Latent frames that see each other.
    """
    cache.restart()
    prefill(transformer, context, embeds, cache, chunk)
