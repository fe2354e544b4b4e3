"""What of a difference between scores is rounding: one rule for all that divides by a spread."""

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.utils import unravel_key
from torch import Tensor

from astrolabe_rewards.keys import ROUNDING

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


def rounding_key(key: NestedKey) -> NestedKey:
    """Return where the rounding of an entry is.

    Example:
        >>> rounding_key(("next", "reward"))
        ('rounding', 'next', 'reward')
    """
    whole = unravel_key(key)
    return (ROUNDING, *((whole,) if isinstance(whole, str) else whole))


def rounding_of(batch: TensorDictBase, key: NestedKey) -> Tensor:
    """Return the rounding of scores: what the batch says, or what their precision does, float64."""
    scores: Tensor = batch.get(key)
    own = rounding(scores, scores.dtype)
    said = batch.get(rounding_key(key), None)
    return own if said is None else torch.maximum(own, said.to(own).reshape(own.shape))


def as_came(scores: Tensor, blur: Tensor) -> Tensor:
    """Return float32 scores in the precision of 16 bits of which ``blur`` is the rounding, if any.

    Args:
        scores: float32, any shape.
        blur: What `rounding` said of them before they were cast.
    """
    for dtype in (torch.float16, torch.bfloat16):
        known = scores.isfinite()
        if known.any() and blur[known].equal(rounding(scores[known], dtype).to(blur)):
            return scores.to(dtype)
    return scores
