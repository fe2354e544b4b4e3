"""Which videos a report shows, chosen so that it does not flatter."""

from dataclasses import dataclass

import numpy as np

from astrolabe_eval.comparison import Comparison, differences

#: Seed of the random sample. One constant for all reports: nobody can draw until it looks good.
SAMPLE_SEED = 0


@dataclass(frozen=True)
class Choice:
    """Some prompts and how they came to be shown."""

    title: str
    reason: str
    indices: tuple[int, ...]


def choose(comparison: Comparison, extremes: int, random: int) -> list[Choice]:
    """Pick the prompts to show.

    The random sample is drawn from all prompts by a fixed seed, before any score is looked at, so a
    prompt may be in it and among the extremes too. A suite no larger than what would be shown is
    shown whole.

    Args:
        comparison: Of two models, or the description of one.
        extremes: How many most improved prompts, and how many least improved ones.
        random: How many drawn at random.

    Returns:
        The random sample first, then, for two models, the extremes by the change of the combined
        reward.
    """
    count = comparison["prompts"]
    changes = differences(comparison)
    if count <= random + (2 * extremes if changes else 0):
        return [Choice("All prompts", "Every prompt of the suite, in order.", tuple(range(count)))]
    # The front of one fixed order: a smaller sample is part of a larger one.
    drawn = np.random.default_rng(SAMPLE_SEED).permutation(count)[:random]
    choices = [
        Choice(
            "A random sample",
            f"{random} of {count} prompts, drawn by a fixed seed before any score was known. "
            "Judge the model by these.",
            tuple(sorted(int(index) for index in drawn)),
        )
    ]
    if changes and extremes:
        # NaN comes last: what has no score is neither best nor worst.
        known = int(np.isfinite(changes).sum())
        order = [int(index) for index in np.argsort(changes, kind="stable")[:known]]
        extremes = min(extremes, known // 2)
    if changes and extremes:
        choices += [
            Choice(
                "Most improved",
                f"The {extremes} prompts whose total reward rose most: the best cases, "
                "not typical ones.",
                tuple(order[: -extremes - 1 : -1]),
            ),
            Choice(
                "Least improved",
                f"The {extremes} prompts whose total reward rose least or fell: where to look "
                "for what training broke.",
                tuple(order[:extremes]),
            ),
        ]
    return choices
