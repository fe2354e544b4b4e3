"""What a reward is shown is shown to the rewards after it: a change in place is found out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from astrolabe_rewards.errors import RewardError

#: Torch's count of changes, and the sum of the bytes.
_Mark: TypeAlias = tuple[int | None, int | None]


@contextmanager
def untouched(who: str, shown: TensorDictBase, keys: Sequence[NestedKey]) -> Iterator[None]:
    """Refuse what runs in the block if it changes a tensor that it was shown.

    Torch counts changes of a tensor, at no cost. What it does not count, through arrays of NumPy
    and to tensors made in inference mode, is found by the sum of the bytes, on a GPU only for the
    latter.

    Args:
        who: Runs, for the message.
        shown: The batch that it gets.
        keys: Entries to look at; what is missing or no tensor is passed over.

    Raises:
        RewardError: Names the entry.
    """
    entries = {key: shown.get(key, None) for key in keys}
    tensors = {key: value for key, value in entries.items() if isinstance(value, Tensor)}
    before = {key: _mark(value) for key, value in tensors.items()}
    yield
    for key, value in tensors.items():
        if _mark(value) != before[key]:
            raise RewardError(
                f"{who} changed {key} of the batch in place, which the rewards after it and "
                f"whoever keeps the videos would get. Let it work on a copy: clone() of a tensor, "
                "copy() of an array."
            )


def _mark(value: Tensor) -> _Mark:
    uncounted = value.is_inference()
    version = None if uncounted else value._version
    return version, _sum(value) if uncounted or value.device.type == "cpu" else None


def _sum(value: Tensor) -> int:
    """Sum of a tensor's bytes, eight at a time as that is ten times as fast."""
    flat = value.detach().contiguous().reshape(-1).view(torch.uint8)
    whole = flat.numel() // 8 * 8
    words = flat[:whole]
    if words.storage_offset() % 8:
        words = words.clone()
    return int(words.view(torch.int64).sum()) + int(flat[whole:].sum())
