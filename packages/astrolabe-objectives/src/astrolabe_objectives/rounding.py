"""What of a difference is rounding: one rule for all that ranks or divides by a spread."""

from collections.abc import Sequence

import torch
from torch import Tensor

#: Last places by which equal scores may differ: sums in full precision err by a few; what has 16
#: bits or fewer was computed in more and rounded once.
FULL, SHORT = 8, 2


def rounding(scores: Tensor) -> Tensor:
    """Size up to which the difference of a score and an equal one may be rounding alone.

    It is relative to the size of the score and to the precision in which the score comes, so a
    score must come here before it is cast to another. Whole numbers have none.

    Returns:
        float64, shaped like ``scores``.

    Example:
        >>> rounding(torch.tensor([0.5, -1e6])).tolist()
        [4.76837158203125e-07, 0.95367431640625]
    """
    if not scores.is_floating_point():
        return torch.zeros(scores.shape, dtype=torch.float64, device=scores.device)
    epsilon = torch.finfo(scores.dtype).eps
    places = FULL if epsilon <= torch.finfo(torch.float32).eps else SHORT
    return places * epsilon * scores.double().abs()


def side_by_side(columns: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Scores of several rewards, which may come in several precisions.

    Args:
        columns: ``[n]`` of each of K rewards.

    Returns:
        The scores, float64 ``[n, K]``, and their `rounding` as they came, ``[n, K]``.
    """
    return (
        torch.stack([column.double() for column in columns], dim=1),
        torch.stack([rounding(column) for column in columns], dim=1),
    )


def tied(scores: Tensor) -> bool:
    """Whether all scores are equal but for rounding, as are none and one; all of them finite.

    Example:
        >>> tied(torch.tensor([0.5, 0.5 + 1e-7])), tied(torch.tensor([0.5, 0.5001]))
        (True, False)
    """
    if not scores.numel():
        return True
    low, high = scores.double().aminmax()
    return bool(high - low <= rounding(scores).max())
