"""One model against another: the change of every score, raw and in units of the base."""

import math
from collections.abc import Mapping
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from astrolabe_eval.grouping import per_prompt
from astrolabe_eval.scoring import TOTAL, Evaluation, Scores
from astrolabe_eval.statistics import bootstrap_interval
from astrolabe_eval.win_rate import WinRate, win_rate

LEVEL = 0.95
RESAMPLES = 10_000
#: How many of the best and of the worst prompts are named.
EXTREMES = 5


class Change(TypedDict):
    """Means over the suite of one score; ``interval`` is that of ``difference``."""

    before: float
    after: float | None
    difference: float | None
    interval: list[float] | None


class Normalised(TypedDict):
    """A change divided by ``unit``: the one given, else the base's standard deviation.

    The deviation is that of the score over the samples of the suite; None if they are all equal.
    """

    unit: float | None
    given: bool
    difference: float | None
    interval: list[float] | None


class Versus(TypedDict):
    """One model against the base.

    ``wins`` and ``normalised`` have every reward and judge; ``best`` and ``worst`` are indices of
    samples by the change of the total, the extreme one first. All four are empty if there is no
    second model.
    """

    rewards: dict[str, Change]
    judges: dict[str, Change]
    wins: dict[str, WinRate]
    normalised: dict[str, Normalised]
    best: list[int]
    worst: list[int]


def versus(base: Evaluation, other: Evaluation | None, units: Mapping[str, float]) -> Versus:
    """Compare two evaluations that pair up, or describe one.

    Args:
        base: The first.
        other: The second; None: only means of the first.
        units: Score name to unit, where the base's deviation is not to be used.

    Returns:
        Means, differences and intervals, the combined reward first.
    """
    prompts = base.suite.prompts
    rewards = _changes(base.rewards, None if other is None else other.rewards, prompts)
    judges = _changes(base.judges, None if other is None else other.judges, prompts)
    result = Versus(rewards=rewards, judges=judges, wins={}, normalised={}, best=[], worst=[])
    if other is None:
        return result
    after = other.rewards | other.judges
    for name, first in total_first(base.rewards | base.judges).items():
        result["wins"][name] = win_rate(after[name] - first, prompts, level=LEVEL)
        result["normalised"][name] = _normalise((rewards | judges)[name], first, units.get(name))
    order = np.argsort(after[TOTAL] - base.rewards[TOTAL], kind="stable")
    result["worst"] = [int(index) for index in order[:EXTREMES]]
    result["best"] = [int(index) for index in order[: -EXTREMES - 1 : -1]]
    return result


def check_units(units: Mapping[str, float], base: Evaluation) -> None:
    """Refuse units that would be ignored or make no number.

    Args:
        units: Score name to unit.
        base: Has the scores.

    Raises:
        ValueError: If a unit is not finite and above 0, or belongs to no score.
    """
    names = base.rewards.keys() | base.judges.keys()
    for name, unit in units.items():
        if name not in names:
            raise ValueError(f"units has {name!r}, but the scores are {sorted(names)}.")
        if not (math.isfinite(unit) and unit > 0):
            raise ValueError(f"The unit of {name!r} is {unit}. Give a finite number above 0.")


def total_first(scores: Scores) -> Scores:
    """The same scores with the combined reward in front."""
    return {name: scores[name] for name in sorted(scores, key=lambda name: name != TOTAL)}


def _changes(before: Scores, after: Scores | None, prompts: tuple[str, ...]) -> dict[str, Change]:
    changes: dict[str, Change] = {}
    for name, first in total_first(before).items():
        change = Change(before=float(first.mean()), after=None, difference=None, interval=None)
        if after is not None:
            second = after[name]
            change["after"] = float(second.mean())
            change["difference"] = float((second - first).mean())
            grouped = per_prompt(second - first, prompts)
            if len(grouped) > 1:
                interval = bootstrap_interval(grouped, level=LEVEL, resamples=RESAMPLES)
                change["interval"] = list(interval)
        changes[name] = change
    return changes


def _normalise(change: Change, base: NDArray[np.float64], given: float | None) -> Normalised:
    unit = given
    if unit is None and len(base) > 1 and (base != base[0]).any():
        unit = float(base.std(ddof=1))
    result = Normalised(unit=unit, given=given is not None, difference=None, interval=None)
    if unit is not None and change["difference"] is not None:
        result["difference"] = change["difference"] / unit
        if change["interval"] is not None:
            result["interval"] = [end / unit for end in change["interval"]]
    return result
