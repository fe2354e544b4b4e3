"""Saves a run while it goes on: what is saved is copied at once, and written in the background.

Checkpoints of all processes are one: each writes its share into the same folder, and the main one
adds what is written once, seals it and gives it its name (`astrolabe.checkpoint_files`).
"""

import errno
import json
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from torch import Tensor
from torch import distributed as dist
from torch.distributed import ProcessGroup

from astrolabe.checkpoint import capture
from astrolabe.checkpoint_files import LORA, REWARD, name_of, publish, step_of
from astrolabe.compose import Parts
from astrolabe.config import Run
from astrolabe.load import to_table
from astrolabe.run_folder import RunFolder
from astrolabe.state_files import read_tensors, split, to_cpu, write_rest, write_tensors
from astrolabe.world import World
from astrolabe_rollout.lora import save_lora

#: Everything in the folder of a run but checkpoints.
MINIMUM_SPACE = 64 * 2**20

#: Where the averaged adapter is among the tensors of the state.
OLD = "snapshots/old."

#: A disk that is full, or a user's share of it.
FULL = {errno.ENOSPC, errno.EDQUOT}

#: Moments of AdamW, and the adapter as it is trained and as it is published.
BESIDES_SNAPSHOTS = 4


def space_needed(run: Run, parts: Parts) -> int:
    """Bytes that a run will have written at most: its checkpoints, and some for all else."""
    trained = sum(value.numel() * value.element_size() for value in parts.parameters.values())
    one = trained * (BESIDES_SNAPSHOTS + len(parts.snapshots.names))
    # One more is there while it is written.
    return one * (run.logging.keep + run.logging.keep_best + 1) + MINIMUM_SPACE


class Saver:
    """Writes checkpoints of a run in the background, one at a time.

    Every process has one and calls the same methods in the same order.

    A disk that is full or fails does not end the run: the checkpoint is given up, those before it
    stay as they are, and the next one is tried as usual.

    Args:
        folder: Of the run.
        parts: Of the run, restored to where it goes on.
        keep: Newest checkpoints that stay, at least 1.
        best: How many of the highest mean reward stay too.
        run: The settings, which each checkpoint keeps; None: it keeps none.

    Attributes:
        saved: Steps of the newest checkpoint; 0: there is none.
        failed: How many in a row could not be written.
        last_error: Why the last one could not be written; None: it was.
    """

    def __init__(
        self,
        folder: RunFolder,
        parts: Parts,
        *,
        keep: int,
        best: int = 0,
        run: Run | None = None,
    ) -> None:
        self.saved = _newest(folder)
        self.failed = 0
        self.last_error: OSError | None = None
        self._folder = folder
        self._parts = parts
        self._keep = keep
        self._best = best
        self._settings = None if run is None else to_table(run)
        # The thread's messages must not mix with those of the steps that go on meanwhile.
        self._group = _own_group(parts.world) if parts.world.size > 1 else None
        self._thread = ThreadPoolExecutor(1, "saving")
        self._running: tuple[int, Future[None]] | None = None
        self._told: list[str] = []
        parts.world.lead(self._clear)

    def save(self, step: int, metrics: Mapping[str, float]) -> None:
        """Begin to write the checkpoint of a finished step; wait for the one before it.

        Args:
            step: Steps that are finished.
            metrics: Of the step; the mean reward among them decides which checkpoints are best.
        """
        self._join()
        tensors, rest = split(capture(self._parts, step))
        # As text, so that all of it is as it is now.
        writing = self._thread.submit(
            self._write, step, to_cpu(tensors), json.dumps(rest), metrics.get(REWARD)
        )
        self._running = step, writing

    def settle(self) -> list[str]:
        """Wait for what is being written.

        Returns:
            What to tell the user, the same on every process.
        """
        self._join()
        told, self._told = self._told, []
        return told

    def wait(self) -> int:
        """Wait for what is being written, without a word to the other processes.

        Returns:
            Steps of the newest checkpoint in the folder; 0: there is none.
        """
        if self._running is not None:
            self._running[1].exception()
        return _newest(self._folder)

    def check(self) -> None:
        """Refuse to end as if all was saved if the last checkpoint could not be written.

        Raises:
            OSError: If so.
        """
        if self.last_error is not None:
            raise self.last_error

    def _join(self) -> None:
        if self._running is None:
            return
        step, writing = self._running
        error = writing.exception()
        self._running = None
        if error is not None and not isinstance(error, OSError):
            raise error
        problem = next(filter(None, self._parts.world.gather_text(_reason(error))), "")
        if not problem:
            self.saved, self.failed, self.last_error = step, 0, None
            return
        self.failed += 1
        self.last_error = error or OSError(problem)
        newest = f"the one after step {self.saved} is whole" if self.saved else "there is none yet"
        again = f" ({self.failed} in a row)" if self.failed > 1 else ""
        self._told.append(
            f"The checkpoint after step {step} cannot be written{again}: {problem}. The run goes "
            f"on and tries again with the next one; {newest}."
        )

    def _write(
        self, step: int, tensors: Mapping[str, Tensor], rest: str, reward: float | None
    ) -> None:
        """Write a checkpoint, in the background."""
        part = self._folder.checkpoints / f".{name_of(step)}.part"
        main = self._parts.world.main
        try:
            write_tensors(part, tensors, self._group)
            if main:
                write_rest(part, rest)
                old = read_tensors(part, under=OLD)  # all parts of it, wherever they came from
                values = {path.removeprefix(OLD): value for path, value in old.items()}
                save_lora(self._parts.model.transformer.network, part / LORA, values)
                final = self._folder.checkpoints / name_of(step)
                publish(part, final, reward, self._settings)
        finally:
            if main:
                shutil.rmtree(part, ignore_errors=True)
        if main:
            with suppress(OSError):  # the new one is there; it is tried again after the next
                self._folder.rotate(self._keep, self._best)

    def _clear(self) -> None:
        """Remove what a run that was killed left unfinished."""
        for left in self._folder.checkpoints.glob(".step-*"):
            shutil.rmtree(left, ignore_errors=True)


def _own_group(world: World) -> ProcessGroup:
    """Another group of the same processes."""
    ranks = dist.get_process_group_ranks(world.group)
    group = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)
    assert isinstance(group, ProcessGroup)  # it is none for processes that are left out alone
    return group


def _newest(folder: RunFolder) -> int:
    """Steps of the newest checkpoint; 0: there is none."""
    return max(map(step_of, folder.all_checkpoints()), default=0)


def _reason(error: OSError | None) -> str:
    if error is None:
        return ""
    where = f" ({error.filename})" if error.filename else ""
    way_out = ". Free some space" if error.errno in FULL else ""
    return f"{error.strerror or error}{where}{way_out}"
