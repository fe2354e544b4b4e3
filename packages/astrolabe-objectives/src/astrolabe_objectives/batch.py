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


def group_ids(
    tensordict: TensorDictBase, group_key: NestedKey, index_key: NestedKey, reader: str
) -> Tensor:
    """Prompt group and window of every sample, int64 ``[n, 2]`` with the batch flattened.

    Samples compete if both numbers agree: later windows of a video have another past than earlier
    ones, so their rewards are not compared. A batch without ``index_key`` is all one window.
    """
    group: Tensor = read(tensordict, group_key, reader).reshape(-1)  # [n]
    index = tensordict.get(index_key, None)
    window = torch.zeros_like(group) if index is None else index.reshape(-1).to(group.dtype)
    return torch.stack([group, window], dim=1)  # [n, 2]


def countable(tensordict: TensorDictBase, valid_key: NestedKey, scores: Tensor) -> Tensor:
    """Samples with a judgement, bool ``[n]``: marked valid (if marked at all) and all finite.

    Args:
        tensordict: The batch.
        valid_key: Where the marks are, if there are any.
        scores: ``[n, K]``, what was judged.
    """
    finite = scores.isfinite().all(dim=1)
    marked = tensordict.get(valid_key, None)
    return finite if marked is None else finite & marked.reshape(-1)
