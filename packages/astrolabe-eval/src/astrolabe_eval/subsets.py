"""Intervals of a mean that hold their level for few prompts: subset means, and a skewed t.

Each of the two alone says too often that a mean of zero differs from zero, the first where samples
are skewed, the second where they are tied or heavy-tailed; their union does not. Of 3000 sets each,
with 6 to 48 prompts, at 95 %: normal 4.6 % at most, uniform in two values 2.5 %, exponential 6.0 %,
Student's t with 3 degrees of freedom 5.2 %, one in ten 0.9 %. No interval holds for every skewed
law (Bahadur and Savage 1956): for log-normal samples (sigma 1) it is 10 % at 9 and 5 % at 48.
"""

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from astrolabe_eval.rows import check_share

Floats = NDArray[np.float64]

#: How many values are held at once, so that memory does not grow with the suite.
_DRAW = 2**22
#: Spreads below this share of the values are what rounding makes of equal numbers.
_ROUNDING = 8 * np.finfo(np.float64).eps


def least_prompts(level: float = 0.95) -> int:
    """Fewest independent prompts of which a change can be told at this level.

    If nothing changed, all of ``n`` prompts move the same way with a probability of ``2^(1-n)``;
    while that exceeds ``1 - level``, no outcome is rare enough.

    >>> least_prompts(0.95), least_prompts(0.99)
    (6, 8)
    """
    check_share("level", level)
    return math.ceil(1 - math.log2(1 - level) - 1e-9)


def equal(values: Floats) -> bool:
    """Whether all values are the same number but for rounding."""
    return bool(np.ptp(values) <= _ROUNDING * np.abs(values).max())


def subset_interval(
    means: Floats, counts: Floats, *, level: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Interval of the mean over prompts, each weighted by its number of samples.

    The union of two: that of the means of random subsets of the prompts, whose quantiles are exact
    for symmetric differences of any spread and weight (Hartigan, "Using subsample values as typical
    values", 1969), and Student's t corrected for skewness by a monotone transformation (Hall, "On
    the removal of skewness by transformation", 1992), with the variance of the jackknife.

    Args:
        means: ``[K]``, the mean of each prompt's samples.
        counts: ``[K]``, how many samples it has.
        level: Share of intervals that should contain the true mean, in (0, 1).
        resamples: Subsets to draw; all of them are taken if they are fewer.
        seed: Of the draws.

    Returns:
        Low and high end; minus and plus infinity where nothing can be said: no two prompts differ,
        or they are worth fewer than :func:`least_prompts` (Kish's effective number, rounded).
    """
    worth = float(counts.sum() ** 2 / (counts**2).sum())  # Kish's effective number
    if worth + 0.5 < least_prompts(level) or equal(means):
        return -math.inf, math.inf
    centre = float(counts @ means / counts.sum())
    offsets = means - centre
    parts = (
        _typical_values(offsets, counts, level, resamples, np.random.default_rng(seed)),
        # One degree of freedom goes to the mean, one to the skewness.
        _skewed_t(offsets, counts / counts.sum(), worth - 2, level),
    )
    return centre + min(part[0] for part in parts), centre + max(part[1] for part in parts)


def _typical_values(
    offsets: Floats, counts: Floats, level: float, resamples: int, generator: np.random.Generator
) -> tuple[float, float]:
    """Between two neighbours among the sorted means of all subsets the centre is equally likely."""
    number = len(offsets)
    sums = np.stack([counts, counts * offsets], axis=1)
    if number < 40 and 2**number <= resamples:
        masks = (np.arange(1, 2**number)[:, None] >> np.arange(number)) & 1
        found = [masks @ sums]
    else:
        rows = max(1, _DRAW // number)
        found = []
        for start in range(0, resamples, rows):
            size = (min(rows, resamples - start), number)
            found.append(generator.integers(0, 2, size=size, dtype=np.int8) @ sums)
    weights, totals = np.concatenate(found).T
    means = np.sort(totals[weights > 0] / weights[weights > 0])
    left_out = math.floor((1 - level) / 2 * (len(means) + 1) + 1e-9)
    if not left_out:
        return -math.inf, math.inf
    return float(means[left_out - 1]), float(means[-left_out])


def _skewed_t(offsets: Floats, shares: Floats, freedom: float, level: float) -> tuple[float, float]:
    number = len(offsets)
    # The jackknife's pseudo-values: leaving out prompt i moves the mean by -w_i d_i / (1 - w_i).
    pseudo = (number - 1) * shares / (1 - shares) * offsets
    spread = math.sqrt(float((pseudo**2).mean()))
    skew = float((((pseudo - pseudo.mean()) / spread) ** 3).mean())
    reach = student_quantile((1 + level) / 2, freedom) / math.sqrt(number - 1)

    def undone(value: float) -> float:
        # Inverse of W + s W²/3 + s² W³/27 + s/(6n), which is monotone in W.
        if abs(skew) < 1e-6:
            return value
        return 3 / skew * (math.cbrt(1 + skew * (value - skew / (6 * number))) - 1)

    return -spread * undone(reach), -spread * undone(-reach)


def student_quantile(probability: float, freedom: float) -> float:
    """Quantile of Student's t (Abramowitz and Stegun, 1964, 26.7.5).

    Args:
        probability: In (0, 1).
        freedom: Degrees of freedom, 4 or more; need not be whole.

    Returns:
        The quantile, within 0.1 % between 0.5 and 99.5 %.

    Example:
        >>> f"{student_quantile(0.975, 5):.3f} {student_quantile(0.975, 63):.3f}"
        '2.570 1.998'
    """
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))
