"""Do several rewards order videos alike? Rank correlations, and the videos they dispute.

Ranks alone count: rewards have different units, and training compares videos, not units. All of it
is numpy; each statistic is computed for many weightings of the videos at once, of which the plain
one gives the value and the bootstrap's give its interval.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import NormalDist
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from astrolabe_eval.changes import LEVEL
from astrolabe_eval.grouping import independent, members_of
from astrolabe_eval.rows import as_row, check_mapping, check_share, precision
from astrolabe_eval.subsets import least_prompts

Floats = NDArray[np.float64]

RESAMPLES = 2_000
#: Fewest videos of which an order can be spoken of.
LEAST = 3
#: How many values are held at once, so that memory does not grow with the square of the videos.
_DRAW = 2**22


class Pair(TypedDict):
    """How two rewards agree: None where one of them does not vary.

    ``prompts`` is how many independent prompts the videos are worth; there is no interval with
    fewer than :func:`subsets.least_prompts`.
    """

    first: str
    second: str
    videos: int
    prompts: int
    spearman: float | None
    spearman_interval: list[float] | None
    kendall: float | None
    kendall_interval: list[float] | None


class Disputed(TypedDict):
    """A video and its place among the others for each reward, 0 (worst) to 1 (best)."""

    video: int
    gap: float
    highest: str
    lowest: str
    places: dict[str, float]


class Agreement(TypedDict):
    """The pairs from most to least agreeing, the videos from most to least disputed."""

    rewards: list[str]
    videos: int
    level: float
    pairs: list[Pair]
    disputed: list[Disputed]


def agree(
    scores: Mapping[str, ArrayLike],
    *,
    prompts: Sequence[str] | None = None,
    disputed: int = 8,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Agreement:
    """Compare how rewards order the same videos.

    Spearman's ρ is the correlation of ranks, ties sharing their mean rank; Kendall's τ_b is the
    share of pairs of videos in the same order minus the share in opposite order, corrected for ties
    (Kendall, "The treatment of ties in ranking problems", 1945). Intervals are the union of two:
    the quantiles of resampled prompts (percentile bootstrap), too narrow for few of them, and
    Fisher's z with the standard errors of Bonett and Wright ("Sample size requirements for
    estimating Pearson, Kendall and Spearman correlations", 2000), too narrow for rewards whose
    spreads depend on one another.

    Args:
        scores: Name to ``[n]``, larger is better; NaN where a reward has no score. At least two
            rewards, and `LEAST` videos.
        prompts: The prompt of each video; videos of one prompt count together. None: all differ.
        disputed: How many videos to name.
        level: Of the intervals, in (0, 1).
        resamples: How often videos are drawn.
        seed: Of the draws; the same seed gives the same intervals.

    Returns:
        A dict that JSON can hold. A pair is about the videos that both rewards scored; a disputed
        video has all scores, and its gap is its best place minus its worst.

    Raises:
        ValueError: If there are too few rewards or videos, or numbers of scores differ.

    Example:
        >>> result = agree({"a": [1, 2, 3, 4], "b": [10, 20, 30, 40], "c": [4, 2, 3, 1]})
        >>> [(pair["first"], pair["second"], pair["spearman"]) for pair in result["pairs"]]
        [('a', 'b', 1.0), ('a', 'c', -0.8), ('b', 'c', -0.8)]
        >>> result["disputed"][0]["video"], result["disputed"][0]["gap"]
        (0, 1.0)
    """
    check_share("level", level)
    check_mapping("scores", scores, "names of rewards with one score for each video")
    table = {
        name: _levels(as_row(f"scores[{name!r}]", row), precision(row))
        for name, row in scores.items()
    }
    lengths = {len(row) for row in table.values()}
    if len(table) < 2 or len(lengths) != 1:
        raise ValueError(
            f"Agreement needs two rewards or more with one score for each video, not "
            f"{ {name: len(row) for name, row in table.items()} }. Score all videos with all of "
            "them; NaN stands for a score that could not be had."
        )
    (count,) = lengths
    if count < LEAST:
        raise ValueError(f"Agreement over {count} videos means nothing. Give {LEAST} or more.")
    if prompts is not None and len(prompts) != count:
        raise ValueError(f"{count} videos have {len(prompts)} prompts. Give one for each video.")
    pairs = [
        _pair(first, second, table, prompts or list(map(str, range(count))), level, resamples, seed)
        for first, second in combinations(table, 2)
    ]
    return {
        "rewards": list(table),
        "videos": count,
        "level": level,
        "pairs": sorted(pairs, key=lambda pair: -_known(pair["spearman"])),
        "disputed": _disputed(table, disputed),
    }


def _levels(row: Floats, epsilon: float) -> Floats:
    """The scores, float64 ``[n]``; those that follow one another by rounding alone are made equal.

    Scores come from networks, in float32 at best, even where they are kept in float64.
    """
    values = row.copy()
    single = np.finfo(np.float32).eps
    blur = 2 * epsilon if epsilon > single else 8 * single
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(values[known], kind="stable")]
    ascending = values[order]
    steps = np.diff(ascending) > blur * np.maximum(np.abs(ascending[1:]), np.abs(ascending[:-1]))
    starts = np.concatenate([[0], np.flatnonzero(steps) + 1]) if len(order) else np.arange(0)
    level = np.zeros(len(order), dtype=np.int64)
    level[starts[1:]] = 1
    values[order] = ascending[starts][np.cumsum(level)] if len(order) else ascending
    return values


def places(values: Floats) -> Floats:
    """Place of each value among the others, 0 for the least to 1 for the greatest.

    >>> places(np.array([30.0, 10.0, 20.0, 20.0]))
    array([1. , 0. , 0.5, 0.5])
    """
    _, level, counts = np.unique(values, return_inverse=True, return_counts=True)
    last: Floats = (np.cumsum(counts) - (counts + 1) / 2)[level] / max(len(values) - 1, 1)
    return last


def correlations(first: Floats, second: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Spearman's ρ and Kendall's τ_b for several weightings of the same videos.

    A weight is how often a video is there. With ``w`` the weights, ``s_ij`` the sign of
    ``(x_i - x_j) (y_i - y_j)``, ``c`` the weight of each set of ties and ``N = Σ w``,

        ``τ_b = Σ_ij w_i w_j s_ij / √((N² - Σ c_x²) (N² - Σ c_y²))``

    Args:
        first: ``[n]``, finite.
        second: ``[n]``, finite.
        weights: ``[r, n]``, whole and at least 0.

    Returns:
        ρ and τ_b, ``[r]`` each; NaN where a reward does not vary.
    """
    total = weights.sum(axis=1)
    first_ranks, first_pairs = _weighted_ranks(first, weights)
    second_ranks, second_pairs = _weighted_ranks(second, weights)
    centre = (total[:, None] + 1) / 2
    first_ranks, second_ranks = first_ranks - centre, second_ranks - centre
    shared = (weights * first_ranks * second_ranks).sum(axis=1)
    sizes = [(weights * ranks**2).sum(axis=1) for ranks in (first_ranks, second_ranks)]
    concordant = np.zeros(len(weights))
    rows = max(1, _DRAW // len(first))
    for start in range(0, len(first), rows):
        part = slice(start, start + rows)
        signs = np.sign(first[part, None] - first) * np.sign(second[part, None] - second)
        concordant += ((weights[:, part] @ signs) * weights).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        spearman: Floats = shared / np.sqrt(sizes[0] * sizes[1])
        kendall: Floats = concordant / np.sqrt(first_pairs * second_pairs)
    varies = (first_pairs > 0) & (second_pairs > 0)
    return np.where(varies, spearman, np.nan), np.where(varies, kendall, np.nan)


def _weighted_ranks(values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Mean ranks ``[r, n]`` from 1, and ``N² - Σ c²`` ``[r]``: twice the pairs that are no ties."""
    _, level = np.unique(values, return_inverse=True)
    order = np.argsort(level, kind="stable")
    starts = np.flatnonzero(np.diff(level[order], prepend=-1))
    ties = np.add.reduceat(weights[:, order], starts, axis=1)  # [r, levels]
    last = np.cumsum(ties, axis=1)
    return (last - (ties - 1) / 2)[:, level], last[:, -1] ** 2 - (ties**2).sum(axis=1)


def _pair(
    first: str,
    second: str,
    table: dict[str, Floats],
    prompts: Sequence[str],
    level: float,
    resamples: int,
    seed: int,
) -> Pair:
    both = np.isfinite(table[first]) & np.isfinite(table[second])
    count = int(both.sum())
    kept = [prompt for prompt, there in zip(prompts, both, strict=True) if there]
    pair: Pair = {
        "first": first,
        "second": second,
        "videos": count,
        "prompts": independent(kept),
        "spearman": None,
        "spearman_interval": None,
        "kendall": None,
        "kendall_interval": None,
    }
    if count < LEAST:
        return pair
    x, y = table[first][both], table[second][both]
    rho, tau = (float(found[0]) for found in correlations(x, y, np.ones((1, count))))
    if not math.isfinite(rho + tau):
        return pair
    pair["spearman"], pair["kendall"] = rho, tau
    worth = pair["prompts"]
    if worth < least_prompts(level):
        return pair
    drawn = _resampled(x, y, members_of(kept), resamples, np.random.default_rng(seed))
    error = math.sqrt((1 + rho**2 / 2) / (worth - 3))
    pair["spearman_interval"] = _ends(rho, drawn[0], error, 6 / (worth**3 - worth), level)
    # Ties say nothing of the order.
    error = math.sqrt(0.437 / (worth - 4) / math.sqrt(_untied(x) * _untied(y)))
    pair["kendall_interval"] = _ends(tau, drawn[1], error, 2 / (worth**2 - worth), level)
    return pair


def _untied(values: Floats) -> float:
    """Share of pairs of videos whose scores differ."""
    _, counts = np.unique(values, return_counts=True)
    return 1 - float((counts**2 - counts).sum()) / (len(values) ** 2 - len(values))


def _ends(value: float, drawn: Floats, error: float, step: float, level: float) -> list[float]:
    """The union of the quantiles of what was drawn and Fisher's interval.

    Args:
        value: The correlation.
        drawn: That of resamples, NaN where one does not vary.
        error: Standard error of ``atanh(value)``.
        step: Half of what the exchange of two neighbours changes; a perfect order counts as nearly
            perfect.
        level: Of the interval.
    """
    centre = math.atanh(min(max(value, step - 1), 1 - step))
    reach = NormalDist().inv_cdf((1 + level) / 2) * error
    ends = np.array([math.tanh(centre - reach), math.tanh(centre + reach)])
    known = drawn[np.isfinite(drawn)]
    if len(known):
        low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
        ends = np.array([min(ends[0], low), max(ends[1], high)])
    return [float(end) for end in ends]


def _resampled(
    first: Floats,
    second: Floats,
    members: NDArray[np.int64],
    resamples: int,
    generator: np.random.Generator,
) -> tuple[Floats, Floats]:
    """Both correlations of ``resamples`` draws of whole prompts with replacement."""
    count = int(members.max()) + 1
    rows = max(1, _DRAW // len(first))
    found = []
    for start in range(0, resamples, rows):
        draws = min(rows, resamples - start)
        weights = generator.multinomial(count, np.full(count, 1 / count), size=draws)
        found.append(correlations(first, second, weights[:, members].astype(np.float64)))
    return np.concatenate([part[0] for part in found]), np.concatenate([part[1] for part in found])


def _disputed(table: dict[str, Floats], count: int) -> list[Disputed]:
    """The videos with the widest gap between two places; a reward that never varies has none."""
    known = np.isfinite(np.stack(list(table.values()))).all(axis=0)
    videos = np.flatnonzero(known)
    voices = {name: row[known] for name, row in table.items() if len(set(row[known])) > 1}
    if len(voices) < 2:
        return []
    names = list(voices)
    ranks = np.stack([places(row) for row in voices.values()])  # [K, n]
    gaps = ranks.max(axis=0) - ranks.min(axis=0)
    return [
        {
            "video": int(videos[index]),
            "gap": float(gaps[index]),
            "highest": names[int(ranks[:, index].argmax())],
            "lowest": names[int(ranks[:, index].argmin())],
            "places": {
                name: float(place) for name, place in zip(names, ranks[:, index], strict=True)
            },
        }
        for index in np.argsort(-gaps, kind="stable")[:count]
    ]


def _known(value: float | None) -> float:
    """A correlation to sort by; one that is not known comes last."""
    return -2.0 if value is None else value
