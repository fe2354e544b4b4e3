"""What the threads of a process do, and where that is written when a run fails or hangs."""

import sys
import threading
import traceback
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

#: Processes that fail together write into one folder.
TOGETHER = timedelta(seconds=60)
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
            if abs(age) < TOGETHER and not (place / f"stacks-rank-{rank}.txt").exists():
                return place
    return folder / "crash" / now.strftime(NAME)


def stacks() -> str:
    """What each thread of this process does now."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"Thread {names.get(number, number)}:\n{''.join(traceback.format_stack(frame))}"
        for number, frame in sys._current_frames().items()
    )
