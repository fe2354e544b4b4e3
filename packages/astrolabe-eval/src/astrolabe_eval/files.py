"""Files that are either complete or absent; everything that this package writes goes through here.

The temporary file lies beside the target, so that it is on the same disk. An error names the target
and what is in its way, also where the operating system or a library names neither.
"""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: What is refused with these may be the writing, even if the error does not name the file. All
#: others may come from anything else that happens while a file grows.
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give the place where a file is written before it takes its own, at the end of the block.

    Missing parent folders are made. On any failure, a full disk included, the old file is untouched
    and nothing is left beside it.

    Args:
        path: The file to make or replace.

    Yields:
        A hidden path beside it, of the same ending, where nothing is yet.

    Raises:
        OSError: As `check_place`; if the disk is full or fails, with ``path`` as its ``filename``.
    """
    path = Path(path)
    check_place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of a fixed length: with the name of the target in it, it could be too long where that is not.
    part = path.with_name(f".{secrets.token_hex(8)}.part{path.suffix[:16]}")
    try:
        with _named(path, part):
            yield part
            _force(part)
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write ``data`` so that a reader sees the old file or the new one, never a part.

    Args:
        path: The file to make or replace; missing folders are made.
        data: Its whole content.

    Raises:
        OSError: As `replacing`.
    """
    with replacing(path) as part:
        part.write_bytes(data)


def append_line(path: str | Path, line: bytes) -> None:
    """Add a line to a file of lines; it is on the disk, or it is not there.

    A part of a line that a killed process left is ended first, so that it spoils no other.

    Args:
        path: The file; it and its folder are made if missing.
        line: Without a line feed.

    Raises:
        OSError: As `replacing`.
    """
    path = Path(path)
    check_place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _named(path, path), path.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        line = (b"\n" if ends_within_a_line(file.fileno()) else b"") + line + b"\n"
        try:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise


def ends_within_a_line(file: int) -> bool:
    """Whether a file that is open for reading ends without the end of a line.

    Whoever appends to it then begins a new line, or both lines are lost.
    """
    size = os.fstat(file).st_size
    return size > 0 and os.pread(file, 1, size - 1) != b"\n"


def check_place(path: str | Path) -> None:
    """Refuse a path at which no file can be written, before the work whose result it would hold.

    Raises:
        OSError: If it is a folder, something above it is a file, or its folder is not writable;
            ``filename`` is what is in the way.
    """
    path = Path(path)
    if path.is_dir():
        raise _error(errno.EISDIR, path)
    there = next(parent for parent in (*path.parents, Path("/")) if os.path.lexists(parent))
    if not there.is_dir():
        raise _error(errno.ENOTDIR, there)
    if not os.access(there, os.W_OK | os.X_OK):
        full = os.statvfs(there).f_flag & os.ST_RDONLY
        raise _error(errno.EROFS if full else errno.EACCES, there)


@contextmanager
def _named(path: Path, part: Path) -> Iterator[None]:
    """Within the block, what the disk refuses to ``part`` is an error that names ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno in _OF_DISKS and error.filename in (None, str(part)):
            raise _error(error.errno, path) from error
        raise


def _error(code: int, path: Path) -> OSError:
    return OSError(code, os.strerror(code), str(path))


def _force(path: Path) -> None:
    """Wait until a file is on the disk: else a crash may leave the new name on an empty file."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
