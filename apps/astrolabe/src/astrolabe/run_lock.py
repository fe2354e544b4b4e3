"""One run in one folder: a lock that the kernel takes back however its process ends."""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from astrolabe_eval.input_files import parse_json

#: What a file system answers that has no locks, or whose server for them is not there.
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


class RunLock:
    """Holds a run's folder for this process, within a ``with`` block.

    Readers need none: what is in the folder under its own name is whole.

    Args:
        folder: Of the run; it must exist.
        say: Shows a line, if the file system has no locks.

    Raises:
        BlockingIOError: On entering, if another process holds it.
        OSError: On entering, if the folder cannot be written.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._say = say
        self._file: int | None = None

    @staticmethod
    def path_of(folder: Path) -> Path:
        """The file that is locked; it stays when nobody holds it."""
        return folder / ".lock"

    def __enter__(self) -> Self:
        self._file = os.open(self.path_of(self._folder), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._file, 4096)
            self._release()
            if error.errno in NO_LOCKS:
                self._say(
                    f"The file system of {self._folder} has no locks "
                    f"({os.strerror(error.errno)}), so a second run in it would not be noticed."
                )
                return self
            if isinstance(error, BlockingIOError):
                raise BlockingIOError(self._refusal(holder)) from None
            raise
        about = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        }
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(about).encode(), 0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release()

    def _release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _refusal(self, content: bytes) -> str:
        try:
            about = parse_json(content.decode())
            who = f"process {about['pid']} on {about['host']}, since {about['since']}"
        except (ValueError, KeyError, TypeError):
            who = "another process, which has only just begun"
        return (
            f"{str(self._folder)!r} is in use by {who}. Wait until that run ends, end it there, or "
            "choose another --out."
        )
