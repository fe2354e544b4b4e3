"""Ranks among competitors, for all that compares samples without trusting the size of a score."""

from torch import Tensor


def average_ranks(scores: Tensor, ids: Tensor) -> Tensor:
    """Rank of every sample by every reward among the samples of equal ids, 1 = lowest score.

    Equal scores share the mean of the ranks they cover.

    Example:
        >>> import torch
        >>> average_ranks(torch.tensor([[0.2], [0.7], [0.7]]), torch.zeros(3)).squeeze(-1)
        tensor([1.0000, 2.5000, 2.5000], dtype=torch.float64)
    """
    ids = ids[:, None] if ids.ndim == 1 else ids
    rivals = (ids[:, None] == ids[None]).all(dim=-1, keepdim=True)  # [n, n, 1]
    lower = (scores[None] < scores[:, None]) & rivals  # [n, n, rewards]
    equal = (scores[None] == scores[:, None]) & rivals
    return lower.sum(dim=1).double() + (equal.sum(dim=1).double() + 1.0) / 2.0
