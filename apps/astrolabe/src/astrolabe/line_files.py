"""Files that grow by one JSON object a line, such as metrics and lists of what was made.

A process that is killed leaves its last line cut off: that is how such a file ends, and no damage.
Any other line that is no JSON object is damage, and is named by its number. A byte order mark, ends
of lines as Windows writes them, empty lines and a last line without an end are neither.
"""

import json
import os
from codecs import BOM_UTF8
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from astrolabe_eval.files import write_atomic


@dataclass(frozen=True)
class Line:
    """One line of such a file."""

    number: int
    """From 1."""
    raw: bytes
    """As it is in the file, without its end."""
    entry: dict[str, Any] | None  # Any: whatever JSON holds
    """What it holds; None if it is damaged."""
    problem: str
    """What is wrong with a damaged one, as in ``it is no JSON``."""


def read_lines(data: bytes) -> list[Line]:
    r"""Return the lines of a file but for empty ones, and for a last one that was cut off.

    >>> [(line.number, line.entry, line.problem) for line in read_lines(b'{"a": 1}\n[2]\n{"a')]
    [(1, {'a': 1}, ''), (2, None, 'it holds a list and no object')]
    """
    raws = [raw.removesuffix(b"\r") for raw in data.removeprefix(BOM_UTF8).split(b"\n")]
    lines = [_line(number, raw) for number, raw in enumerate(raws, start=1) if raw.strip()]
    if raws[-1].strip() and lines[-1].entry is None:
        lines.pop()
    return lines


def set_aside(path: Path) -> Path:
    """Keep what a file holds under another name, ``NAME.damaged-1`` or the next that is free.

    The file itself stays, until it is replaced.

    Returns:
        Where its content is kept.

    Raises:
        OSError: If there is no room for it.
    """
    for number in count(1):
        place = path.with_name(f"{path.name}.damaged-{number}")
        try:
            os.link(path, place)
        except FileExistsError:
            continue
        except OSError:  # a file system without links
            if place.exists():
                continue
            write_atomic(place, path.read_bytes())
        return place
    raise AssertionError("numbers do not end")


def _line(number: int, raw: bytes) -> Line:
    try:
        entry = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Line(number, raw, None, f"its byte {error.start + 1} is no UTF-8")
    except json.JSONDecodeError as error:
        return Line(number, raw, None, f"it is no JSON from its character {error.colno} on")
    except (ValueError, RecursionError):  # numbers too long, lists too deep
        return Line(number, raw, None, "it is no JSON")
    if not isinstance(entry, dict):
        kinds = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
        kind = kinds.get(type(entry), "a number")
        return Line(number, raw, None, f"it holds {kind} and no object")
    return Line(number, raw, entry, "")
