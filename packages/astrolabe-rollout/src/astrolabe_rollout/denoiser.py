"""Denoiser: predicts a whole noisy window's clean latents, each chunk over what the sampler saw."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from astrolabe_rollout.attention import KeyValue
from astrolabe_rollout.cache import KVCache
from astrolabe_rollout.causal import WindowTransformer
from astrolabe_rollout.checks import kind, require
from astrolabe_rollout.entries import check_entries
from astrolabe_rollout.keys import CONTEXT, DENOISED, EMBEDS, INDEX, LATENTS, NOISY, SIGMA
from astrolabe_rollout.model import AnyModel, check_model
from astrolabe_rollout.schedule import to_x0


class Denoiser(TensorDictModuleBase):
    """Predicts ``x_0 = x_σ - σ v`` of a window; the network that the losses train.

    Reads ``("noisy","latents")``, ``("noisy","sigma")``, ``("video","latents")``,
    ``("window","context")``, ``("window","index")`` and ``("prompt","embeds")``; writes
    ``("denoised","latents")``.

    The context is rebuilt by the weights in force, without gradient unless it is attached: sink and
    recent frames before the window, and the window's own earlier chunks, all clean at timestep 0
    (Astrolabe section 3.3).

    Args:
        model: The video model.
        num_frames: Latent frames of a window, to place windows after the first in time.
        context: What a chunk sees of the window's earlier chunks: ``"clean"`` and detached, as in
            sampling; ``"attached"``, the same with gradient (full back-propagation, also through
            what lies before the window); or ``"noisy"`` at their own level and with gradient, as
            the public trainer meant to.
        mask: ``"chunk"``, or ``"frame"``: each frame sees only those before it, as the public
            trainer does.
        agree: For a sharded model, of which all processes must run the same passes, forward and
            backward: is given the window numbers of a batch, int64 on the CPU, and returns those of
            all processes' batches, sorted. A window that only others have is passed with the
            first row of the batch, to no effect on result or gradient.

    The whole context is computed under the window's own prompt. Where a prompt changed before, the
    sampler of a model that keeps its cache saw older frames under theirs, and one that writes it
    anew (``switch="recache"``) did so for all frames together and not chunk by chunk: of the
    embedded model the prediction then differs by a quarter, or by a twentieth to a sixth.

    A model that computes its cache anew for every chunk (Krea) is trained on that context too:
    clean chunks that have seen no other. In long videos its sampler encodes the oldest frame of a
    context again, as the first of a video; here it stays the latent that it was.

    Raises:
        TypeError: If the model's transformer can only stream.
        ValueError: If ``num_frames`` is no multiple of the chunk, an option is unknown, or the
            model rebuilds its cache from more or fewer frames than a chunk.
    """

    def __init__(
        self,
        model: AnyModel,
        num_frames: int = 9,
        *,
        context: Literal["clean", "attached", "noisy"] = "clean",
        mask: Literal["chunk", "frame"] = "chunk",
        agree: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        check_model(type(self).__name__, model)
        if context not in ("clean", "attached", "noisy") or mask not in ("chunk", "frame"):
            raise ValueError(
                f"context={context!r}, mask={mask!r}: choose context 'clean', 'attached' or "
                "'noisy', mask 'chunk' or 'frame'."
            )
        require(model.transformer, WindowTransformer, "transformer")
        model.geometry.chunks(num_frames)
        self.alone = model.geometry.chunk if model.rebuild else None
        if model.rebuild not in (None, self.alone):
            raise ValueError(
                f"the model rebuilds its cache from {model.rebuild} frames for chunks of "
                f"{self.alone}; it can be trained with as many frames as a chunk has. "
                "Set rebuild to that, and window to twice as many."
            )
        self.num_frames, self.context, self.mask = num_frames, context, mask
        self.agree = agree
        self.transformer = model.transformer
        self.geometry, self.timestep = model.geometry, model.timestep
        self.in_keys = [NOISY, SIGMA, LATENTS, CONTEXT, INDEX, EMBEDS]
        self.out_keys = [DENOISED]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Denoise a batch; videos at different windows may be mixed.

        Raises:
            KeyError: If the batch lacks an entry.
            TypeError: If an entry has another dtype.
            ValueError: If an entry has another rank or size, or a window is below 0.
        """
        check_entries(type(self).__name__, tensordict, self.in_keys)
        flat = tensordict.reshape(-1)
        part = flat.select(*self.in_keys)
        index = flat[INDEX].cpu()  # once: each number read from a GPU waits for all of its work
        self._check(part, index)
        result = torch.empty_like(flat[NOISY])
        unused: list[Tensor] = []
        for window in self._windows(index):
            rows = (index == window).nonzero().squeeze(1).to(result.device, non_blocking=True)
            if len(rows) == len(index):
                result = self._denoise(part, window, unused)
            elif len(rows):
                denoised = self._denoise(part[rows], window, unused)
                result = result.index_copy(0, rows, denoised)
            else:
                unused.append(self._denoise(part[:1], window, unused))
        if self.agree is not None and torch.is_grad_enabled():
            result = _WithZeroGradients.apply(result, *unused)
        tensordict[DENOISED] = result.reshape(*tensordict.batch_size, *result.shape[1:])
        return tensordict

    def _check(self, batch: TensorDictBase, index: Tensor) -> None:
        noisy, latents, context = batch[NOISY], batch[LATENTS], batch[CONTEXT]
        for key, value, wanted in (
            (LATENTS, latents, noisy.shape),
            (SIGMA, batch[SIGMA], noisy.shape[:2]),
            (CONTEXT, context, (len(noisy), context.shape[1], *noisy.shape[2:])),
        ):
            if tuple(value.shape) != tuple(wanted):
                raise ValueError(
                    f"Denoiser: {key} is {kind(value)} for {NOISY} {list(noisy.shape)}. "
                    f"Give {list(wanted)}."
                )
        if not batch[SIGMA].is_meta and batch[SIGMA].numel():
            lowest, highest = (float(end) for end in batch[SIGMA].aminmax())
            if not 0 <= lowest <= highest <= 1:
                raise ValueError(
                    f"Denoiser: {SIGMA} runs from {lowest:g} to {highest:g}. Give noise levels in "
                    "(0, 1], not timesteps."
                )
        first, last = (int(index.min()), int(index.max())) if len(index) else (0, 0)
        if first < 0 or (last and noisy.shape[1] != self.num_frames):
            raise ValueError(
                f"Denoiser: windows {first} to {last} of {noisy.shape[1]} latent frames cannot be "
                f"placed among windows of {self.num_frames}. Make it with the num_frames of the "
                "policy that sampled them, and count windows from 0."
            )

    def _windows(self, index: Tensor) -> list[int]:
        present = torch.unique(index)
        windows: list[int] = (present if self.agree is None else self.agree(present)).tolist()
        return windows

    def _denoise(self, batch: TensorDictBase, window: int, unused: list[Tensor]) -> Tensor:
        """Predict the clean latents of videos at one window.

        Of passes with gradient before the last, only keys and values are used; ``unused`` gets what
        they predict if all processes must go backward through them.
        """
        noisy, sigma, embeds, latents = (batch[key] for key in (NOISY, SIGMA, EMBEDS, LATENTS))
        size = self.geometry.chunk if self.mask == "chunk" else 1
        chunks = (size,) * (noisy.shape[1] // size)
        before = window * self.num_frames
        clean: dict[int, KeyValue] | None = None
        attached = self.context == "attached" and torch.is_grad_enabled()
        with torch.set_grad_enabled(attached):
            prefix = self._prefix(batch[CONTEXT], embeds, before, unused)
            if self.context != "noisy":
                clean = self._recorded(
                    latents[:, : -chunks[-1]], embeds, chunks[:-1], prefix, before, unused
                )
        velocity = self.transformer.forward_window(
            noisy,
            self.timestep(sigma),
            embeds,
            chunks=chunks,
            prefix=prefix,
            clean=clean,
            consume=True,
        )
        return to_x0(noisy, velocity, sigma)

    def _prefix(
        self, context: Tensor, embeds: Tensor, before: int, unused: list[Tensor]
    ) -> KVCache | None:
        """Rebuild the cache of the frames before the window from their latents."""
        if not before:
            return None
        geometry = self.geometry
        if geometry.window is None:
            raise ValueError(
                "windows after the first need a cache of bounded size, but this model sees its "
                "whole past. Give its geometry a window, or train on one window."
            )
        real = min(before, context.shape[1])
        sink = min(geometry.sink, real)
        recent = before - real + sink  # number of the first frame after the sink
        cache: KVCache | None = None
        held: dict[int, KeyValue] = {}
        for part, start, end in (
            (context[:, :sink], 0, recent),
            (context[:, sink:real], recent, before),
        ):
            if part.shape[1]:
                chunks = [chunk.shape[1] for chunk in torch.split(part, geometry.chunk, 1)]
                new = self._recorded(part, embeds, chunks, cache, start, unused)
                held = {layer: _joined(held.get(layer), pair) for layer, pair in new.items()}
                cache = KVCache.holding(self.transformer.rule, held, end)
        return cache

    def _recorded(
        self,
        latents: Tensor,
        embeds: Tensor,
        chunks: Sequence[int],
        prefix: KVCache | None,
        start: int,
        unused: list[Tensor],
    ) -> dict[int, KeyValue]:
        """Keys and values of clean latents from frame ``start`` of the video on."""
        if not chunks:
            return dict.fromkeys(range(self.transformer.layers), _nothing(latents))
        record: dict[int, KeyValue] = {}
        velocity = self.transformer.forward_window(
            latents,
            latents.new_zeros(latents.shape[:2]),
            embeds,
            chunks=chunks,
            prefix=None if self.alone else prefix,
            record=record,
            window=self.alone,
            start=start,
        )
        if self.agree is not None and velocity.requires_grad:
            unused.append(velocity)
        return record


class _WithZeroGradients(torch.autograd.Function):
    """The first tensor as it is; the others, which nothing else uses, get a gradient of zero.

    With it their passes go backward as well: FSDP gathers the weights of a layer when a gradient
    reaches its output, on all processes or on none.
    """

    @staticmethod
    def forward(ctx: Any, result: Tensor, *unused: Tensor) -> Tensor:
        ctx.like = [(one.shape, one.dtype, one.device) for one in unused]
        return result.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        zeros = [torch.zeros(s, dtype=t, device=d) for s, t, d in ctx.like]
        return gradient, *zeros


def _nothing(like: Tensor) -> KeyValue:
    return like.new_empty(0), like.new_empty(0)


def _joined(before: KeyValue | None, new: KeyValue) -> KeyValue:
    if before is None:
        return new
    return torch.cat([before[0], new[0]], 1), torch.cat([before[1], new[1]], 1)
