"""Scores of different units on one scale, so that a sum of them is not ruled by one unit."""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from astrolabe_rewards.rounding import rounding

Normalise = Literal["none", "fixed", "running", "group"]
#: Mean and standard deviation of a term.
Statistics = Mapping[str, tuple[float, float]]

_STD_FLOOR = 1e-4  # a term that does not vary must not be blown up


def by_moments(scores: Tensor, moments: Tensor, blur: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(scores - mean) / std`` of everything seen so far, and the rounding of it.

    Args:
        scores: float32 ``[*B, 1]``.
        moments: float64 ``[3]``: count, mean and sum of squared deviations.
        blur: `rounding` of the scores, float64 ``[*B, 1]``.
    """
    count, mean, squares = map(float, moments)
    std = math.sqrt(squares / count) if count else 1.0
    return standardised(scores, mean, max(std, _STD_FLOOR), blur)


def standardised(scores: Tensor, mean: float, std: float, blur: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(scores - mean) / std``, 0 where the gap is rounding alone, and the rounding of it.

    Args:
        scores: float32 ``[*B, 1]``.
        mean: What is taken off.
        std: What is divided by.
        blur: `rounding` of the scores, float64 ``[*B, 1]``.
    """
    gaps = scores.double() - mean  # in float32 the mean itself would be rounded
    least = rounding(torch.tensor(mean, dtype=torch.float64), scores.dtype).to(blur)
    blur = torch.maximum(blur, least)
    unit = blur.clamp(min=std)
    normal = torch.where(gaps.abs() <= blur, 0.0, gaps) / unit
    return normal.to(scores.dtype), blur / unit


def merged(moments: Tensor, values: Tensor) -> Tensor:
    """Join count, mean and squared deviations with new values (Chan et al. 1983, eq. 2.1)."""
    if values.numel() == 0:
        return moments
    values = values.double().to(moments.device)
    count, mean, squares = moments
    total = count + values.numel()
    gap = values.mean() - mean
    return torch.stack(
        [
            total,
            mean + gap * values.numel() / total,
            squares
            + (values - values.mean()).square().sum()
            + gap**2 * count * values.numel() / total,
        ]
    )


def by_group(scores: Tensor, groups: Tensor, valid: Tensor, blur: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(scores - mean) / std`` of the valid videos of each group, and the rounding of it.

    The standard deviation is that of the population.

    Args:
        scores: float32 ``[*B, 1]``.
        groups: int64 ``[n]`` from `groups_of`.
        valid: bool ``[*B, 1]``; the others are left out and get 0.
        blur: `rounding` of the scores, float64 ``[*B, 1]``.

    Returns:
        float32 ``[*B, 1]``, 0 in a group whose scores are all equal but for rounding; and by how
        much equal ones of these may differ, float64 ``[*B, 1]``.
    """
    # On the CPU: the order of a sum on a GPU is not fixed, and a resumed run must repeat it.
    counted = valid.reshape(-1).cpu()
    values = torch.where(counted, scores.reshape(-1).cpu().double(), 0.0)  # [n]
    zeros = torch.zeros(len(values), dtype=torch.float64)  # no more groups than videos
    sizes = zeros.index_add(0, groups, counted.double()).clamp(min=1)
    means = zeros.index_add(0, groups, values) / sizes
    own = torch.where(counted, blur.reshape(-1).cpu(), 0.0)
    tied = _range(values[counted], groups[counted], zeros) <= zeros.scatter_reduce(
        0, groups, own, "amax"
    )
    gaps = torch.where(counted & ~tied[groups], values - means[groups], 0.0)
    stds = (zeros.index_add(0, groups, gaps.square()) / sizes).sqrt()
    unit = stds[groups].clamp(min=_STD_FLOOR)
    normal = (gaps / unit).float().reshape(scores.shape).to(scores.device)
    left = torch.where(tied[groups], 0.0, own / unit)  # ties are 0 exactly
    return normal, left.reshape(blur.shape).to(blur.device)


def _range(values: Tensor, groups: Tensor, zeros: Tensor) -> Tensor:
    """Largest minus smallest value of each group, 0 for an empty one, like ``zeros``."""
    highest = zeros.scatter_reduce(0, groups, values, "amax", include_self=False)
    return highest - zeros.scatter_reduce(0, groups, values, "amin", include_self=False)


def groups_of(batch: TensorDictBase, group_key: NestedKey, index_key: NestedKey) -> Tensor:
    """Return the number of the group of each video, int64 ``[n]`` from 0, the batch flattened.

    Videos are of one group if their prompt group and their window agree: a later window has another
    past, so it does not compete with an earlier one. A batch without ``index_key`` is all one
    window.

    Raises:
        KeyError: If the batch lacks ``group_key``.
        ValueError: If it does not hold one number for each video.
    """
    group = batch.get(group_key, None)
    if group is None:
        raise KeyError(
            f"CompositeReward: normalise='group' reads {group_key!r}, which this batch lacks. "
            "Let it say which videos compete (equal numbers for those of one prompt), name "
            "another entry with group_key, or choose normalise='fixed'."
        )
    index = batch.get(index_key, None)
    group = group.reshape(-1).cpu()
    window = torch.zeros_like(group) if index is None else index.reshape(-1).cpu()
    count = batch.batch_size.numel()
    if len(group) != count or len(window) != count:
        raise ValueError(
            f"CompositeReward: {len(group)} groups and {len(window)} windows for {count} videos. "
            f"Give one number of {group_key!r} and {index_key!r} for each video."
        )
    numbers: Tensor = torch.unique(torch.stack([group, window]), dim=1, return_inverse=True)[1]
    return numbers


def checked_statistics(
    normalise: str, statistics: Statistics | None, names: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Return statistics that fit the terms one to one, or none where none are used.

    Raises:
        ValueError: If they do not fit.
    """
    if normalise != "fixed":
        if statistics is not None:
            raise ValueError(
                f"statistics are given but normalise is {normalise!r}. "
                "Set normalise='fixed', or leave them out."
            )
        return {}
    given = dict(statistics or {})
    for name in given:
        if name not in names:
            raise ValueError(
                f"statistics name {name!r}, which is no reward here.{nearest(name, names)} "
                f"Rewards: {list(names)}."
            )
    for name in names:
        mean, std = given.get(name, (math.nan, math.nan))
        if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
            raise ValueError(
                f"normalise='fixed' needs a finite mean and a positive std of {name!r}, got "
                f"{given.get(name)!r}. Give statistics={{{name!r}: (mean, std)}}."
            )
    return given


def nearest(word: str, known: Sequence[str]) -> str:
    """Return a suggestion for a misspelt word, or nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
