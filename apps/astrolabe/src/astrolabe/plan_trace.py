"""Bytes and floating-point operations of real code, found without doing its arithmetic.

Tensors on torch's meta device have shapes and no values. Code runs on them as it would on a GPU,
autograd and recomputation included, at the cost of Python alone. A dispatch mode sees every
operation; it counts the storages that are alive and, by torch's own formulas, the operations.

Left out on purpose: what a kernel takes for itself while it runs (but for convolutions on a CPU,
where it was measured), and the rounding of an allocator. They belong into the reserve.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry

#: What the code would run on; it decides how attention is computed.
Kind = Literal["cuda", "cpu"]


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch types it no further
    """Counts what operations allocate and compute from the time that it is entered.

    Storages that were there before count as nothing.

    Args:
        kind: What the code would run on.

    Attributes:
        live: Bytes of storages that are alive now.
        peak: Most bytes that were alive at a time, since `mark`.
        flops: Floating-point operations, two for each multiplication with addition.
        flops_fp32: Those of them on float32, which GPUs compute many times slower than bfloat16.
    """

    def __init__(self, kind: Kind) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # see above
        self.kind = kind
        self.live = self.peak = self.flops = self.flops_fp32 = 0
        self._known: set[int] = set()

    def mark(self) -> None:
        """Begin a new peak."""
        self.peak = self.live

    def __torch_dispatch__(
        self,
        func: Any,  # Any: torch types its own hook no further
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation and count what it makes."""
        kwargs = kwargs or {}
        fresh = _makes_tensors(func)
        out = _computed(func, args, kwargs) if fresh else func(*args, **kwargs)
        made = _tensors(out) if fresh else []
        count = flop_registry.get(func._overloadpacket)
        if count is not None and made:
            flops = count(*args, **kwargs, out_val=out)
            self.flops += flops
            self.flops_fp32 += flops * (made[0].dtype == torch.float32)
        for tensor in made:
            self._add(tensor.untyped_storage())
        if self.kind == "cpu" and func is torch.ops.aten.convolution.default:
            self.peak = max(self.peak, self.live + _blocked(out))
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key, size).atexit = False

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _blocked(out: Tensor) -> int:
    """Bytes of a convolution's result in oneDNN's own layout, from which it is copied."""
    channels = out.shape[1]
    return out.nbytes // channels * (-(-channels // 16) * 16)


def _tensors(values: object) -> list[Tensor]:
    leaves = (values,) if isinstance(values, Tensor) else tree_leaves(values)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.device.type == "meta"]


#: Size, strides and precision of what operations returned, by what they were given. The meta
#: device finds these anew each time, in Python.
_shapes: dict[Any, tuple[Any, ...]] = {}


def _computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation that returns new tensors; one that was seen before is not run again."""
    key = (func, _described(args), _described(tuple(kwargs.items())))
    try:
        known = _shapes.get(key)
    except TypeError:  # a list of scalars, for instance
        return func(*args, **kwargs)
    if known is not None:
        size, strides, dtype = known
        return torch.empty_strided(size, strides, dtype=dtype, device="meta")
    out = func(*args, **kwargs)
    if isinstance(out, Tensor) and out.device.type == "meta" and not _given(out, args):
        _shapes[key] = (out.shape, out.stride(), out.dtype)
    return out


def _given(out: Tensor, args: tuple[Any, ...]) -> bool:
    """Whether a result has the memory of an argument, though the operation does not say so."""
    storages = (tensor.untyped_storage()._cdata for tensor in _tensors(args))
    return out.untyped_storage()._cdata in storages


def _described(value: Any) -> Any:
    """What of an argument decides about the shape of a result."""
    if isinstance(value, Tensor):
        return (value.shape, value.stride(), value.dtype, value.device, value.storage_offset() == 0)
    if isinstance(value, (tuple, list)):
        return tuple(map(_described, value))
    return type(value), value  # 1, 1.0 and True are equal, and give results of other precisions


@cache
def _makes_tensors(func: Any) -> bool:
    """Whether an operation returns memory of its own, not a view or what it was given."""
    return any(result.alias_info is None for result in func._schema.returns)


class _Fused(TorchFunctionMode):
    """Computes attention as the device does: without a matrix of scores.

    On the meta device torch itself would choose the plain formula.
    """

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run a function, or what stands for it."""
        if func is scaled_dot_product_attention:
            return self._attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if enable_gqa:  # the kernels repeat the heads as they read; the counters want them alike
            key, value = (_spread(x, query.shape[1]) for x in (key, value))
        if self.kind == "cpu":
            fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        else:
            fused = torch.ops.aten._scaled_dot_product_flash_attention
        out: Tensor = fused(query, key, value, dropout_p, is_causal, scale=scale)[0]
        return out


def _spread(x: Tensor, heads: int) -> Tensor:
    count = heads // x.shape[1]
    return x[:, :, None].expand(-1, -1, count, -1, -1).flatten(1, 2)


def recompute(kind: Kind) -> Callable[..., Any]:
    """Return diffusers' function for gradient checkpointing, for use in a trace.

    A function mode does not reach what runs within ``backward``; it is entered there again.
    """

    def run(module: nn.Module, *args: Any) -> Any:
        return checkpoint(
            module.__call__,
            *args,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _Fused(kind)),
        )

    return run


@contextmanager
def traced(kind: Kind) -> Iterator[Trace]:
    """Count what a block of code does with tensors on the meta device."""
    with _Fused(kind), Trace(kind) as trace:
        yield trace
