"""``metrics.jsonl`` of a run: read whatever happened to it, and cut back when the run goes on."""

from dataclasses import replace
from pathlib import Path

from astrolabe.line_files import Line, read_lines, set_aside
from astrolabe.watch_metrics import step_problem
from astrolabe_eval.files import write_atomic
from astrolabe_eval.input_files import check_file


def read_metrics(path: Path) -> tuple[list[Line], list[Line]]:
    """Return the lines that hold the metrics of a step, and those that are damaged.

    Raises:
        OSError: If it is there and cannot be read.
    """
    return _sorted_out(_content(path))


def check_metrics(path: Path) -> None:
    """Refuse metrics that a run cannot go on with, as they cannot be read or written.

    Raises:
        OSError: If so.
    """
    _content(path, "r+b")


def go_on_after(path: Path, step: int) -> list[str]:
    """Cut back the metrics to those of finished steps, before the steps after them are made again.

    Of a damaged file each line that can be read stays, the later one of two for the same step, and
    the file as it was is kept beside it.

    Args:
        path: The file; nothing happens if there is none.
        step: The last step that stays; 0: none does.

    Returns:
        What to tell about damage.

    Raises:
        OSError: If it cannot be read or written.
    """
    data = _content(path, "r+b")
    good, bad = _sorted_out(data)
    kept: dict[int, Line] = {}
    newest = 0
    for line in good:
        number = _step(line)
        if number <= newest:
            when = "again" if number in kept else f"after {newest}"
            bad.append(replace(line, entry=None, problem=f"it holds step {number} {when}"))
        kept[number] = line
        newest = max(newest, number)
    whole = b"".join(kept[number].raw + b"\n" for number in sorted(kept) if number <= step)
    told = []
    if bad:
        place = set_aside(path)
        told.append(
            f"{path}: {in_words(bad)}. What can be read stays; the file as it was is kept as "
            f"{place.name}."
        )
    if whole != data:
        write_atomic(path, whole)
    return told


def in_words(damaged: list[Line]) -> str:
    """Name the first damaged line, and how many more there are."""
    first, more = min(damaged, key=lambda line: line.number), len(damaged) - 1
    others = f", and {more} more {'lines are' if more > 1 else 'line is'} damaged" if more else ""
    return f"line {first.number} is damaged ({first.problem}){others}"


def _content(path: Path, mode: str = "rb") -> bytes:
    try:
        check_file(path)
        with path.open(mode) as file:
            content: bytes = file.read()
            return content
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise OSError(
            f"{str(path)!r} cannot be used ({error.strerror}). It must be a file that this user "
            "may read and write: put it back, or move away what is there."
        ) from error


def _sorted_out(data: bytes) -> tuple[list[Line], list[Line]]:
    lines = [_checked(line) for line in read_lines(data)]
    return [one for one in lines if not one.problem], [one for one in lines if one.problem]


def _checked(line: Line) -> Line:
    problem = "" if line.entry is None else step_problem(line.entry)
    return replace(line, entry=None, problem=problem) if problem else line


def _step(line: Line) -> int:
    assert line.entry is not None  # a good one
    step: int = line.entry["step"]
    return step
