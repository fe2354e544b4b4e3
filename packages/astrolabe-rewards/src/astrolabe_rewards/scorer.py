"""A scorer as those see it who run it for others: what it is, and its scores of a request.

A scorer is a ``Reward``, or any callable that takes a TensorDict and writes ``("score", name)``.
"""

from dataclasses import dataclass, fields
from typing import Any, Self

from tensordict import TensorDict
from torch import Tensor

from astrolabe_rewards.declared import check_scores
from astrolabe_rewards.errors import UnscoredError
from astrolabe_rewards.keys import FPS, PIXELS, TEXT
from astrolabe_rewards.reward import Reward
from astrolabe_rewards.rounding import as_came, rounding_key
from astrolabe_rewards.wire import Request, WireError
from astrolabe_rewards.wiring import Scorer, written_by

__all__ = ["Description", "Scorer", "load", "scores_of"]


@dataclass(frozen=True)
class Description:
    """What a scorer is, in words that JSON can carry; see ``Reward`` for the meaning.

    Attributes:
        name: Under which it writes its score.
        unit: What the number means.
        needs_text: Whether it reads prompts.
        deterministic: Whether equal input gives equal scores.
        may_fail: Whether it may answer with NaN.
        fingerprint: Equal digests score equally; empty if the scorer does not say.
        higher_is_better: Always true.
    """

    name: str
    unit: str
    needs_text: bool
    deterministic: bool
    may_fail: bool
    fingerprint: str
    higher_is_better: bool = True

    @classmethod
    def of(cls, scorer: Scorer, name: str) -> Self:
        """Describe a scorer; of a plain callable, the name is all that is known."""
        if not isinstance(scorer, Reward):
            return cls(name, "not stated", True, True, True, "")
        return cls(
            scorer.name,
            scorer.unit,
            scorer.needs_text,
            scorer.deterministic,
            scorer.may_fail,
            scorer.fingerprint(),
        )

    @classmethod
    def read(cls, entry: Any) -> Self:  # Any: JSON from elsewhere
        """Read what another process said of a scorer.

        Raises:
            WireError: If an entry is missing or of another type.
        """
        names = [field.name for field in fields(cls)]
        kinds = [field.type for field in fields(cls)]
        if not isinstance(entry, dict) or [type(entry.get(name)) for name in names] != kinds:
            raise WireError(f"this describes no reward: {entry!r:.200}.")
        return cls(**{name: entry[name] for name in names})


def load(scorer: Scorer) -> None:
    """Read the weights of a scorer that would read them at its first score."""
    read = getattr(scorer, "load", None)
    if callable(read):
        read()


def scores_of(scorer: Scorer, name: str, request: Request) -> Tensor:
    """Score the videos of a request.

    Args:
        scorer: Reward or callable.
        name: Under which a plain callable writes.
        request: n videos.

    Returns:
        ``[n]`` on the CPU, in float32 or the 16 bits in which they came.

    Raises:
        KeyError: If the callable does not write its score.
        RewardError: If it does not write one floating number per video.
    """
    batch = TensorDict(batch_size=[len(request)])
    batch[PIXELS], batch[FPS], batch[TEXT] = request.pixels, request.fps, request.prompts
    blur = None
    if isinstance(scorer, Reward):
        batch = scorer.shown(batch)
    key = written_by(scorer, name)
    try:
        scored = scorer(batch)
        scores, blur = scored.get(key, None), scored.get(rounding_key(key), None)
    except UnscoredError as error:  # whoever asked decides what to make of NaN
        scores = error.scores
    if scores is None:
        raise KeyError(f"the scorer did not write {key}. Let it set that entry of the batch.")
    found = check_scores("the scorer", scores, len(request))
    return (found if blur is None else as_came(found, blur)).cpu().reshape(-1)
