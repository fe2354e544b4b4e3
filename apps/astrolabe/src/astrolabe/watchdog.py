"""Ends a run that hangs, after every process has written down what it was doing.

Each process has two threads: one looks how long ago it made progress, the other listens in
torch.distributed's store whether a process asks for stacks. A process that stands still in native
code which holds Python's lock, or that was stopped, cannot answer, and is named for it; the former
is ended from outside (`astrolabe.lookout`).
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store

from astrolabe.clock import Watcher
from astrolabe.lookout import PAUSED, Lookout
from astrolabe.masking import known_secrets, mask
from astrolabe.ranks import name_ranks, tell_apart
from astrolabe.screen import shown
from astrolabe.stacks import headline, place_for, stacks, stacks_path, way_on
from astrolabe.world import World
from astrolabe_eval.files import write_atomic

#: Seconds between two looks, and that others get to answer before the process ends.
TICK, GRACE = 1.0, 10.0
#: Ticks that one is counted for at most: a process that was stopped did not hang meanwhile.
LONGEST = 5

ASKED = "asked"


class Watchdog:
    """Watches the progress of this process, within a ``with`` block.

    After ``timeout`` seconds without progress all processes write
    ``<run>/crash/<UTC time>/stacks-rank-N.txt``, and this one ends with exit code 1, so that
    torchrun starts the run again.

    Args:
        folder: Of the run.
        world: The processes; entering is collective.
        timeout: Seconds, by a clock that nobody can set; longer than any phase goes without a
            report of progress, and shorter than the time-out of collectives, in which a process
            that waits for another would end first.
        watch: Is told what `phase` is told.
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        timeout: float,
        watch: Watcher = lambda phase, share: None,
    ) -> None:
        self._folder, self._world, self._timeout = folder, world, timeout
        self._watch = watch
        self._phase, self._beats, self._paused = "start", 0, False
        self._idle = 0.0  # seconds since the last beat
        self._tick, self._grace = min(TICK, timeout / 10), min(GRACE, timeout)
        # Later than this process takes to end by itself, which tells more.
        limit = timeout + 2 * self._grace + 5 * self._tick
        self._lookout = Lookout(folder, world.rank, self._tick, limit)
        self._over, self._hung, self._heard = (threading.Event() for _ in range(3))
        self._place: Path | None = None  # where this process wrote its stacks
        self._asks = False  # whether it was the first that found the hang
        self._answers: dict[int, str] = {}  # rank to phase
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        targets = [self._look]
        if self._world.size > 1:
            # A connection of its own, as a request in the other would have to be waited for.
            connection = _get_default_store().clone()
            # A name of its own, as the store may outlive a run that torchrun starts again.
            name = self._world.gather_text(uuid4().hex)[0]
            self._store: Store = PrefixStore(f"watchdog/{name}", connection)
            self._store.set_timeout(timedelta(seconds=self._grace))
            targets.append(self._listen)
        self._threads = [
            threading.Thread(target=target, name=f"watchdog{target.__name__}", daemon=True)
            for target in targets
        ]
        self._lookout.start()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(self._grace)
        self._lookout.end()

    def phase(self, name: str, share: float) -> None:
        """Note progress: a phase has begun (0) or ``share`` of it is done."""
        self._phase = name
        self._beats += 1
        self._alive()
        self._watch(name, share)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Do not watch within the block, which may take any time."""
        self._paused = True
        self._alive()
        try:
            yield
        finally:
            self._beats += 1
            self._paused = False
            self._alive()

    def _alive(self) -> None:
        self._lookout.tell(PAUSED if self._paused else self._phase)

    def _look(self) -> None:
        """Look how long ago progress was made; the first thread."""
        seen, before = self._beats, time.monotonic()
        while not self._over.wait(self._tick):
            now = time.monotonic()
            self._alive()
            if self._paused or seen != self._beats:
                seen, self._idle = self._beats, 0.0
            else:
                self._idle += min(now - before, LONGEST * self._tick)
            before = now
            if self._idle > self._timeout:
                self._end()

    def _end(self) -> None:
        """End this process, with its stacks and those of the others, whatever is broken."""
        try:
            self._hung.set()
            if self._world.size > 1:
                self._heard.wait(self._grace)
            # Nobody to ask, or no answer from the store: the process that keeps it may be the one.
            if self._place is None:
                self._asks = True
                # In a thread, as a file system may be what hangs.
                alone = threading.Thread(target=self._write_alone, daemon=True)
                alone.start()
                alone.join(self._grace)
            if self._asks:
                # Not through logging, which shows nothing but on the main process.
                sys.stderr.write(f"{shown(self._message())}\n")
                sys.stderr.flush()
        finally:
            os._exit(1)

    def _write_alone(self) -> None:
        self._write(place_for(self._folder, self._world.rank))

    def _listen(self) -> None:
        """Ask and answer in the store; the second thread."""
        with suppress(RuntimeError):  # the store is gone, with the process that kept it
            while not self._over.wait(self._tick):
                if self._hung.is_set() or self._store.check([ASKED]):
                    self._answer()
                    return

    def _answer(self) -> None:
        """Ask, if nobody has yet, for stacks in one place; write one's own; hear the others."""
        if self._hung.is_set():
            place = place_for(self._folder, self._world.rank)
            self._store.compare_set(ASKED, "", f"{place.name} {self._world.rank}")
        agreed = self._store.get(ASKED)
        name, _, asker = agreed.decode().partition(" ")
        self._asks = int(asker) == self._world.rank
        self._write(self._folder / "crash" / name)
        self._store.set(f"answer/{self._world.rank}", self._phase)
        while len(self._answers) < self._world.size:
            for rank in set(range(self._world.size)) - self._answers.keys():
                if self._store.check([f"answer/{rank}"]):
                    self._answers[rank] = self._store.get(f"answer/{rank}").decode()
            if self._over.wait(self._tick):
                return
        self._heard.set()

    def _write(self, place: Path) -> None:
        """Write the stacks of this process."""
        self._place = place
        about = headline(self._world.rank, self._phase, self._idle)
        path = stacks_path(place, self._world.rank)
        with suppress(OSError):  # a full disk must not keep a run that hangs from ending
            text = mask(f"{about}\n\n{stacks()}", known_secrets(os.environ))
            write_atomic(path, text.encode("utf-8", "backslashreplace"))

    def _message(self) -> str:
        self._answers.setdefault(self._world.rank, self._phase)
        phases = {rank: f"in phase {phase!r}" for rank, phase in self._answers.items()}
        silent = set(range(self._world.size)) - phases.keys()
        gone = f"; no answer from {name_ranks(silent)}, stopped or stuck in native code"
        return (
            f"rank {self._world.rank} made no progress for {self._idle:.0f} s, so the run ends: "
            f"{tell_apart(phases)}{gone if silent else ''}. Their stacks: "
            f"{self._place or 'not written'}. {way_on(self._folder)}"
        )
