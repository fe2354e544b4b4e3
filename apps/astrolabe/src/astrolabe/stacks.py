"""What the threads of a process do, and where that is written when a run fails or hangs."""

import re
import sys
import threading
import traceback
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

#: Processes that fail together write into one folder.
TOGETHER = timedelta(seconds=60)
_HUNG = re.compile(r"rank \d+: .*, no progress for \d+ s")
NAME = "%Y-%m-%dT%H-%M-%SZ"


def place_for(folder: Path, rank: int) -> Path:
    """Return the folder of a report: of others that failed just now, or a new one.

    Args:
        folder: Of the run.
        rank: Of this process, of which nothing is in that folder yet.
    """
    now = datetime.now(UTC)
    for place in sorted((folder / "crash").glob("*Z"), reverse=True)[:1]:
        with suppress(ValueError):  # another folder
            age = now - datetime.strptime(place.name, NAME).replace(tzinfo=UTC)
            if abs(age) < TOGETHER and not stacks_path(place, rank).exists():
                return place
    return folder / "crash" / now.strftime(NAME)


def stacks_path(place: Path, rank: int) -> Path:
    """Where a rank writes its stacks in a folder of `place_for`."""
    return place / f"stacks-rank-{rank}.txt"


def headline(rank: int, phase: str, idle: float, *, native: bool = False) -> str:
    """The first line of the stacks of a process that hung."""
    where = " and stands in native code that holds Python's lock" if native else ""
    return f"rank {rank}: {phase}, no progress for {idle:.0f} s{where}"


def way_on(folder: Path) -> str:
    """What to do after a hang."""
    return (
        "torchrun with --max-restarts starts it again from its last checkpoint; otherwise: "
        f"astrolabe train --resume {folder}. If nothing hung, raise distributed.timeout."
    )


def why_hung(folder: Path) -> str | None:
    """Return why a run ended, if it hung and has not gone on since.

    Args:
        folder: Of the run.
    """
    metrics = folder / "metrics.jsonl"
    since = metrics.stat().st_mtime if metrics.exists() else 0.0
    for place in sorted((folder / "crash").glob("*Z"), reverse=True)[:1]:
        found = []
        for path in sorted(place.glob("stacks-rank-*.txt")):
            first = path.read_text("utf-8", "replace").partition("\n")[0]
            if _HUNG.match(first) and path.stat().st_mtime >= since:
                found.append(first)
        if found:
            return f"It ended as it hung: {'; '.join(found)}. Stacks: {place}."
    return None


def stacks() -> str:
    """What each thread of this process does now."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"Thread {names.get(number, number)}:\n{''.join(traceback.format_stack(frame))}"
        for number, frame in sys._current_frames().items()
    )
