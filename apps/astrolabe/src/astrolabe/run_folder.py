"""The folder of a run: what is in it, how it comes to be, and how it is found again.

config.json                 every setting; checkpoints keep them too, and it must say the same
metrics.jsonl               one line per step
metrics.jsonl.damaged-1     as it was before damaged lines were left out
trackers.json               the runs of W&B and MLflow that it is, to go on with
logs/                       of processes, and of trackers that write files
samples/step-000010/*.mp4   videos of that step: best and worst of some groups
samples/step-000010/index.json   their prompts, rewards and ranks
skipped/step-000010-0.safetensors   a batch whose loss or gradient was not finite
checkpoints/step-000010/    lora/ (peft), tensors/, state.json, manifest.json
checkpoints/damaged-step-000020/   one that was no longer what was saved
evaluation/PROMPTS-DIGEST/  before/, step-000010/: videos and scores of an evaluation
speed.json, speed.md        what tuning costs in speed
report.html, report.json, report.csv, report.md, report.tex   the comparison

What is under ``checkpoints/step-*`` is whole, or it is refused (`astrolabe.checkpoint_files`).
"""

import errno
import logging
import os
import shutil
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from astrolabe.checkpoint_files import (
    MANIFEST,
    damage,
    name_of,
    remove,
    reseal,
    reward_of,
    settings_of,
    step_of,
)
from astrolabe.code_in_data import code_of, refuse_code
from astrolabe.config import Run
from astrolabe.errors import ConfigError
from astrolabe.load import from_json, from_table, to_json, to_table
from astrolabe.recipe_changes import check_untouched
from astrolabe.trackers import RUNS
from astrolabe_eval.files import check_place, write_atomic
from astrolabe_rollout.errors import CheckpointError

log = logging.getLogger(__name__)


