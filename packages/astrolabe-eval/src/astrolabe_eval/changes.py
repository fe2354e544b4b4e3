"""One model against another: the change of every score, raw and in units of the base."""

import math
from collections.abc import Mapping
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from astrolabe_eval.grouping import independent
from astrolabe_eval.scoring import TOTAL, Evaluation, Scores
from astrolabe_eval.statistics import bootstrap_interval
from astrolabe_eval.win_rates import WinRate, win_rate

LEVEL = 0.95
RESAMPLES = 10_000
#: How many of the best and of the worst prompts are named.
EXTREMES = 5
#: Scores come in float32: differences below this share of them are rounding.
ROUNDING = 4 * 2.0**-23


class Change(TypedDict):
    """Means over the suite of one score; ``interval`` is that of ``difference``.

    A sample that either model has no score for is left out of all of it and counted in
    ``unscored``; None: nothing is left. ``prompts`` is how many independent prompts the rest is
    worth (Kish's effective number, rounded). ``interval`` is None where nothing can be said of
    other prompts: below :func:`subsets.least_prompts`, or if all changed by the same amount.
    """

    before: float | None
    after: float | None
    difference: float | None
    interval: list[float] | None
    prompts: int
    unscored: int


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
        result["wins"][name] = win_rate(_differences(first, after[name]), prompts, level=LEVEL)
        result["normalised"][name] = _normalise((rewards | judges)[name], first, units.get(name))
    moved = after[TOTAL] - base.rewards[TOTAL]
    order = np.argsort(moved, kind="stable")[: int(np.isfinite(moved).sum())]  # NaN comes last
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
    return {
        name: _change(first, None if after is None else after[name], prompts)
        for name, first in total_first(before).items()
    }


def _change(
    first: NDArray[np.float64], second: NDArray[np.float64] | None, prompts: tuple[str, ...]
) -> Change:
    known = np.isfinite(first) if second is None else np.isfinite(first) & np.isfinite(second)
    kept = [prompt for prompt, there in zip(prompts, known, strict=True) if there]
    change = Change(
        before=float(first[known].mean()) if kept else None,
        after=None,
        difference=None,
        interval=None,
        prompts=independent(kept),
        unscored=len(prompts) - len(kept),
    )
    if second is None or not kept:
        return change
    moved = _differences(first, second)[known]
    change["after"] = float(second[known].mean())
    change["difference"] = float(moved.mean())
    if len(kept) > 1:
        ends = bootstrap_interval(moved, prompts=kept, level=LEVEL, resamples=RESAMPLES)
        change["interval"] = list(ends) if np.isfinite(ends).all() else None
    return change


def _differences(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """``second - first``; what rounding alone makes of no change, or of one for all, is that."""
    known = np.isfinite(first) & np.isfinite(second)
    moved: NDArray[np.float64] = np.full(len(first), np.nan)
    np.subtract(second, first, out=moved, where=known)
    if not known.any():
        return moved
    sizes = np.maximum(np.abs(first), np.abs(second))
    moved = np.where(np.abs(moved) <= ROUNDING * sizes, 0.0, moved)
    if np.ptp(moved[known]) <= ROUNDING * sizes[known].max():
        moved = np.where(known, moved[known].mean(), np.nan)
    return moved


def _normalise(change: Change, base: NDArray[np.float64], given: float | None) -> Normalised:
    unit = given
    known = base[np.isfinite(base)]
    if unit is None and len(known) > 1 and np.ptp(known) > ROUNDING * np.abs(known).max():
        unit = float(known.std(ddof=1))
    result = Normalised(unit=unit, given=given is not None, difference=None, interval=None)
    if unit is not None and change["difference"] is not None:
        result["difference"] = change["difference"] / unit
        if change["interval"] is not None:
            result["interval"] = [end / unit for end in change["interval"]]
    return result
