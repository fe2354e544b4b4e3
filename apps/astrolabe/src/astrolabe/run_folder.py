"""The folder of a run: what is in it, how it comes to be, and how it is found again.

    config.json                 every setting
    metrics.jsonl               one line per step
    samples/step-000010/*.mp4   videos of that step: best and worst of some groups
    samples/step-000010/index.json   their prompts, rewards and ranks
    skipped/step-000010-0.safetensors   a batch whose loss or gradient was not finite
    checkpoints/step-000010/    lora/ (peft), state.pt, manifest.json
    evaluation/PROMPTS-DIGEST/  before/, step-000010/: videos and scores of an evaluation
    speed.json, speed.md        what tuning costs in speed
    report.html, report.json, report.csv, report.md, report.tex   the comparison

A checkpoint is written under another name and renamed when it is complete, and its manifest holds
the size and digest of each file: what is under ``checkpoints/step-*`` is whole, or it is refused.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import torch

from astrolabe.config import Run
from astrolabe.load import from_json, to_json
from astrolabe_eval.files import write_atomic
from astrolabe_rollout.errors import CheckpointError

MANIFEST = "manifest.json"
STATE = "state.pt"
LORA = "lora"


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
        if folder.path.is_file() or (folder.path.is_dir() and any(folder.path.iterdir())):
            raise FileExistsError(
                f"{str(path)!r} exists and is not empty. "
                f"Go on with it by `astrolabe train --resume {path}`, or choose another --out."
            )
        folder.path.mkdir(parents=True, exist_ok=True)
        # Permissions do not tell whether a disk is read-only or full; a file does.
        probe = folder.path / ".probe"
        try:
            probe.write_bytes(b"\0" * 4096)
        finally:
            probe.unlink(missing_ok=True)
        return folder

    @classmethod
    def open(cls, path: str | Path) -> tuple[Self, Run]:
        """Find the folder of an earlier run and read its settings.

        Raises:
            ConfigError: If it is no run folder, or its settings cannot be read.
        """
        folder = cls(path)
        return folder, from_json(folder.config)

    def begin(self, run: Run) -> None:
        """Write the settings of a run into a claimed folder."""
        write_atomic(self.config, to_json(run).encode())

    def check_space(self, needed: int) -> None:
        """Refuse to start on a disk that cannot hold ``needed`` bytes.

        Raises:
            OSError: With ``ENOSPC``.
        """
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"{free / 2**20:.0f} MiB are free and this run needs {needed / 2**20:.0f} MiB",
                str(self.path),
            )

    def save(
        self,
        step: int,
        state: dict[str, Any],  # Any: nested dicts of tensors, numbers and texts
        write_lora: Callable[[Path], None],
        keep: int,
    ) -> Path:
        """Write the checkpoint of a finished step, then remove all but the newest ``keep``.

        Args:
            step: Steps that are finished.
            state: Everything needed to go on besides the adapter that is published.
            write_lora: Writes the adapter into the folder it is given.
            keep: Checkpoints that stay, at least 1.

        Returns:
            The folder of the checkpoint.

        Raises:
            OSError: If it cannot be written; older checkpoints are untouched then.
        """
        final = self.checkpoints / f"step-{step:06d}"
        part = self.checkpoints / f".step-{step:06d}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            write_lora(part / LORA)
            _write_state(part / STATE, state)
            manifest = {"astrolabe": version("astrolabe"), "step": step, "files": _digests(part)}
            write_atomic(part / MANIFEST, json.dumps(manifest, indent=2).encode())
            if final.exists():
                shutil.rmtree(final)
            part.rename(final)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        for old in self.all_checkpoints()[:-keep]:
            shutil.rmtree(old)
        return final

    def all_checkpoints(self) -> list[Path]:
        """Folders of the checkpoints, oldest first."""
        return sorted(self.checkpoints.glob("step-*"))

    def newest(self) -> Path | None:
        """Folder of the newest checkpoint, verified; None if there is none yet.

        Raises:
            CheckpointError: If it is damaged or foreign.
        """
        found = self.all_checkpoints()
        if not found:
            return None
        _verify(found[-1], found[:-1])
        return found[-1]

    def find(self, steps: Sequence[int] = ()) -> list[Path]:
        """Folders of the checkpoints after these steps, verified; of the newest without steps.

        Raises:
            CheckpointError: If there is none, or it is damaged or foreign.
        """
        there = self.all_checkpoints()
        wanted = [self.checkpoints / f"step-{step:06d}" for step in steps] or there[-1:]
        for path in wanted:
            if path not in there:
                raise CheckpointError(
                    f"{str(self.path)!r} has no checkpoint {path.name}. There are: "
                    f"{', '.join(found.name for found in there) or 'none'}. More are kept with "
                    "--set logging.keep=N."
                )
            _verify(path, there[: there.index(path)])
        if not wanted:
            raise CheckpointError(
                f"{str(self.path)!r} has no checkpoint yet. "
                f"Train on with: astrolabe train --resume {self.path}"
            )
        return wanted

    def trim_metrics(self, step: int) -> None:
        """Drop the lines of steps after ``step`` and a last line that was cut off."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_bytes().splitlines(keepends=True):
            try:
                number = json.loads(line)["step"]
            except (ValueError, KeyError, TypeError):
                break  # cut off in the middle by a crash: nothing after it counts
            if not line.endswith(b"\n") or number > step:
                break
            kept.append(line)
        write_atomic(self.metrics, b"".join(kept))


