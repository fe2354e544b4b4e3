"""The metrics of a run as they grow, read a piece at a time.

A run may be training while it is read: its last line may be torn, and when it is resumed its
metrics are cut back to a checkpoint and grow again, perhaps beyond where a reader was. So a reader
keeps no state here; it brings back how far it was and a digest of what lay there.
"""

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

from astrolabe.line_files import read_lines
from astrolabe_eval.input_files import check_file

CHUNK = 4 * 2**20
"""Bytes that are read at a time."""
_TAIL = 4096  # bytes before an offset by which a file is known again


class Piece(TypedDict):
    """What came to the metrics since the last time."""

    offset: int
    """Bytes that are read, to be given next time."""
    mark: str
    """Digest of the last of them, to be given next time."""
    reset: bool
    """Whether what the reader has is void, as the file no longer begins with it."""
    steps: list[float | None]
    values: dict[str, list[float | None]]
    """Of each metric, one for each of ``steps``; None where there is no number."""
    damaged: int
    """Lines that could not be read and were left out."""
    more: bool
    """Whether there is more to be read at once."""


def read_piece(path: Path | None, offset: int = 0, mark: str = "") -> Piece:
    """Read what came to ``metrics.jsonl`` since the last time.

    Args:
        path: The file; None: there is none yet.
        offset: As in the last answer; 0 at first.
        mark: As in the last answer.
    """
    if path is None:
        return Piece(
            offset=0, mark="", reset=offset > 0, steps=[], values={}, damaged=0, more=False
        )
    check_file(path)
    with path.open("rb") as file:
        size = file.seek(0, 2)
        reset = offset > 0 and not (offset <= size and _mark(file, offset) == mark)
        begin = 0 if reset else offset
        file.seek(begin)
        data = file.read(CHUNK)
        full = len(data) == CHUNK
        # A last line without an end is still being written, unless no line is that long.
        end = data.rfind(b"\n") + 1 or (CHUNK if full else 0)
        mark = _mark(file, begin + end)
    lines = [line for line in data[:end].split(b"\n") if line.strip()]
    entries = [entry for line in lines if (entry := parse(line))]
    names = dict.fromkeys(name for entry in entries for name in entry if name != "step")
    return Piece(
        offset=begin + end,
        mark=mark,
        reset=reset,
        steps=[entry["step"] for entry in entries],
        values={name: [entry.get(name) for entry in entries] for name in names},
        damaged=len(lines) - len(entries),
        more=full,
    )


def last_entry(path: Path) -> dict[str, float | None]:
    """Read the last line that is whole; empty if there is none."""
    check_file(path)
    with path.open("rb") as file:
        file.seek(max(file.seek(0, 2) - 2**16, 0))
        lines = file.read().split(b"\n")[:-1]
    return next((entry for line in reversed(lines) if (entry := parse(line))), {})


def parse(line: bytes) -> dict[str, float | None] | None:
    """Metrics by name and ``step``; None if the line is damaged.

    >>> parse(b'{"step": 3, "reward/total": 0.5, "loss/kl": NaN}')
    {'step': 3, 'reward/total': 0.5, 'loss/kl': None}
    """
    found = read_lines(line + b"\n")
    entry = found[0].entry if found else None
    if entry is None or step_problem(entry):
        return None
    return {name: number(value) for name, value in entry.items()}


def step_problem(entry: Mapping[str, Any]) -> str:  # Any: whatever JSON holds
    """What is wrong with the step that the metrics in a line are of; nothing if it is one."""
    step = entry.get("step")
    return "" if type(step) is int and step > 0 else f"its step is {step!r:.40}"


def number(value: Any) -> float | None:  # Any: whatever JSON holds
    """A finite number as it is; None for everything else."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if known and abs(value) <= sys.float_info.max else None


def _mark(file: BinaryIO, offset: int) -> str:
    begin = max(offset - _TAIL, 0)
    file.seek(begin)
    return hashlib.sha256(file.read(offset - begin)).hexdigest()
