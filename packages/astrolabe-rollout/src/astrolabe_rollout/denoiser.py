"""Denoiser: predicts a whole noisy window's clean latents, each chunk over what the sampler saw."""

from typing import Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from astrolabe_rollout.attention import KeyValue
from astrolabe_rollout.cache import KVCache
from astrolabe_rollout.keys import CONTEXT, DENOISED, EMBEDS, INDEX, LATENTS, NOISY, SIGMA
from astrolabe_rollout.model import VideoModel
from astrolabe_rollout.sampler import write_clean
from astrolabe_rollout.schedule import to_x0


class Denoiser(TensorDictModuleBase):
    """Predicts ``x_0 = x_σ - σ v`` of a window; the network that the losses train.

    Reads ``("noisy","latents")``, ``("noisy","sigma")``, ``("video","latents")``,
    ``("window","context")``, ``("window","index")`` and ``("prompt","embeds")``; writes
    ``("denoised","latents")``.

    The context is rebuilt without gradient by the weights in force: sink and recent frames before
    the window, and the window's own earlier chunks, all clean at timestep 0 (Astrolabe section
    3.3).

    Args:
        model: The video model.
        num_frames: Latent frames of a window, to place windows after the first in time.
        context: What a chunk sees of the window's earlier chunks: ``"clean"`` and detached, as in
            sampling; ``"attached"``, the same with gradient (full back-propagation inside the
            window); or ``"noisy"`` at their own level and with gradient, as the public trainer
            meant to.
        mask: ``"chunk"``, or ``"frame"``: each frame sees only those before it, as the public
            trainer does.

    A model that computes its cache anew for every chunk (Krea) is trained on that context too:
    clean chunks that have seen no other. In long videos its sampler encodes the oldest frame of a
    context again, as the first of a video; here it stays the latent that it was.

    Raises:
        ValueError: If ``num_frames`` is no multiple of the chunk, an option is unknown, or the
            model rebuilds its cache from more or fewer frames than a chunk.
    """

    def __init__(
        self,
        model: VideoModel,
        num_frames: int = 9,
        *,
        context: Literal["clean", "attached", "noisy"] = "clean",
        mask: Literal["chunk", "frame"] = "chunk",
    ) -> None:
        super().__init__()
        if context not in ("clean", "attached", "noisy") or mask not in ("chunk", "frame"):
            raise ValueError(
                f"context={context!r}, mask={mask!r}: choose context 'clean', 'attached' or "
                "'noisy', mask 'chunk' or 'frame'."
            )
        model.geometry.chunks(num_frames)
        self.alone = model.geometry.chunk if model.rebuild else None
        if model.rebuild not in (None, self.alone):
            raise ValueError(
                f"the model rebuilds its cache from {model.rebuild} frames for chunks of "
                f"{self.alone}; it can be trained with as many frames as a chunk has. "
                "Set its option rebuild to that, and window to twice as many."
            )
        self.num_frames, self.context, self.mask = num_frames, context, mask
        self.transformer = model.transformer
        self.geometry, self.timestep = model.geometry, model.timestep
        self.in_keys = [NOISY, SIGMA, LATENTS, CONTEXT, INDEX, EMBEDS]
        self.out_keys = [DENOISED]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Denoise a batch; videos at different windows may be mixed."""
        flat = tensordict.reshape(-1)
        index = flat[INDEX]
        result = torch.empty_like(flat[NOISY])
        for window in index.unique().tolist():
            rows = (index == window).nonzero().squeeze(1)
            whole = len(rows) == len(index)
            part = flat.select(*self.in_keys)
            denoised = self._denoise(part if whole else part[rows], int(window))
            result = denoised if whole else result.index_copy(0, rows, denoised)
        tensordict[DENOISED] = result.reshape(*tensordict.batch_size, *result.shape[1:])
        return tensordict

    def _denoise(self, batch: TensorDictBase, window: int) -> Tensor:
        noisy, sigma, embeds, latents = (batch[key] for key in (NOISY, SIGMA, EMBEDS, LATENTS))
        size = self.geometry.chunk if self.mask == "chunk" else 1
        chunks = (size,) * (noisy.shape[1] // size)
        prefix = self._prefix(batch[CONTEXT], embeds, window * self.num_frames)
        clean: dict[int, KeyValue] | None = None
        if self.context != "noisy":
            clean = {}
            attached = self.context == "attached" and torch.is_grad_enabled()
            with torch.set_grad_enabled(attached):
                self._record(latents, embeds, chunks, prefix, clean)
        velocity = self.transformer.forward_window(
            noisy, self.timestep(sigma), embeds, chunks=chunks, prefix=prefix, clean=clean
        )
        return to_x0(noisy, velocity, sigma)

    def _record(
        self,
        latents: Tensor,
        embeds: Tensor,
        chunks: tuple[int, ...],
        prefix: KVCache | None,
        record: dict[int, KeyValue],
    ) -> None:
        """Record the clean keys and values of all chunks but the last, which no chunk sees."""
        earlier = latents[:, : -chunks[-1]]
        if not earlier.shape[1]:
            record.update(dict.fromkeys(range(self.transformer.layers), _nothing(latents)))
            return
        self.transformer.forward_window(
            earlier,
            earlier.new_zeros(earlier.shape[:2]),
            embeds,
            chunks=chunks[:-1],
            prefix=None if self.alone else prefix,
            record=record,
            window=self.alone,
            start=0 if prefix is None else prefix.end,
        )

    @torch.no_grad()
    def _prefix(self, context: Tensor, embeds: Tensor, before: int) -> KVCache | None:
        """Rebuild the cache of the frames before the window from their latents."""
        if not before:
            return None
        geometry = self.geometry
        if geometry.window is None:
            raise ValueError(
                "windows after the first need a cache of bounded size, but this model sees its "
                "whole past. Give its geometry a window, or train on one window."
            )
        cache = self.transformer.new_cache()
        real = min(before, context.shape[1])
        sink = min(geometry.sink, real)
        for part in (
            *torch.split(context[:, :sink], geometry.chunk, 1),
            *torch.split(context[:, sink:real], geometry.chunk, 1),
        ):
            if part.shape[1]:
                if cache.end == sink:
                    cache.skip(before - real)
                cache.open(part.shape[1])
                write_clean(self.transformer, part, embeds, cache)
        return cache


def _nothing(like: Tensor) -> KeyValue:
    return like.new_empty(0), like.new_empty(0)