class RunFolder:
    """Paths of a run, and its checkpoints.

    Args:
        path: The folder; see `claim`, `open`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples"
        self.skipped = self.path / "skipped"
        self.checkpoints = self.path / "checkpoints"
        self.report = self.path / "report.html"

    @classmethod
    def claim(cls, path: str | Path) -> Self:
        """Take a folder for a new run: it must be new or empty, and writable.

        Raises:
            FileExistsError: If there is something in it.
            OSError: If it cannot be written.
        """
        folder = cls(path)
        if folder.path.is_file() or (folder.path.is_dir() and folder._something_inside()):
            raise FileExistsError(
                f"{str(path)!r} exists and is not empty. "
                f"Go on with it by `astrolabe train --resume {path}`, or choose another --out."
            )
        check_place(folder.path / "config.json")
        new = [path for path in (folder.path, *folder.path.parents) if not path.exists()]
        # Permissions do not tell whether a disk is read-only or full; a file does.
        probe = folder.path / ".probe"
        try:
            write_atomic(probe, b"\0" * 4096)
        except OSError as error:
            for one in new:
                one.rmdir()
            raise OSError(error.errno, error.strerror, str(folder.path)) from error
        probe.unlink()
        return folder

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        allow_code: bool = False,
        known: Run | None = None,
        typed: Collection[str] = (),
    ) -> tuple[Self, Run]:
        """Find the folder of an earlier run and read its settings.

        They are those that its newest checkpoint keeps; ``config.json`` must say the same.

        Args:
            path: The folder.
            allow_code: Whether its settings may name code, as in `from_json`, like the next one.
            known: All settings, given by other means. Their code is allowed, and ``config.json``
                does not matter.
            typed: Names of settings that are given by other means; what ``config.json`` says of
                them does not matter.

        Raises:
            ConfigError: If it is no run folder, or its settings cannot be read, name code or were
                changed since the checkpoint was saved.
        """
        folder = cls(path)
        found = from_json(folder.config, allow_code=allow_code, known=known)
        checkpoint, saved = folder._saved(known)
        if checkpoint is None or saved is None:
            return folder, found
        if not allow_code:
            where = repr(str(checkpoint / MANIFEST))
            refuse_code(saved, where, known=code_of(known) if known else ())
        if known is None:
            check_untouched(saved, found, typed, folder.config, checkpoint.name)
        return folder, saved

    def begin(self, run: Run) -> None:
        """Write the settings that a run begins or goes on with, into its checkpoints too.

        Raises:
            OSError: If they cannot be written.
        """
        for checkpoint in self.all_checkpoints():
            reseal(checkpoint, to_table(run))
        write_atomic(self.config, to_json(run).encode())

    def withdraw(self) -> None:
        """Take the settings back if no step was finished: the folder can be claimed anew."""
        with suppress(OSError):
            if self.all_checkpoints() or (self.metrics.exists() and self.metrics.stat().st_size):
                return
            self.metrics.unlink(missing_ok=True)
            self.checkpoints.rmdir() if self.checkpoints.exists() else None
            self.config.unlink(missing_ok=True)

    def check_space(self, needed: int) -> None:
        """Refuse to start on a disk that cannot hold ``needed`` bytes.

        Checkpoints that are there already count as free, as new ones will take their place.

        Raises:
            OSError: With ``ENOSPC``.
        """
        held = [file for path in self.all_checkpoints() for file in path.rglob("*")]
        free = shutil.disk_usage(self.path).free + sum(file.stat().st_size for file in held)
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"{free / 2**20:.0f} MiB are free and this run needs {needed / 2**20:.0f} MiB",
                str(self.path),
            )

    def all_checkpoints(self) -> list[Path]:
        """Folders of the checkpoints, oldest first; not those that were put aside as damaged.

        Raises:
            OSError: If they cannot be listed.
        """
        try:
            names = os.listdir(self.checkpoints)  # unlike glob, it tells that it may not look
        except FileNotFoundError:
            return []
        found = [name for name in names if name.startswith("step-") and name[5:].isdecimal()]
        return sorted((self.checkpoints / name for name in found), key=step_of)

    def newest(self) -> Path | None:
        """Folder of the newest checkpoint, verified; None if there is none yet.

        Raises:
            CheckpointError: If it is damaged or foreign.
        """
        there = self.all_checkpoints()
        if not there:
            return None
        self._verify(there[-1])
        return there[-1]

    def find(self, steps: Sequence[int] = ()) -> list[Path]:
        """Folders of the checkpoints after these steps, verified; of the newest without steps.

        Raises:
            CheckpointError: If there is none, or it is damaged or foreign.
        """
        there = self.all_checkpoints()
        wanted = [self.checkpoints / name_of(step) for step in steps] or there[-1:]
        for path in wanted:
            if path not in there:
                raise CheckpointError(
                    f"{str(self.path)!r} has no checkpoint {path.name}. There are: "
                    f"{', '.join(found.name for found in there) or 'none'}. More are kept with "
                    "--set logging.keep=N."
                )
            self._verify(path)
        if not wanted:
            raise CheckpointError(
                f"{str(self.path)!r} has no checkpoint yet. "
                f"Train on with: astrolabe train --resume {self.path}"
            )
        return wanted

    def rotate(self, keep: int, best: int) -> None:
        """Remove all checkpoints but the newest and the best.

        Args:
            keep: Newest ones that stay, at least 1.
            best: How many of the highest mean reward stay too, whether they are new or not.
        """
        there = self.all_checkpoints()
        rewards = {path: reward_of(path) for path in there}
        known = [(reward, path) for path, reward in rewards.items() if reward is not None]
        stay = {*there[-keep:], *(path for _, path in sorted(known, reverse=True)[:best])}
        for path in there:
            if path not in stay:
                remove(path)

    def put_aside(self, checkpoint: Path) -> Path:
        """Give a damaged checkpoint a name by which it is not one; return where it is then."""
        number, place = 1, checkpoint.with_name(f"damaged-{checkpoint.name}")
        while place.exists():
            number += 1
            place = checkpoint.with_name(f"damaged-{checkpoint.name}-{number}")
        return checkpoint.rename(place)

    def _saved(self, known: Run | None) -> tuple[Path | None, Run | None]:
        """The newest checkpoint that keeps settings, and these, if this version knows them all."""
        there = self.all_checkpoints()
        for checkpoint in reversed(there):
            table = settings_of(checkpoint)
            if table is None:
                continue
            try:
                return checkpoint, from_table(table, str(checkpoint), allow_code=True, known=known)
            except ConfigError as error:
                self._unsealed(f"{checkpoint.name} keeps settings of another version ({error})")
                return None, None
        if there:
            self._unsealed("no checkpoint keeps its settings, as those of earlier versions")
        return None, None

    def _unsealed(self, why: str) -> None:
        if os.environ.get("RANK", "0") == "0":  # once for all processes
            log.warning(
                "%s: %s, so a change of %s is not noticed; the next checkpoint keeps them.",
                self.path,
                why,
                self.config.name,
            )

    def _something_inside(self) -> bool:
        # Not what a run leaves that was killed before it began: its lock, unfinished files, logs.
        names = {path.name for path in self.path.iterdir()} - {"logs", "crash", RUNS}
        return any(not name.startswith(".") for name in names)

    def _verify(self, checkpoint: Path) -> None:
        problem = damage(checkpoint)
        if problem is not None:
            raise CheckpointError(
                f"the checkpoint {str(checkpoint)!r} is damaged: {problem}. To go on from an older "
                f"one: astrolabe train --resume {self.path}"
            )
