"""What a reward declares of itself, and its answers, held against what is read of them.

A declaration that nobody reads, such as ``need_text = True``, would be silently without effect, so
each is checked when the reward is made.
"""

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Final

import torch
from torch import Tensor, nn

from astrolabe_rewards.errors import RewardError

#: What a reward may declare, and of what type it is; see `Reward` for the meaning.
DECLARED: Final[Mapping[str, type]] = {
    "name": str,
    "unit": str,
    "measures": str,
    "licence": str,
    "weights_from": str,
    "memory": str,
    "needs_text": bool,
    "deterministic": bool,
    "may_fail": bool,
}
#: What one might expect to be read of a reward, and what to do instead.
ELSEWHERE: Final[Mapping[str, str]] = {
    "scope": "It is for whoever uses the reward: WholeVideo(reward, name) shows it the whole video",
    "weight": "It is for whoever uses the reward: CompositeReward({name: (reward, 0.5)})",
    "higher_is_better": "Larger is always better: return the negative where it is not",
}
#: How alike two names are, 0 to 1, of which one is taken for the other misspelt.
_ALIKE: Final = 0.8


def check_declared(reward: Any, base: type) -> None:  # Any: a reward that is not whole yet
    """Refuse a reward that declares something wrong, or something that nobody reads.

    Args:
        reward: Of a subclass of ``base``.
        base: `Reward`.

    Raises:
        RewardError: Says what, and the way out.
    """
    kind = type(reward)
    for name, wanted in DECLARED.items():
        value = getattr(reward, name, None)
        if value is None and name in ("name", "unit"):
            raise RewardError(
                f"{kind.__name__} declares no {name}. Write {name} = '...' into the class: a "
                f"reward declares {', '.join(DECLARED)}."
            )
        if not isinstance(value, wanted):
            raise RewardError(
                f"{kind.__name__}.{name} is {value!r}, a {type(value).__name__}. "
                f"Give a {wanted.__name__}."
            )
    if not reward.name:
        raise RewardError(f"{kind.__name__}.name is empty. Name the score that it writes.")
    own = {name: value for each in _own_classes(kind, base) for name, value in vars(each).items()}
    for name, value in own.items():
        _check_spelling(kind.__name__, name, value)
    _check_method(kind, base)


def check_made(reward: object) -> None:
    """Refuse a module whose constructor left out that of its base, as it fails when it is called.

    Raises:
        RewardError: If it is one.
    """
    if isinstance(reward, nn.Module) and "_modules" not in vars(reward):
        raise RewardError(
            f"The constructor of {type(reward).__name__} does not call super().__init__(). "
            "Call it first."
        )


def check_scores(who: str, scores: object, count: int, *, flat: bool = False) -> Tensor:
    """Return scores in float32 or the 16 bits they have, if they are one number for each video.

    Args:
        who: Gave them, for the message.
        scores: What was given.
        count: Videos.
        flat: Whether they must have the shape ``[count]``, or any of as many numbers.

    Raises:
        RewardError: If it is no tensor, of another dtype or of another shape.
    """
    if not isinstance(scores, Tensor):
        raise RewardError(
            f"{who} returned a {type(scores).__name__} for {count} videos. Return a tensor with "
            "one floating number per video."
        )
    if not scores.is_floating_point():
        raise RewardError(
            f"{who} returned {scores.dtype}. Return floating numbers, such as scores.float()."
        )
    if (tuple(scores.shape) != (count,)) if flat else (scores.numel() != count):
        raise RewardError(
            f"{who} returned shape {tuple(scores.shape)} for {count} videos. "
            f"Return one number per video: shape ({count},)."
        )
    scores = scores.detach()
    # What 16 bits round away is no signal: whoever casts says how much it is (`rounding`).
    return scores if scores.dtype.itemsize == 2 else scores.to(torch.float32)


def _own_classes(kind: type, base: type) -> list[type]:
    """The classes of a reward that are somebody's own, the nearest last."""
    return [each for each in reversed(kind.__mro__) if issubclass(each, base) and each is not base]


def _check_spelling(kind: str, name: str, value: object) -> None:
    """Refuse an attribute of a class that looks like a declaration and is none."""
    if name.startswith("_") or name in DECLARED:
        return
    if name in ELSEWHERE and isinstance(value, (str, bool, int, float)):
        raise RewardError(
            f"{kind}.{name} = {value!r} would have no effect. {ELSEWHERE[name]}, and remove it."
        )
    close = get_close_matches(name, DECLARED, n=1, cutoff=_ALIKE)
    if close and isinstance(value, DECLARED[close[0]]):
        raise RewardError(
            f"{kind}.{name} = {value!r} would have no effect. Did you mean {close[0]!r}? A reward "
            f"declares {', '.join(DECLARED)}; give what is your own another name."
        )


def _check_method(kind: Any, base: Any) -> None:  # Any: classes with methods of their own
    """Refuse a class without a ``score`` that can be called as it will be."""
    if kind.forward is not base.forward:
        return
    if kind.score is base.score:
        raise RewardError(
            f"{kind.__name__} is a Reward without a score method. "
            "Write def score(self, pixels, prompts, fps)."
        )
    parameters = inspect.signature(kind.score)
    try:
        parameters.bind(*["self", "pixels", "prompts", "fps"][inspect.ismethod(kind.score) :])
    except TypeError as error:
        raise RewardError(
            f"{kind.__name__}.score{parameters} cannot be called with pixels, prompts and fps "
            f"({error}). Write def score(self, pixels, prompts, fps)."
        ) from error
