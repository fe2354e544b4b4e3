"""One process of a run under `tools/chaos.py`: astrolabe, with one thing made to go wrong.

    torchrun ... tools/chaos_worker.py FAULT train ...

Every fault strikes the process of rank 1 (where it says nothing else) and only before the first
restart, so that a run which recovers can end.
"""

import errno
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase

from astrolabe import saving, train
from astrolabe.cli import main

RANK = int(os.environ.get("RANK", "0"))
FIRST = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"

learn, write_tensors, fsync, wall = train.learn, saving.write_tensors, os.fsync, time.time
calls = 0


def at_update(number: int, action: Callable[[train.Parts], None]) -> None:
    """Do something after the gradients of one update of this process."""

    def disturbed(
        micros: Sequence[TensorDictBase], whole: torch.Tensor, parts: train.Parts, clock: Any
    ) -> torch.Tensor:
        global calls
        calls += 1
        summed = learn(micros, whole, parts, clock)
        if calls == number and RANK == 1 and FIRST:
            action(parts)
        return summed

    train.learn = disturbed


def hang() -> None:
    """Rank 1 waits for something that never comes."""
    at_update(6, lambda parts: time.sleep(1e6))


def nan() -> None:
    """The gradients of rank 1 are not a number, once."""

    def spoil(parts: train.Parts) -> None:
        for view in parts.gradients.views:
            view.fill_(torch.nan)

    at_update(6, spoil)


def memory() -> None:
    """Rank 1 has no memory for more than one window at a time."""

    def short(
        micros: Sequence[TensorDictBase], whole: torch.Tensor, parts: train.Parts, clock: Any
    ) -> torch.Tensor:
        if RANK == 1 and len(micros[0]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated).")
        return learn(micros, whole, parts, clock)

    train.learn = short


def slow_disk() -> None:
    """Every fsync takes half a second, on all ranks."""

    def slow(file: int) -> None:
        time.sleep(0.5)
        fsync(file)

    os.fsync = slow


def full_disk() -> None:
    """The second and third checkpoint find no room, on all ranks."""

    def full(*arguments: Any) -> None:
        global calls
        calls += 1
        if calls in (2, 3) and FIRST:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))
        write_tensors(*arguments)

    saving.write_tensors = full


def clock() -> None:
    """The wall clock jumps by up to a day at every look, on all ranks."""
    time.time = lambda: wall() + random.uniform(-86400, 86400)


def none() -> None:
    """Nothing goes wrong here; somebody outside sees to that."""


FAULTS = {f.__name__: f for f in (none, hang, nan, memory, slow_disk, full_disk, clock)}

if __name__ == "__main__":
    FAULTS[sys.argv[1]]()
    main(sys.argv[2:])
