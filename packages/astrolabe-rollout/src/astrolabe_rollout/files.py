"""Files and folders that are either complete or absent; all that this package writes goes here.

What is written grows beside its target, on the same disk. An error names the target and what is in
its way, also where the operating system or a library hides one of them.
"""

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from astrolabe_rollout.extras import wan_extra

with wan_extra():
    from safetensors import SafetensorError

#: How safetensors tells, in a text alone, what the operating system said.
_HIDDEN = re.compile(r"\(os error (\d+)\)")


@contextmanager
def replacing(target: str | Path) -> Iterator[Path]:
    """Give the place where a file or folder is written before it takes its own.

    Missing parent folders are made. On any failure, a full disk included, what was at the target
    is untouched and nothing is left beside it.

    Args:
        target: The file or folder to make or replace.

    Yields:
        A path of the same name, in a hidden folder beside it, where nothing is yet.

    Raises:
        OSError: As `check_place`; if the disk is full or fails, with ``target`` as its
            ``filename``.
    """
    target = Path(target)
    check_place(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=target.parent) as folder:
        fresh, earlier = Path(folder) / target.name, Path(folder) / ".earlier"
        with _named(target, folder):
            yield fresh
            for path in (fresh, *fresh.rglob("*")):
                force(path)
            if target.is_dir():  # no folder takes the place of another by itself
                os.replace(target, earlier)
            try:
                os.replace(fresh, target)
            except OSError:
                if earlier.exists():
                    os.replace(earlier, target)
                raise


def check_place(target: str | Path) -> None:
    """Refuse a path at which nothing can be written, before the work whose result it would hold.

    Raises:
        OSError: If something above it is a file, or its folder is not writable; ``filename`` is
            what is in the way.
    """
    parents = (*Path(target).parents, Path("/"))
    there = next(parent for parent in parents if os.path.lexists(parent))
    if not there.is_dir():
        raise _error(errno.ENOTDIR, there)
    if not os.access(there, os.W_OK | os.X_OK):
        read_only = os.statvfs(there).f_flag & os.ST_RDONLY
        raise _error(errno.EROFS if read_only else errno.EACCES, there)


@contextmanager
def _named(target: Path, folder: str) -> Iterator[None]:
    """Within the block, what the system refuses below ``folder`` is an error that names ``target``.

    Libraries that write tensors raise errors of their own, of which some only tell in their text
    or by their context what the system said.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        refused = _refused(error)
        if refused is None or not (refused.filename or folder).startswith(folder):
            raise
        raise _error(refused.errno or 0, target) from error


def _refused(error: BaseException | None) -> OSError | None:
    """What the system said, of an error or of what led to it; None if it refused nothing."""
    while error is not None:
        if isinstance(error, OSError):
            return error if error.errno else None
        if isinstance(error, SafetensorError) and (found := _HIDDEN.search(str(error))):
            return OSError(int(found[1]), "")
        error = error.__context__
    return None


def _error(code: int, path: Path) -> OSError:
    return OSError(code, os.strerror(code), str(path))


def force(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
