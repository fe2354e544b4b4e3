"""How often one model beats another, with an interval."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike

from astrolabe_eval.grouping import effective_count, independent
from astrolabe_eval.rows import as_row, check_share


class WinRate(TypedDict):
    """Samples won, tied and lost; in ``rate``, 0 to 1, ties count half.

    ``prompts`` is how many independent prompts the samples are worth, rounded. With none
    ``rate`` is None.
    """

    wins: int
    ties: int
    losses: int
    rate: float | None
    interval: list[float]
    prompts: int


def win_rate(outcomes: ArrayLike, prompts: Sequence[str], *, level: float = 0.95) -> WinRate:
    """Count wins, and say how sure their share is.

    The interval is Wilson's with its continuity correction and as many trials as the samples are
    worth prompts (:func:`grouping.effective_count`): several seeds or several raters of one prompt
    are not independent. An outcome between 0 and 1 varies less than a coin of the same mean, so
    with ties the interval is rather too wide than too narrow.

    Args:
        outcomes: ``[n]``, positive for a win, 0 for a tie, negative for a loss; such as
            differences of scores. NaN where there is none, which counts for nothing.
        prompts: The prompt of each.
        level: Share of intervals that contain the true rate, in (0, 1).

    Returns:
        Counts, rate and interval.

    Raises:
        ValueError: If there are no outcomes, or not one prompt for each.

    Example:
        >>> win_rate([0.5, 0.25, 0.0, -1.0], ["a", "b", "c", "d"])["rate"]
        0.625
    """
    signs = np.sign(as_row("outcomes", outcomes))
    if not len(signs) or len(signs) != len(prompts):
        raise ValueError(
            f"There are {len(signs)} outcomes for {len(prompts)} prompts. "
            "Give one for each, and at least one."
        )
    wins, ties, losses = (int((signs == sign).sum()) for sign in (1, 0, -1))
    known = [prompt for prompt, sign in zip(prompts, signs, strict=True) if not math.isnan(sign)]
    worth = effective_count(known) if known else 0.0
    rate = (wins + ties / 2) / len(known) if known else None
    interval = (0.0, 1.0) if rate is None else wilson_interval(rate, worth, level=level)
    return {
        "wins": wins,
        "ties": ties,
        "losses": losses,
        "rate": rate,
        "interval": list(interval),
        "prompts": independent(known),
    }


def wilson_interval(
    rate: float, count: float, *, level: float = 0.95, continuity: bool = True
) -> tuple[float, float]:
    """Score interval of a share (Wilson, "Probable inference", 1927).

    It stays inside 0 to 1 and has a width even if all trials agree. With few trials the plain one
    leaves out the truth too often (one half in 12 % of cases at 4 trials); the continuity
    correction mends that (Newcombe, "Two-sided confidence intervals for the single proportion",
    1998, method 4).

    Args:
        rate: Observed share, 0 to 1.
        count: Number of trials, above 0; need not be whole.
        level: Share of intervals that contain the true share, in (0, 1).
        continuity: Whether to correct.

    Returns:
        Low and high end.

    Raises:
        ValueError: If a share is none, or there are no trials.

    Example:
        >>> low, high = wilson_interval(0.5, 100)
        >>> f"{low:.3f} {high:.3f}"
        '0.399 0.601'
        >>> low, high = wilson_interval(0.5, 100, continuity=False)
        >>> f"{low:.3f} {high:.3f}"
        '0.404 0.596'
    """
    check_share("level", level)
    check_share("rate", rate, ends=True)
    if not count > 0:
        raise ValueError(f"count is {count}. An interval needs more than 0 trials.")
    z = NormalDist().inv_cdf((1 + level) / 2)
    if continuity:
        # The upper end is the lower one of the share of losses.
        high = 1 - _corrected_low(1 - rate, count, z)
        return _corrected_low(rate, count, z), high
    shrink = 1 + z**2 / count
    centre = (rate + z**2 / (2 * count)) / shrink
    reach = z / shrink * math.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def _corrected_low(rate: float, count: float, z: float) -> float:
    if rate <= 0:
        return 0.0
    inside = z**2 - 2 - 1 / count + 4 * rate * (count * (1 - rate) + 1)
    low = (2 * count * rate + z**2 - 1 - z * math.sqrt(max(inside, 0.0))) / (2 * (count + z**2))
    return min(max(low, 0.0), rate)
