"""What the monitors and the rewards of a batch say about its videos, as metrics of a step."""

import math
from collections.abc import Iterable, Iterator
from itertools import combinations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from astrolabe_objectives.batch import group_ids
from astrolabe_objectives.ranks import average_ranks
from astrolabe_objectives.rounding import rounding_of, tied
from astrolabe_rewards.monitors import FIGURES, diversity, drift

MONITOR = "monitor"
THUMBNAIL = (MONITOR, "thumbnail")
GROUP = ("prompt", "group")
INDEX = ("window", "index")


def monitor_metrics(batch: TensorDictBase, rewards: Iterable[str]) -> dict[str, float]:
    """Describe the videos of a step, ``[N, T]``, to whoever looks for a policy that games.

    Args:
        batch: With the entries of `Monitors` and the scores.
        rewards: Names of the scores.

    Returns:
        ``monitor/brightness``, ``saturation``, ``sharpness`` and ``motion``: means in the units of
        `Monitors`; ``diversity``: mean distance of thumbnails inside groups; ``drift``: mean
        distance between the first and the last window of a video; ``disagreement``: 1 - mean
        Spearman correlation between two rewards inside groups, 0 to 2. What cannot be had is left
        out, such as the drift of a single window.
    """
    groups = groups_of(batch)
    thumbnails = batch[THUMBNAIL].cpu()  # [N, T, 768]
    named = [("score", name) for name in rewards]
    scores = torch.stack([batch[key].float().cpu().reshape(-1) for key in named], dim=1)
    blur = torch.stack([rounding_of(batch, key).cpu() for key in named], dim=1)
    metrics = {name: float(batch[MONITOR, name].mean()) for name in FIGURES}
    metrics["diversity"] = diversity(thumbnails.flatten(0, 1), groups)
    metrics["drift"] = drift(thumbnails) if thumbnails.shape[1] > 1 else math.nan
    metrics["disagreement"] = disagreement(scores, groups, blur)
    return {f"{MONITOR}/{name}": value for name, value in metrics.items() if value == value}


def groups_of(batch: TensorDictBase) -> Tensor:
    """Number of the group of each video, int64 ``[n]``; each window has its own groups."""
    ids = group_ids(batch, GROUP, INDEX, "monitors").cpu()
    inverse: Tensor = torch.unique(ids, dim=0, return_inverse=True)[1]
    return inverse


def disagreement(scores: Tensor, groups: Tensor, blur: Tensor) -> float:
    """1 - mean Spearman correlation between two rewards inside a group.

    Args:
        scores: ``[n, K]``; two rewards are compared over the videos that both have scored.
        groups: int64 ``[n]``.
        blur: What in each score may be rounding, ``[n, K]``.

    Returns:
        0 (one order) to 2 (opposite orders); NaN if no group has two rewards that vary.
    """
    found = []
    for members, blurs in zip(split(scores, groups), split(blur, groups), strict=True):
        for pair in combinations(range(members.shape[1]), 2):
            known = members[:, pair].isfinite().all(dim=1)
            both = members[known][:, pair]
            ranks = average_ranks(both, torch.zeros(len(both)), blurs[known][:, pair])  # [g, 2]
            ranks = ranks - ranks.mean(0)
            size = ranks.norm(dim=0)
            found.append(ranks.prod(1).sum() / size.prod())  # NaN where one is constant
    return 1.0 - float(torch.stack(found).nanmean()) if found else math.nan


def spread(values: Tensor, groups: Tensor, blur: Tensor) -> float:
    """Standard deviation inside groups, pooled over all of them; NaN values are left out.

    Values of a group that are equal but for rounding count as equal.

    Args:
        values: ``[n]``.
        groups: int64 ``[n]``.
        blur: What in each value may be rounding, ``[n]``.
    """
    known = values.isfinite()
    members = (split(each[known], groups[known]) for each in (values, blur))
    parts = [
        torch.zeros_like(part, dtype=torch.float64) if tied(part, own) else centred(part.double())
        for part, own in zip(*members, strict=True)
    ]
    return float(torch.cat(parts).square().mean().sqrt()) if parts else math.nan


def centred(values: Tensor) -> Tensor:
    """Values minus their mean."""
    return values - values.mean()


def split(values: Tensor, groups: Tensor) -> Iterator[Tensor]:
    """The rows of each group."""
    for group in torch.unique(groups).tolist():
        yield values[groups == group]