def digest_of(checkpoint: Path) -> str:
    """Return a digest of the adapter that a verified checkpoint publishes."""
    files = json.loads((checkpoint / MANIFEST).read_text("utf-8"))["files"]
    parts = [entry["sha256"] for name, entry in sorted(files.items()) if name.startswith(LORA)]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def read_state(checkpoint: Path) -> dict[str, Any]:  # Any: see `RunFolder.save`
    """Read what `RunFolder.save` was given, without running any code from the file.

    Raises:
        CheckpointError: If the file is no such state.
    """
    try:
        state = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{str(checkpoint)!r} has no {STATE}. {_WAY_OUT}") from None
    except Exception as error:  # torch raises many kinds for bytes that are not its own
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{str(checkpoint / STATE)!r} is no state of a run ({reason}). {_WAY_OUT}"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{str(checkpoint / STATE)!r} is no state of a run. {_WAY_OUT}")
    return state


_WAY_OUT = "Remove that checkpoint folder and resume from an older one, or start a new run."


def _write_state(path: Path, state: dict[str, Any]) -> None:  # Any: see `RunFolder.save`
    with path.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # torch's zip writer hides the disk's own error behind a RuntimeError.
            raise OSError(errno.ENOSPC, "the checkpoint could not be written", str(path)) from error
        file.flush()
        os.fsync(file.fileno())


def _digests(folder: Path) -> dict[str, dict[str, int | str]]:
    """Size and SHA-256 of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _digest(path)}
        for path in files
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(checkpoint: Path, older: list[Path]) -> None:
    """Refuse a checkpoint that is not exactly what was saved."""
    rest = f"the run then goes on from {older[-1].name}" if older else "the run then starts anew"
    way_out = f"Remove that folder ({rest})."
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        expected = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the checkpoint {str(checkpoint)!r} has no readable {MANIFEST}, so it is not "
            f"one of astrolabe's or it is incomplete. {way_out}"
        ) from error
    for name, (size, digest) in expected.items():
        path = checkpoint / name
        found = path.stat().st_size if path.is_file() else None
        if found is None:
            problem = "is missing"
        elif found != size:
            problem = f"has {found} bytes and should have {size}"
        elif _digest(path) != digest:
            problem = "does not hold what was saved"
        else:
            continue
        raise CheckpointError(
            f"the checkpoint {str(checkpoint)!r} is damaged: {name} {problem}. {way_out}"
        )
