"""A batch as samples: what its batch size is, which of them count, and whether its entries fit."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.objectives.common import AUTO_LOSS_MASK_KEYS

from astrolabe_objectives.batch import read, read_numbers


def size_of(tensordict: TensorDictBase, key: NestedKey, reader: str) -> torch.Size:
    """Batch size of the data, as an entry of one number for each sample, ``[*B, 1]``, has it.

    A TensorDict may have a smaller batch size than its data, none at all, or one more dimension
    where the 1 of the entry was taken for it.

    Raises:
        KeyError: If the batch does not hold the entry.
        ValueError: If the entry does not say what the batch size is.
    """
    held = torch.Size(tensordict.batch_size)
    shape = torch.Size(read(tensordict, key, reader).shape)
    if shape == held and (held[-1:] != (1,) or len(held) == 1) and held:
        return held  # [*B], without its last dimension
    if shape[: len(held)] in (held, held[:-1]) and shape[-1:] == (1,) and len(shape) > 1:
        return shape[:-1]
    if not held and len(shape) == 1 and shape != (1,):
        return shape
    if shape == (1,) and not held:
        raise ValueError(
            f"{reader} reads {key!r} of shape (1,) in a batch without a batch size, which may be "
            "one sample or a batch of one. Set the batch_size of the TensorDict."
        )
    raise ValueError(
        f"{reader} reads {key!r} as one number for each sample, and it is {tuple(shape)} in a "
        f"batch of batch size {tuple(held)}. Give it as [*B, 1]."
    )


def as_samples(
    tensordict: TensorDictBase, size: torch.Size, keys: Sequence[NestedKey], reader: str
) -> TensorDictBase:
    """Flatten a batch to its samples ``[M]``.

    Args:
        tensordict: The batch.
        size: Its true batch size; if the TensorDict has another, only ``keys`` are kept.
        keys: Entries that are read.
        reader: Who reads them, for messages.

    Raises:
        ValueError: If an entry does not begin with the batch size, or there is no sample.
    """
    if not size.numel():
        raise ValueError(
            f"{reader} got a batch of size {tuple(size)}, without a sample. Give it one or more."
        )
    if size == tensordict.batch_size:
        return tensordict.reshape(-1)
    held = set(tensordict.keys(True, True))
    chosen = [key for key in (*keys, *AUTO_LOSS_MASK_KEYS) if key in held]
    for key in chosen:
        shape = tuple(tensordict[key].shape)
        if shape[: len(size)] != tuple(size):
            raise ValueError(
                f"{reader} reads {key!r} of shape {shape} in a batch of {tuple(size)} samples. "
                "Its first dimensions must be those of the batch."
            )
    batch = tensordict.select(*chosen)
    batch.batch_size = size
    return batch.reshape(-1)


def marked(batch: TensorDictBase, mask_key: Any, reader: str) -> TensorDictBase:
    """Leave out the samples that a mask of TorchRL marks as padding.

    Args:
        batch: ``[M]``.
        mask_key: `LossModule.loss_mask_key`: ``"auto"``, one entry, or None.
        reader: Who reads it, for messages.

    Raises:
        ValueError: If no sample is left.
    """
    keys = AUTO_LOSS_MASK_KEYS if mask_key == "auto" else (mask_key,)
    for key in keys:
        if key is None or batch.get(key, None) is None:
            continue
        rows = read_numbers(batch, key, reader, kind="bool")
        if not rows.all():
            batch = batch[rows]
        if not len(batch):
            raise ValueError(
                f"{reader} got a batch in which {key!r} marks no sample as one that counts. Leave "
                "such a batch out."
            )
    return batch


def read_latents(
    batch: TensorDictBase, key: NestedKey, reader: str, *, finite: bool = False
) -> Tensor:
    """Return the clean latents of a flat batch, ``[*batch_size, *event]``.

    Args:
        batch: ``[M]``, or ``[M, *S]``.
        key: Where they are.
        reader: Who reads them, for messages.
        finite: Whether to refuse NaN and infinities. An advantage of 0 does not help: 0 times NaN
            is NaN.

    Raises:
        KeyError: If the batch does not hold them.
        TypeError: If they are no floating numbers.
        ValueError: If a sample has no dimension of its own, or holds what is refused.
    """
    latents = read(batch, key, reader)
    if not isinstance(latents, Tensor) or not latents.is_floating_point():
        found = getattr(latents, "dtype", type(latents).__name__)
        raise TypeError(
            f"{reader} reads {key!r} as clean latents, and it is "
            f"{str(found).removeprefix('torch.')}. Give floating numbers, to which noise of unit "
            "variance can be added."
        )
    if latents.ndim == batch.ndim:
        raise ValueError(
            f"{reader} reads {key!r} of shape {tuple(latents.shape)} with the batch flattened, "
            "which is [M] without anything of a sample. Give it as [*B, *event], a batch of "
            "numbers as [*B, 1]."
        )
    if finite and not latents.is_meta and not bool(latents.isfinite().all()):
        bad = ~latents.flatten(1).isfinite().all(dim=1)
        raise ValueError(
            f"{reader} reads {key!r}, which is not finite in {int(bad.sum())} of {len(bad)} "
            f"samples, first in number {int(bad.nonzero()[0])}. Leave out what the model failed to "
            "sample; its weights may be damaged."
        )
    return latents


def read_seeds(batch: TensorDictBase, key: NestedKey, reader: str) -> Tensor | None:
    """Seed of each M of ``[M, *S]``, that of the first along S; None without the entry.

    Raises:
        TypeError: If they are no whole numbers.
        ValueError: If there is not one for each sample, or one is outside [0, 2³²).
    """
    if batch.get(key, None) is None:
        return None
    like = torch.empty(batch.numel(), device=batch[key].device)
    seeds = read_numbers(batch, key, reader, kind="whole number", like=like)
    # Torch's CPU generator uses only the low 32 bits, so larger seeds would not be distinct.
    if not ((seeds >= 0) & (seeds < 2**32)).all():
        raise ValueError(
            f"{key!r} goes from {seeds.min()} to {seeds.max()}. Give each sample one whole number "
            "in [0, 2³²)."
        )
    return seeds.reshape(len(batch), -1)[:, 0]


def explain(error: RuntimeError, network: nn.Module, batch: TensorDictBase) -> str | None:
    """Say which entry is on another device, or of another precision, than a network that failed."""
    said = re.search("device|dtype|data type|scalar type", str(error))
    parameter = next(network.parameters(), None)
    if not said or parameter is None:
        return None
    for key in getattr(network, "in_keys", ()):
        value = batch.get(key, None)
        if not isinstance(value, Tensor):
            continue
        for what, own, its in (
            ("on", parameter.device, value.device),
            ("of", parameter.dtype, value.dtype),
        ):
            if own != its and (what == "on" or value.is_floating_point()):
                return (
                    f"the network failed ({str(error).splitlines()[0]}): {key!r} of shape "
                    f"{tuple(value.shape)} is {what} {its}, its parameters are {what} {own}. "
                    "Bring batch and network together with .to(...), or run under autocast."
                )
    return None
