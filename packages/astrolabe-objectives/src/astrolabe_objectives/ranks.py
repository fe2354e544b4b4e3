"""Ranks among competitors, for all that compares samples without trusting the size of a score."""

import torch
from torch import Tensor

from astrolabe_objectives.rounding import rounding


def average_ranks(scores: Tensor, ids: Tensor, blur: Tensor | None = None) -> Tensor:
    """Rank of every sample by every reward among the samples of equal ids, 1 = lowest score.

    Scores that are equal but for rounding share the mean of the ranks they cover.

    Args:
        scores: ``[n, K]``.
        ids: ``[n]`` or ``[n, ...]``.
        blur: What in each score may be rounding, ``[n, K]``; None: what its precision says.

    Returns:
        float64 ``[n, K]``.

    Example:
        >>> average_ranks(torch.tensor([[0.2], [0.7], [0.7]]), torch.zeros(3)).squeeze(-1)
        tensor([1.0000, 2.5000, 2.5000], dtype=torch.float64)
    """
    ids = ids[:, None] if ids.ndim == 1 else ids
    rivals = (ids[:, None] == ids[None]).all(dim=-1, keepdim=True)  # [n, n, 1]
    blur = rounding(scores) if blur is None else blur
    exact = scores.double()
    gap = exact[:, None] - exact[None]  # [n, n, rewards]
    near = gap.abs() <= torch.maximum(blur[:, None], blur[None])
    lower, equal = (gap > 0) & ~near & rivals, near & rivals
    return lower.sum(dim=1).double() + (equal.sum(dim=1).double() + 1.0) / 2.0
