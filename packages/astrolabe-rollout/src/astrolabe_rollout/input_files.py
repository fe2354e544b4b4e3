"""Files as they are read: regular ones of a bounded size, text in UTF-8, JSON of a bounded depth.

A pipe, a socket or a device may never end and a folder is no file: they are refused before anything
waits for them. Packages that share no code have this module each, the same to the letter.
"""

import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

#: Bytes of a file that is read as a whole, at most.
MOST: Final = 2**28
#: How deep lists and objects may lie in one another; more would end in a recursion somewhere.
DEPTH: Final = 64

_MARK: Final = b"\xef\xbb\xbf"
_OTHERS: Final = (
    (stat.S_ISDIR, errno.EISDIR, "it is a folder, not a file"),
    (stat.S_ISFIFO, errno.EINVAL, "it is a pipe, not a file"),
    (stat.S_ISSOCK, errno.EINVAL, "it is a socket, not a file"),
    (stat.S_ISCHR, errno.EINVAL, "it is a device, not a file"),
    (stat.S_ISBLK, errno.EINVAL, "it is a device, not a file"),
)


def check_file(path: str | Path) -> None:
    """Refuse what is no file that can be read; nothing waits, whatever it is.

    Raises:
        OSError: If there is none, it is no regular file, it may not be read, links lead to it in a
            circle, or no file can have that name.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError:  # a zero byte, or half of a character
        raise OSError(errno.EINVAL, "no file can have this name", str(path)) from None
    for is_so, number, problem in _OTHERS:
        if is_so(mode):
            raise OSError(number, problem, str(path))
    with open(path, "rb"):
        pass  # permissions do not tell whether it can be read; opening it does


def read_bytes(path: str | Path, most: int = MOST) -> bytes:
    """Read a file as a whole.

    Args:
        path: A regular file.
        most: Bytes that it has at most.

    Raises:
        OSError: As `check_file`, or if it is larger.
    """
    check_file(path)
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most / 2**20:.0f} MiB", str(path))
    return data


def read_text(path: str | Path, most: int = MOST) -> str:
    """Read UTF-8 text; a byte order mark at its beginning is dropped.

    Raises:
        OSError: As `read_bytes`.
        ValueError: If it is not UTF-8; names the line and the byte.
    """
    data = read_bytes(path, most).removeprefix(_MARK)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = error.start - data.rfind(b"\n", 0, error.start)
        raise ValueError(
            f"line {line} is not UTF-8: its byte {byte} is 0x{data[error.start]:02x}"
        ) from error


def read_json(path: str | Path, *, whole: bool = True) -> Any:  # Any: whatever JSON holds
    """Read a JSON value; see `parse_json`.

    Raises:
        OSError: As `read_bytes`.
        ValueError: If it is not UTF-8, with the line, or as `parse_json`.
    """
    return parse_json(read_text(path), whole=whole)


def parse_json(text: str, *, whole: bool = True) -> Any:  # Any: whatever JSON holds
    """Parse a JSON value.

    Args:
        text: The value.
        whole: Whether texts in it must be of whole characters, which files and screens take.

    Raises:
        ValueError: If it is none, with the line; if a text in it holds half of a character; or as
            `check_depth`.
    """
    try:
        value = json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    check_depth(value)
    if whole and "\\u" in text:  # the only way to halves of characters
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("a text holds half of a character (\\ud800 to \\udfff)") from None
    return value


def _whole(digits: str) -> int:
    if len(digits) > 300:  # what does not fit into a float cannot be compared with one
        raise ValueError(f"a whole number in it has {len(digits)} digits")
    return int(digits)


def check_depth(value: Any) -> None:  # Any: whatever JSON or TOML holds
    """Refuse lists and objects that lie too deep in one another.

    Raises:
        ValueError: If so.
    """
    level = [value]
    for _ in range(DEPTH):
        level = [inner for one in level for inner in _inside(one)]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


_TOO_DEEP: Final = f"lists or objects lie more than {DEPTH} deep in one another"


def _inside(value: Any) -> Iterator[Any]:  # Any: see `check_depth`
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value
