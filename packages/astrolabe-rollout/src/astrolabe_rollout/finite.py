"""Weights that are no numbers: one NaN makes every video black, and nothing says why."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from astrolabe_rollout.errors import CheckpointError, some


def check_finite(source: str | Path, weights: Mapping[str, object]) -> None:
    """Refuse weights with a number that is NaN or infinite; each number is read once.

    Args:
        source: File or folder of the weights, for the message.
        weights: By their names there; what is no tensor is passed over.

    Raises:
        CheckpointError: Names some of the tensors, and says how many there are.
    """
    tensors = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    if odd := [str(name) for name, value in tensors.items() if not is_finite(value)]:
        raise CheckpointError(
            f"{str(source)!r}: {len(odd)} of {len(tensors)} tensors hold NaN or infinite numbers: "
            f"{some(odd)}. Copy or download it again; if it was saved so, take an earlier one."
        )


def is_finite(value: Tensor) -> bool:
    """Whether all numbers of a tensor are finite."""
    if value.is_meta or not value.numel() or not (value.is_floating_point() or value.is_complex()):
        return True
    if value.is_complex():
        value = torch.view_as_real(value)
    elif value.dtype.itemsize == 1:  # nothing is computed in 8 bits
        value = value.to(torch.float16 if value.dtype != torch.float8_e8m0fnu else torch.float32)
    # The ends are NaN if any number is; unlike `isfinite` this takes no memory.
    return all(bool(end.isfinite()) for end in value.aminmax())
