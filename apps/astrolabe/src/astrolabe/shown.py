"""The videos of a step that are shown: the best and the worst of some groups."""

import math
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from astrolabe.compose import Parts
from astrolabe_objectives.rounding import rounding_of, tied

GROUP = ("prompt", "group")
SEED = ("prompt", "seed")
TEXT = ("prompt", "text")
REWARD = ("next", "reward")


class Extremes:
    """Keeps the best and the worst video of the first groups of a step while parts of it come.

    The reward of the composite is known only when the whole step is scored. Until then videos are
    compared by the weighted sum of their scores, in units of the part's own deviation where the
    units of the composite are not fixed: the two rarely differ, and `describe` ranks by the reward.
    A video that a summed reward could not score is neither the best nor the worst.

    Args:
        parts: Of the run.
        groups: How many groups are shown.
    """

    def __init__(self, parts: Parts, groups: int) -> None:
        self.parts, self.groups = parts, groups
        self._found: dict[int, list[tuple[float, TensorDictBase]]] = {}

    def take(self, batch: TensorDictBase) -> None:
        """Look at scored videos ``[n, T]`` with pixels, and keep copies of the extreme ones."""
        self._none = batch[:0]
        ids = batch[GROUP][:, 0].tolist()
        for row, (group, value) in enumerate(zip(ids, self._worth(batch), strict=True)):
            if not math.isfinite(value):
                continue
            if group not in self._found and len(self._found) == self.groups:
                continue
            pair = self._found.setdefault(group, [])
            if len(pair) < 2:
                pair.append((value, batch[row : row + 1].clone()))
            elif not pair[1][0] <= value <= pair[0][0]:
                pair[value < pair[1][0]] = (value, batch[row : row + 1].clone())
            pair.sort(key=lambda one: -one[0])

    def videos(self) -> TensorDictBase:
        """The best and the worst of each group, one after the other; none if none was scored."""
        videos = [video for pair in self._found.values() for _, video in pair]
        return torch.cat(videos) if videos else self._none

    def _worth(self, batch: TensorDictBase) -> list[float]:
        worth = torch.zeros(len(batch))
        for name, weight in self.parts.alarm.trained.items():
            scores = torch.tensor(_means(batch["score", name]))  # [n]
            known = scores[scores.isfinite()]
            blur = rounding_of(batch, ("score", name)).reshape(len(batch), -1).nanmean(dim=1).cpu()
            spread = 0.0 if tied(known, blur[scores.isfinite()]) else float(known.std(correction=0))
            worth += weight / (self.parts.alarm.units.get(name) or spread or 1.0) * scores
        values: list[float] = worth.tolist()
        return values


def describe(
    batch: TensorDictBase, shown: TensorDictBase, rewards: list[str]
) -> list[dict[str, Any]]:
    """Describe shown videos, in their order, for ``index.json``.

    Args:
        batch: All videos of the step, ``[N, T]``, with rewards.
        shown: Some of them.
        rewards: Names of the scores.

    Returns:
        For each ``file``, ``prompt``, ``group``, ``reward`` and ``scores`` (means over windows, or
        None), and its ``rank`` by reward, from 1, among the ``of`` videos of its group that have
        one; no rank without a reward. Any: texts, numbers and None.
    """
    ids, totals = _ids(batch), _means(batch[REWARD])
    scores = {name: _means(batch["score", name]) for name in rewards}
    described = []
    for index, (group, seed) in enumerate(_ids(shown)):
        row = ids.index((group, seed))
        rivals = [
            total
            for total, (other, _) in zip(totals, ids, strict=True)
            if other == group and math.isfinite(total)
        ]
        known = math.isfinite(totals[row])
        described.append(
            {
                "file": f"{index}.mp4",
                "prompt": batch[row, 0][TEXT],
                "group": group,
                "reward": _or_none(totals[row]),
                "scores": {name: _or_none(values[row]) for name, values in scores.items()},
                "rank": 1 + sum(rival > totals[row] for rival in rivals) if known else None,
                "of": len(rivals),
            }
        )
    return described


def _ids(batch: TensorDictBase) -> list[tuple[int, int]]:
    """Group and seed of each video."""
    return list(zip(batch[GROUP][:, 0].tolist(), batch[SEED][:, 0].tolist(), strict=True))


def _means(values: Tensor) -> list[float]:
    """Mean of each video over its windows that have a value, ``[N, T, 1]`` to ``[N]``."""
    finite = values.float().cpu().where(values.cpu().isfinite(), math.nan)
    means: list[float] = finite.nanmean(dim=(1, 2)).tolist()
    return means


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
