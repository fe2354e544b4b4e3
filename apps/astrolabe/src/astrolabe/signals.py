"""Ctrl-C and SIGTERM: the first asks a run to end after its step, the second ends it at once."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Whether somebody asked to stop."""

    asked = False

    def __bool__(self) -> bool:
        return self.asked


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Within the block, note the first signal instead of dying of it.

    Yields:
        True in a boolean context once a signal came.
    """
    interruption = Interruption()

    def handle(number: int, frame: FrameType | None) -> None:
        if interruption.asked:
            raise KeyboardInterrupt
        interruption.asked = True
        # Not through Rich: the signal may have come in the middle of its own printing.
        os.write(2, b"Finishing this step, then saving. Press Ctrl-C again to drop the step.\n")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
