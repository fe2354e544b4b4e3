"""Compare two models sample by sample; the content of ``report.json``."""

from collections.abc import Sequence
from typing import Literal, TypedDict

from astrolabe_eval.scoring import TOTAL, Evaluation, Scores
from astrolabe_eval.statistics import paired_interval

LEVEL = 0.95
RESAMPLES = 10_000


class Change(TypedDict):
    """Means over the suite of one score; ``interval`` is that of ``difference``."""

    before: float
    after: float | None
    difference: float | None
    interval: list[float] | None


class Sample(TypedDict):
    """One prompt: its scores by name, and ``after - before``."""

    prompt: str
    seed: int
    before: dict[str, float]
    after: dict[str, float] | None
    difference: dict[str, float] | None


class Comparison(TypedDict):
    """The shape of ``report.json``."""

    rewards: dict[str, Change]
    judges: dict[str, Change]
    suite: str
    prompts: int
    paired: bool
    level: float
    samples: list[Sample]
    details: dict[str, str]


Verdict = Literal["rose", "fell", "no clear change"]


def compare(before: Evaluation, after: Evaluation | None = None) -> Comparison:
    """Mean scores of one model, or of two with the paired difference and its interval.

    Intervals are BCa bootstrap intervals of the mean of ``after - before`` at 95 % with a fixed
    seed, so the same scores give the same file.

    Args:
        before: The first model.
        after: The second, on the same suite, with the same scorers. None: only the first is
            described, and everything about a change is None.

    Returns:
        A dict that JSON can hold: ``{"rewards": {"total": {"before", "after", "difference",
        "interval": [low, high]}, "<name>": ...}, "judges": same shape, "suite", "prompts": n,
        "paired", "level", "samples": [...], "details": {}}``. With one prompt there is a
        difference but no interval (None).

    Raises:
        ValueError: If prompts, seeds or score names differ between the two.
    """
    if after is not None:
        _check_pairs(before, after)
    return {
        "rewards": _changes(before.rewards, after.rewards if after else None),
        "judges": _changes(before.judges, after.judges if after else None),
        "suite": before.suite.name,
        "prompts": len(before.suite),
        "paired": after is not None,
        "level": LEVEL,
        "samples": _samples(before, after),
        "details": {},
    }


def verdict(change: Change) -> Verdict:
    """What the interval says: it lies above zero, below zero, or holds it.

    >>> verdict({"before": 1.0, "after": 1.5, "difference": 0.5, "interval": [0.2, 0.8]})
    'rose'
    """
    if change["interval"] is None:
        return "no clear change"
    low, high = change["interval"]
    if low > 0:
        return "rose"
    return "fell" if high < 0 else "no clear change"


def differences(comparison: Comparison) -> list[float]:
    """``after - before`` of the combined reward for each prompt, in the order of the suite."""
    return [sample["difference"][TOTAL] for sample in comparison["samples"] if sample["difference"]]


def _check_pairs(before: Evaluation, after: Evaluation) -> None:
    first, second = before.suite, after.suite
    if (first.prompts, first.seeds) != (second.prompts, second.seeds):
        raise ValueError(
            f"before has {len(first)} samples of suite {first.name!r}, after {len(second)} of "
            f"{second.name!r}, and they are not the same prompts and seeds in the same order. "
            "Generate both with one suite."
        )
    _check_names("rewards", list(before.rewards), list(after.rewards))
    _check_names("judges", list(before.judges), list(after.judges))


def _check_names(kind: str, before: Sequence[str], after: Sequence[str]) -> None:
    if set(before) != set(after):
        raise ValueError(
            f"{kind} of before are {sorted(before)} and of after {sorted(after)}. "
            "Score both models with the same scorers."
        )


def _total_first(scores: Scores) -> Scores:
    return {name: scores[name] for name in sorted(scores, key=lambda name: name != TOTAL)}


def _changes(before: Scores, after: Scores | None) -> dict[str, Change]:
    """One entry for each score, the combined reward first."""
    changes: dict[str, Change] = {}
    for name, first in _total_first(before).items():
        change = Change(before=float(first.mean()), after=None, difference=None, interval=None)
        if after is not None:
            second = after[name]
            change["after"] = float(second.mean())
            change["difference"] = float((second - first).mean())
            if len(first) > 1:
                change["interval"] = list(
                    paired_interval(first, second, level=LEVEL, resamples=RESAMPLES)
                )
        changes[name] = change
    return changes


def _samples(before: Evaluation, after: Evaluation | None) -> list[Sample]:
    first = _total_first(before.rewards | before.judges)
    second = None if after is None else after.rewards | after.judges
    samples: list[Sample] = []
    for index, (prompt, seed) in enumerate(
        zip(before.suite.prompts, before.suite.seeds, strict=True)
    ):
        old = {name: float(row[index]) for name, row in first.items()}
        new = None if second is None else {name: float(second[name][index]) for name in first}
        change = None if new is None else {name: new[name] - old[name] for name in old}
        samples.append(
            {"prompt": prompt, "seed": seed, "before": old, "after": new, "difference": change}
        )
    return samples
