"""A log of each process, one JSON object a line: ``<run>/logs/rank-000.jsonl``.

Through the standard library's logging: INFO and above of all that is called ``astrolabe*``,
warnings and above of everything else, Python's own warnings among them; not what libraries such as
torch keep to themselves and print. On the screen the main process alone repeats warnings, as Python
does where no logging is set up.
"""

import errno
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from astrolabe.clock import Watcher
from astrolabe.masking import mask_secrets
from astrolabe.screen import shown
from astrolabe.versions import PACKAGES
from astrolabe.world import World
from astrolabe_eval.files import ends_within_a_line
from astrolabe_eval.input_files import check_file, parse_json

log = logging.getLogger(__name__)

#: Bytes of a log, after which it takes the place of the one before it.
LIMIT = 10 * 2**20


class RankLog(logging.Handler):
    """Writes the log of a process; a disk that fails ends the log, not the run.

    Args:
        path: The file; it is made with its first line, and goes on if it is there.
        rank: Of the process.
        limit: Bytes after which a new file begins; one older is kept as ``<path>.1``.
        secrets: What is masked in every line; what looks like a secret is in any case.

    Attributes:
        step: The step that runs, from 1; 0: none does. Whoever counts them sets it.
        phase: What runs of the step; see `watching`.
    """

    def __init__(
        self, path: Path, rank: int, limit: int = LIMIT, secrets: Sequence[str] = ()
    ) -> None:
        super().__init__(logging.INFO)
        self._secrets = secrets
        self.step, self.phase = 0, ""
        self._path, self._rank, self._limit = path, rank, limit
        self._file: int | None = None
        self._size = 0
        self._failed = False

    def watching(self, watch: Watcher) -> Watcher:
        """Wrap what is told of the phases: each begins with a line, and later ones name it."""

        def told(phase: str, share: float) -> None:
            if phase != self.phase or share == 0.0:
                self.phase = phase
                log.info("begins")
            watch(phase, share)

        return told

    def filter(self, record: logging.LogRecord) -> bool:
        """Leave out what other libraries tell below warnings."""
        ours = record.name.partition(".")[0] in PACKAGES
        return (ours or record.levelno >= logging.WARNING) and bool(super().filter(record))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        try:
            line = self._line(record)
        except Exception:  # a log call with the wrong arguments
            self.handleError(record)
            return
        try:
            self._write(line)
        except OSError as error:
            if not self._failed:
                self._failed = True
                # Not through logging, which would come here again.
                sys.stderr.write(
                    f"rank {self._rank}: the log {self._path} cannot be written "
                    f"({error.strerror}); the run goes on without it.\n"
                )
        else:
            self._failed = False

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with suppress(OSError):
                os.close(self._file)
            self._file = None
        super().close()

    def _told(self, text: str) -> str:
        return shown(mask_secrets(text, self._secrets))

    def _line(self, record: logging.LogRecord) -> bytes:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "rank": self._rank,
            "step": self.step,
            "phase": self.phase,
            "level": record.levelname,
            "logger": record.name,
            "message": self._told(record.getMessage()),
        }
        if record.exc_info:
            trace = logging.Formatter().formatException(record.exc_info)
            fields["traceback"] = self._told(trace)
        return json.dumps(fields, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"

    def _write(self, line: bytes) -> None:
        """Append a line, unbuffered: what a crash leaves is all that was logged."""
        if self._file is not None and self._size + len(line) > self._limit:
            os.close(self._file)
            self._file = None
            self._path.replace(older(self._path))
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._size = os.fstat(self._file).st_size
        if ends_within_a_line(self._file):  # of a process that was killed, or on a full disk
            line = b"\n" + line
        written = os.write(self._file, line)
        self._size += written
        if written < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def log_to(folder: Path, world: World, secrets: Sequence[str] = ()) -> Iterator[RankLog]:
    """Log into the folder of a run, within the block.

    Args:
        folder: Of the run.
        world: The processes.
        secrets: As in `RankLog`.

    Yields:
        The log, to be told the step and the phase.
    """
    root = logging.getLogger()
    own = RankLog(path_of(folder, world.rank), world.rank, secrets=secrets)
    handlers: list[logging.Handler] = [own]
    # Python's last resort, which shows warnings, is gone once the root has a handler.
    if world.main and not root.handlers and logging.lastResort is not None:
        handlers.append(logging.lastResort)
    levels = {name: logging.getLogger(name).level for name in PACKAGES}
    shown = warnings.showwarning
    for handler in handlers:
        root.addHandler(handler)
    for name in PACKAGES:
        logging.getLogger(name).setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield own
    finally:
        if shown is not warnings.showwarning:  # else somebody else captures them
            logging.captureWarnings(False)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
        own.close()


def path_of(folder: Path, rank: int) -> Path:
    """Where a rank logs."""
    return folder / "logs" / f"rank-{rank:03d}.jsonl"


def older(path: Path) -> Path:
    """Where the log before this one is."""
    return path.with_name(f"{path.name}.1")


def read_tail(path: Path, lines: int, most: int = 2**18) -> list[str]:
    """Return the last lines of a log as text that a person reads.

    Args:
        path: From `path_of`.
        lines: How many.
        most: Bytes that are looked at.
    """
    check_file(path)
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - most))
        texts = file.read().decode(errors="replace").rstrip("\n").split("\n")[-lines:]
    return [_readable(text) for text in texts]


def _readable(line: str) -> str:
    try:
        fields = parse_json(line)
        where = f"step {fields['step']} {fields['phase']}".rstrip()
        told = f"{fields['time']} {where} {fields['level']} {fields['logger']}: {fields['message']}"
    except (ValueError, KeyError, TypeError):
        return line  # cut off by a full disk, or by `most`
    return "\n".join(filter(None, [told, fields.get("traceback")]))
