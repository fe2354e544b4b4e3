"""What of a difference between scores is rounding: one rule for all that divides by a spread."""

import torch
from torch import Tensor

#: Last places by which equal scores may differ: sums in full precision err by a few; what has 16
#: bits or fewer was computed in more and rounded once.
FULL, SHORT = 8, 2


def rounding(size: Tensor, dtype: torch.dtype) -> Tensor:
    """Difference up to which scores may be equal but for rounding.

    Args:
        size: How large the scores are, any shape.
        dtype: The precision in which they came.

    Returns:
        float64, shaped like ``size``.

    Example:
        >>> rounding(torch.tensor(0.5), torch.float32).item()
        4.76837158203125e-07
    """
    epsilon = torch.finfo(dtype).eps
    places = FULL if epsilon <= torch.finfo(torch.float32).eps else SHORT
    return places * epsilon * size.double().abs()
