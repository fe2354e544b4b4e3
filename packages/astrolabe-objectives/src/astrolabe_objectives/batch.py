"""What the modules here read from a batch: an entry, who competes with whom, who counts."""

from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor


def read(tensordict: TensorDictBase, key: NestedKey, reader: str) -> Any:
    """Return an entry of a batch, a tensor or a nested TensorDict.

    Raises:
        KeyError: If the batch does not hold it; names the reader and what there is.
    """
    value = tensordict.get(key, None)
    if value is None:
        held = sorted(map(str, tensordict.keys(include_nested=True, leaves_only=True)))
        raise KeyError(
            f"{reader} reads {key!r}, which this batch does not hold. It holds: {', '.join(held)}. "
            "Run the module that writes it first, or name another key."
        )
    return value


def read_numbers(
    tensordict: TensorDictBase,
    key: NestedKey,
    reader: str,
    *,
    kind: str = "number",
    like: Tensor | None = None,
) -> Tensor:
    """Return an entry that holds one value for each sample, flattened to ``[n]``.

    Args:
        tensordict: The batch; without a batch size the entry itself says how many samples it has.
        key: Of the entry, ``[*B, 1]`` or ``[*B]``.
        reader: Who reads it, for the message.
        kind: ``"number"``, ``"whole number"`` or ``"bool"``.
        like: ``[n]``, another entry of the same samples.

    Raises:
        KeyError: If the batch does not hold it.
        TypeError: If it is no tensor of this kind.
        ValueError: If it has another number of values, or is on another device than ``like``.
    """
    value = read(tensordict, key, reader)
    if not isinstance(value, Tensor) or not _is(kind, value):
        found = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(
            f"{reader} reads {key!r} as one {kind} for each sample, and it is "
            f"{found.removeprefix('torch.')}. Convert it where it is written."
        )
    size = tuple(tensordict.batch_size)
    if like is None:
        fits = tuple(value.shape) == size or value.shape[-1:] == (1,) or not size
        samples = f"of batch size {size}"
    else:
        fits, samples = value.numel() == len(like), f"of {len(like)} samples"
    if not fits:
        raise ValueError(
            f"{reader} reads {key!r} as one {kind} for each sample, and it is "
            f"{tuple(value.shape)} in a batch {samples}. Give it as [*B, 1]."
        )
    if like is not None and value.device != like.device:
        raise ValueError(
            f"{reader} reads {key!r} on {value.device}, and other entries of the batch on "
            f"{like.device}. Move the batch as a whole, with batch.to(...)."
        )
    return value.reshape(-1)


def _is(kind: str, value: Tensor) -> bool:
    if kind == "bool":
        return value.dtype == torch.bool
    whole = not value.is_floating_point() and value.dtype != torch.bool
    return not value.is_complex() and (whole or kind == "number")


def group_ids(
    tensordict: TensorDictBase,
    group_key: NestedKey,
    index_key: NestedKey,
    reader: str,
    like: Tensor | None = None,
) -> Tensor:
    """Prompt group and window of every sample, int64 ``[n, 2]`` with the batch flattened.

    Samples compete if both numbers agree: later windows of a video have another past than earlier
    ones, so their rewards are not compared. A batch without ``index_key`` is all one window.

    Args:
        tensordict: The batch.
        group_key: Where the groups are.
        index_key: Where the windows are, if anywhere.
        reader: Who reads them, for messages.
        like: ``[n]``, another entry of the same samples.
    """
    group = read_numbers(tensordict, group_key, reader, kind="whole number", like=like)  # [n]
    if tensordict.get(index_key, None) is None:
        window = torch.zeros_like(group)
    else:
        window = read_numbers(tensordict, index_key, reader, kind="whole number", like=group)
    return torch.stack([group, window.to(group.dtype)], dim=1)  # [n, 2]


def countable(
    tensordict: TensorDictBase, valid_key: NestedKey, scores: Tensor, reader: str
) -> Tensor:
    """Samples with a judgement, bool ``[n]``: marked valid (if marked at all) and all finite.

    Args:
        tensordict: The batch.
        valid_key: Where the marks are, if there are any.
        scores: ``[n, K]``, what was judged.
        reader: Who reads them, for messages.
    """
    finite = scores.isfinite().all(dim=1)
    if tensordict.get(valid_key, None) is None:
        return finite
    return finite & read_numbers(tensordict, valid_key, reader, kind="bool", like=finite)
