"""What is kept of every step: metrics.jsonl always, trackers on request.

A tracker never ends a run: one that fails is told of, and left alone if it goes on failing.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from astrolabe.errors import ConfigError
from astrolabe.metrics_file import in_words, read_metrics
from astrolabe.run_folder import RunFolder
from astrolabe.trackers import close_tracker, open_tracker
from astrolabe.watch_metrics import number

if TYPE_CHECKING:
    from torchrl.record.loggers import Logger

#: Failures in a row after which a tracker is left alone.
PATIENCE: Final = 3

log = logging.getLogger(__name__)


class Tracker:
    """Appends one line per step to ``metrics.jsonl``; a line is on the disk before the next step.

    On a full disk lines wait until there is room.

    Args:
        folder: Of the run.
        backends: Names of trackers that get the same numbers.
        options: Arguments of each tracker.
        say: Tells that a tracker fails.

    Raises:
        ConfigError: If an option of a tracker is unknown.
    """

    def __init__(
        self,
        folder: RunFolder,
        backends: Sequence[str] = (),
        options: Mapping[str, Mapping[str, Any]] | None = None,
        say: Callable[[str], None] = log.warning,
    ) -> None:
        self._say = say
        self._failed: dict[str, int] = {}
        self._loggers: dict[str, Logger] = {}
        for name in backends:
            try:
                self._loggers[name] = open_tracker(name, (options or {}).get(name, {}), folder.path)
            except ConfigError:
                raise
            except Exception as error:  # every tracker has errors of its own
                say(f"The tracker {name} cannot be opened and gets nothing: {_reason(error)}.")
        # Without a buffer, whose content could not be told from what is on the disk.
        self._file = folder.metrics.open("ab", buffering=0)
        self._waiting = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        for name, logger in self._loggers.items():
            try:
                close_tracker(name, logger)
            except Exception as error_of_tracker:  # every tracker has errors of its own
                self._say(f"The tracker {name} was not closed: {_reason(error_of_tracker)}.")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Keep the metrics of a finished step, numbered from 1."""
        # JSON has no NaN; null says that there was no number.
        numbers = {name: v if math.isfinite(v) else None for name, v in metrics.items()}
        self._waiting += (json.dumps({"step": step, **numbers}) + "\n").encode()
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            log.warning("metrics.jsonl cannot be written (%s); its lines wait", error.strerror)
        known = {name: value for name, value in numbers.items() if value is not None}
        for name, logger in list(self._loggers.items()):
            try:
                logger.log_metrics(known, step=step)
                self._failed[name] = 0
            except Exception as error:  # every tracker has errors of its own
                self._forgive(name, error)

    def _forgive(self, name: str, error: Exception) -> None:
        """Say once that a tracker fails; leave it alone once it has failed too often."""
        failed = self._failed[name] = self._failed.get(name, 0) + 1
        if failed == 1:
            self._say(f"The tracker {name} failed; the run goes on: {_reason(error)}.")
        if failed >= PATIENCE:
            del self._loggers[name]
            self._say(f"The tracker {name} failed {failed} times in a row and gets no more.")


def read_curves(folder: RunFolder) -> dict[str, tuple[list[int], list[float]]]:
    """Read the curves of a run: metric to steps and values, NaN where there was no number.

    Damaged lines are left out, with a warning.

    Raises:
        OSError: If the metrics are there and cannot be read.
    """
    curves: dict[str, tuple[list[int], list[float]]] = {}
    good, damaged = read_metrics(folder.metrics)
    if damaged:
        log.warning("%s: %s; the curves lack that.", folder.metrics, in_words(damaged))
    for entry in (line.entry or {} for line in good):
        step = entry.pop("step")
        for name, found in entry.items():
            value = number(found)
            steps, values = curves.setdefault(name, ([], []))
            steps.append(step)
            values.append(math.nan if value is None else value)
    return {name: curve for name, curve in curves.items() if any(map(math.isfinite, curve[1]))}


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0].rstrip(".") or type(error).__name__
