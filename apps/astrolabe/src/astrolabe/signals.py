"""Ctrl-C, SIGTERM and SIGUSR1: the first asks a run to end after its step, a second one at once.

Schedulers announce the end of a job by SIGTERM, or by SIGUSR1 as long before as they are asked.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")
#: Those of them that this system has.
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


class Interruption:
    """Whether somebody asked to stop."""

    def __init__(self) -> None:
        self.came: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self.came)


@contextmanager
def interruptible(*, aloud: bool = True) -> Iterator[Interruption]:
    """Within the block, note the first signal instead of dying of it.

    Args:
        aloud: Whether to tell what will happen.

    Yields:
        True in a boolean context once a signal came.
    """
    interruption = Interruption()

    def handle(number: int, frame: FrameType | None) -> None:
        # Another kind is no second wish: torchrun answers Ctrl-C with a SIGTERM of its own.
        if number in interruption.came:
            raise KeyboardInterrupt
        interruption.came.add(number)
        # Not through Rich: the signal may have come in the middle of its own printing.
        if aloud and len(interruption.came) == 1:
            os.write(2, b"Finishing this step, then saving. Press Ctrl-C again to drop the step.\n")

    previous = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
