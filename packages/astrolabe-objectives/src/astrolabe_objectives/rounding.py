"""What of a difference is rounding: one rule for all that ranks or divides by a spread."""

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor

from astrolabe_objectives.batch import read_numbers
from astrolabe_objectives.keys import ROUNDING

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


def rounding_of(tensordict: TensorDictBase, key: NestedKey, reader: str = "rounding_of") -> Tensor:
    """Return the rounding of an entry: what ``("rounding", *key)`` says, and at least its own.

    Scores may have been computed in less precision than they are kept in, and terms that cancel
    leave the rounding of each: whoever casts or adds writes that entry.

    Returns:
        float64 ``[n]``, the batch flattened.
    """
    own = rounding(tensordict.get(key)).reshape(-1)
    whole = unravel_key(key)
    said = (ROUNDING, *((whole,) if isinstance(whole, str) else whole))
    if tensordict.get(said, None) is None:
        return own
    return torch.maximum(own, read_numbers(tensordict, said, reader, like=own).to(own))


def side_by_side(
    tensordict: TensorDictBase, keys: Sequence[NestedKey], reader: str
) -> tuple[Tensor, Tensor]:
    """Scores of several rewards, which may come in several precisions.

    Args:
        tensordict: The batch.
        keys: Entry of each of K rewards.
        reader: Who reads them, for messages.

    Returns:
        The scores, float64 ``[n, K]``, and their `rounding_of` as they came, ``[n, K]``.
    """
    columns: list[Tensor] = []
    for key in keys:
        first = columns[0] if columns else None
        columns.append(read_numbers(tensordict, key, reader, like=first).double())
    return (
        torch.stack(columns, dim=1),
        torch.stack([rounding_of(tensordict, key, reader) for key in keys], dim=1),
    )


def tied(scores: Tensor, blur: Tensor | None = None) -> bool:
    """Whether all scores are equal but for rounding, as are none and one; all of them finite.

    Args:
        scores: Any shape.
        blur: What in each may be rounding; None: what their precision says.

    Example:
        >>> tied(torch.tensor([0.5, 0.5 + 1e-7])), tied(torch.tensor([0.5, 0.5001]))
        (True, False)
    """
    if not scores.numel():
        return True
    low, high = scores.double().aminmax()
    return bool(high - low <= (rounding(scores) if blur is None else blur).max())
