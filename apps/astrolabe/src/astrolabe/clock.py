"""Seconds per phase, and how far the present one is."""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

#: Told the phase that runs and the share of it that is done, in [0, 1].
Watcher = Callable[[str, float], None]


class Clock:
    """Measures the phases of a step.

    Args:
        watch: Told when a phase begins and when it gets on.

    Example:
        >>> clock = Clock()
        >>> with clock("sample"):
        ...     pass
        >>> sorted(clock.take())
        ['memory/peak_gib', 'time/sample_s']
    """

    def __init__(self, watch: Watcher = lambda phase, share: None) -> None:
        self._watch = watch
        self._seconds: dict[str, float] = {}
        self._hidden: float | None = None
        self._counts: dict[str, float] = {}
        self._phase = ""

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Measure a block of code as ``phase``."""
        self._phase = phase
        self._watch(phase, 0.0)
        start = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # a kernel belongs to the phase that started it
        seconds = time.perf_counter() - start
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def hide(self, seconds: float) -> None:
        """Count seconds of work that went on beside a phase, and so made no step longer."""
        self._hidden = (self._hidden or 0.0) + seconds

    def count(self, name: str, amount: float) -> None:
        """Add to a figure of the step, which `take` returns by this name."""
        self._counts[name] = self._counts.get(name, 0.0) + amount

    def progress(self, share: float) -> None:
        """Say that ``share`` of the present phase is done."""
        self._watch(self._phase, min(share, 1.0))

    def take(self) -> dict[str, float]:
        """Return ``time/<phase>_s`` since the last call, and ``memory/peak_gib`` of the process.

        If some work was hidden, ``overlap/hidden_s`` too.
        """
        times = {f"time/{phase}_s": seconds for phase, seconds in self._seconds.items()}
        if self._hidden is not None:
            times["overlap/hidden_s"] = self._hidden
        counts, self._counts = self._counts, {}
        self._seconds, self._hidden = {}, None
        return {**times, **counts, "memory/peak_gib": peak_memory()}


def peak_memory() -> float:
    """Largest memory use so far in GiB: of the accelerator if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
