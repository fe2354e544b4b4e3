"""Between processes that only sample and score, and those that only learn.

In each step they meet: windows with their scores go one way, the adapter that samples the other,
and nothing else of the model. The processes that learn are the first ones, so that the main one is
among them; whatever has state is theirs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from astrolabe.config import Run
from astrolabe.stragglers import EXCESS, RANK, compare
from astrolabe.transfer import NOTHING, describe, shares, transfer
from astrolabe.world import World

#: Figures of those that sample that stand for the slowest of them, under another name.
RENAMED = {
    "time/sample_s": "rollout/sample_s",
    "time/score_s": "rollout/score_s",
    "time/wait_s": "rollout/wait_s",
    "memory/peak_gib": "rollout/peak_gib",
}
#: How they compare with each other.
COMPARED = ("throughput/sampled_per_s", "straggler/sample_s", RANK, EXCESS)


@dataclass(frozen=True)
class Taken:
    """What those that learn get of a step.

    Attributes:
        batch: This process's windows, ``[n, T]``, without pixels.
        shown: Some videos with pixels, for the main process; empty for others, and where none are
            to be kept.
        figures: What those that sampled measured, each by the one that had most of it.
    """

    batch: TensorDictBase
    shown: TensorDictBase
    figures: dict[str, float]


class Handover:
    """Where the two kinds of processes meet.

    All its methods but `receive` and `give` are called by those that learn.

    Args:
        run: The settings; ``distributed.rollout_ranks`` processes sample.
        world: All processes; collective.

    Attributes:
        world: All processes.
        learns: Whether this process learns.
        own: The processes of its kind.
        samplers: Those that sample, as one of them sees them.
        asked: Whether one of those that sample was asked to stop.
        left: Whether the run ended early because somebody asked for it.
    """

    def __init__(self, run: Run, world: World) -> None:
        self.world, self._lag = world, run.rollout.lag
        learning = world.size - run.distributed.rollout_ranks
        sampling = range(learning, world.size)
        self.learns = world.rank < learning
        learners, samplers = world.part(range(learning)), world.part(sampling)
        self.own = learners or samplers or world  # it is one of the two
        self.samplers = World(size=len(sampling)) if self.learns else self.own
        self.asked, self.left = False, False
        # The main process sends the adapter; the others that learn have no part in it.
        self._adapter = world.part([0, *sampling]) or World()
        videos = run.rollout.num_prompts * run.rollout.group_size
        self._videos = videos
        self._owned = [NOTHING] * learning + shares(videos, len(sampling))
        self._wanted = shares(videos, learning) + [NOTHING] * len(sampling)
        self._first = learning
        self._begun = False

    def take(self, values: Mapping[str, Tensor]) -> Taken:
        """Give those that sample what they are to sample with, and get a step's windows.

        Args:
            values: The copy "old".
        """
        if self._begun and not self._lag:
            self._meet({})
            self._send(values)
        self._begun = True
        words = self._meet({})[self._first :]
        if self._lag:
            self._send(values)
        layouts = [word["batch"] for word in words]
        batch = transfer(self.world, None, layouts, self._owned, self._wanted)
        shown: TensorDictBase = TensorDict(batch_size=[0])
        if words[0]["shown"] is not None:
            shown = self._transfer_shown(None, words[0]["shown"])
        self.asked = self.asked or any(word["asked"] for word in words)
        measured = [word["measured"] for word in words]
        return Taken(batch, shown, self._figures(measured))

    def end(self, *, left: bool) -> None:
        """Tell those that sample that there is no next step; ``left``: because somebody asked."""
        self._meet({"end": True, "left": left})

    def give(
        self,
        batch: TensorDictBase,
        shown: TensorDictBase | None,
        measured: Mapping[str, float],
        values: Mapping[str, Tensor],
        *,
        asked: bool,
    ) -> bool:
        """Give a step's windows to those that learn.

        Args:
            batch: Of this process, ``[n, T]``.
            shown: Videos with pixels; None: none are to be kept.
            measured: Figures of this process.
            values: The copy that samples; written into where it is one step behind.
            asked: Whether this process was asked to stop.

        Returns:
            Whether there is a next step, as far as they know.
        """
        word = {
            "batch": describe(batch),
            "shown": None if shown is None else {**describe(shown), "count": len(shown)},
            "measured": dict(measured),
            "asked": asked,
        }
        words = self._meet(word)
        if self._ended(words):
            return False
        if self._lag:
            self._receive(values)
        layouts = [word["batch"] for word in words[self._first :]]
        transfer(self.world, batch, layouts, self._owned, self._wanted)
        layout = words[self._first]["shown"]
        if layout is not None:
            self._transfer_shown(shown, layout)
        return True

    def receive(self, values: Mapping[str, Tensor]) -> bool:
        """Get what to sample the next step with, where it is not a step behind.

        Args:
            values: The copy that samples, written into.

        Returns:
            Whether there is a next step.
        """
        if self._ended(self._meet({})):
            return False
        self._receive(values)
        return True

    def _meet(self, word: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self.world.gather_text(json.dumps(word))]

    def _ended(self, words: list[dict[str, Any]]) -> bool:
        self.left = words[0].get("left", False)
        return bool(words[0].get("end", False))

    def _send(self, values: Mapping[str, Tensor]) -> None:
        if self._adapter.size > 1:
            self._adapter.broadcast(torch.cat([value.flatten() for value in values.values()]))

    @torch.no_grad()
    def _receive(self, values: Mapping[str, Tensor]) -> None:
        some = next(iter(values.values()))
        sizes = [value.numel() for value in values.values()]
        flat = self._adapter.broadcast(some.new_empty(sum(sizes)))
        for value, new in zip(values.values(), torch.split(flat, sizes), strict=True):
            value.copy_(new.view_as(value))

    def _transfer_shown(
        self, rows: TensorDictBase | None, layout: dict[str, Any]
    ) -> TensorDictBase:
        """Bring videos from the first process that sampled to the main one."""
        all_, none = range(layout["count"]), [NOTHING] * self.world.size
        owned, wanted = list(none), list(none)
        owned[self._first], wanted[0] = all_, all_
        if self.world.rank != self._first:
            rows = None
        return transfer(self.world, rows, [layout], owned, wanted)

    def _figures(self, measured: list[dict[str, float]]) -> dict[str, float]:
        names = dict.fromkeys(name for one in measured for name in one)
        most = {name: max(one.get(name, 0.0) for one in measured) for name in names}
        found = {RENAMED.get(name, name): value for name, value in most.items()}
        compared = compare(measured, self._videos)
        found |= {name: compared[name] for name in COMPARED if name in compared}
        if RANK in found:
            found[RANK] += self._first
        return found
