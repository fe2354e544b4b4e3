"""Files that tell whether they still hold what was written, and a place for those that do not.

A sealed file is JSON whose last entry is the SHA-256 of all bytes before it. Nothing of it can
change and be believed, and nothing is needed to read it but JSON.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, Final, NamedTuple

from astrolabe_eval.errors import DamageError

#: The entry that seals a file.
SEAL: Final = "sha256"
MISSING: Final = "is missing"
CHANGED: Final = "does not hold what was written"
_TAIL: Final = re.compile(rb',"%s":"([0-9a-f]{64})"\}\Z' % SEAL.encode())


class Content(NamedTuple):
    """What a file holds, and whether it was sealed; files of earlier versions were not."""

    entries: dict[str, Any]  # Any: what JSON holds
    sealed: bool


def seal(entries: Mapping[str, Any], *, indent: int | None = None) -> bytes:
    """Return entries as JSON that ends with its digest.

    Args:
        entries: At least one, and none called ``"sha256"``.
        indent: As in ``json.dumps``.

    Raises:
        ValueError: If a number is not finite.

    Example:
        >>> unseal(seal({"score": 0.5}))
        Content(entries={'score': 0.5}, sealed=True)
    """
    text = json.dumps(entries, indent=indent, ensure_ascii=False, allow_nan=False)
    body = text.removesuffix("}").rstrip().encode("utf-8", "surrogatepass")
    return b'%s,"%s":"%s"}' % (body, SEAL.encode(), hashlib.sha256(body).hexdigest().encode())


def unseal(data: bytes) -> Content:
    """Read entries and check their seal, if there is one.

    Raises:
        DamageError: If it is no JSON object, or not the one that was sealed.
    """
    if not data:
        raise DamageError("is empty")
    try:
        entries = json.loads(data)
    except (ValueError, RecursionError):
        raise DamageError("is no JSON") from None
    if not isinstance(entries, dict):
        raise DamageError(f"holds a {type(entries).__name__} and no JSON object")
    found = _TAIL.search(data)
    body = data if found is None else data[: found.start()]
    digest = entries.pop(SEAL, None)
    if digest is not None and (found is None or digest != hashlib.sha256(body).hexdigest()):
        raise DamageError(CHANGED)
    return Content(entries, digest is not None)


def read_sealed(path: Path) -> Content:
    """Read a file that `seal` made, or one of an earlier version.

    Raises:
        DamageError: If it is missing, or as in `unseal`.
        OSError: If it is there and cannot be read.
    """
    check_file(path)
    return unseal(path.read_bytes())


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        DamageError: If it is missing, or no file.
        OSError: If it is there and cannot be read.
    """
    check_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(path: Path) -> None:
    """Refuse what is no file.

    Raises:
        DamageError: If it is missing, or no file.
        OSError: If that cannot be told.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise DamageError(MISSING) from None
    if not S_ISREG(mode):
        raise DamageError("is a folder" if S_ISDIR(mode) else "is no file")


def set_aside(path: Path, root: Path) -> Path:
    """Move a damaged file, or what lies in its place, to ``root/damaged``; keep all that are there.

    Args:
        path: Below ``root``.
        root: The folder that it belongs to.

    Returns:
        Where it is then.

    Raises:
        FileNotFoundError: If there is nothing.
        OSError: If it cannot be moved.
    """
    path.lstat()
    inside = root / "damaged" / path.relative_to(root)
    inside.parent.mkdir(parents=True, exist_ok=True)
    places = (inside.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(1))
    place = next(place for place in places if not os.path.lexists(place))
    return path.rename(place)
