"""What is kept of every step: metrics.jsonl always, TorchRL loggers on request."""

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from torchrl.record.loggers import Logger, get_logger

from astrolabe.errors import ConfigError
from astrolabe.run_folder import RunFolder

log = logging.getLogger(__name__)


class Tracker:
    """Appends one line per step to ``metrics.jsonl``; a line is on the disk before the next step.

    On a full disk lines wait until there is room.

    Args:
        folder: Of the run.
        backends: Names of TorchRL loggers that get the same numbers.

    Raises:
        ConfigError: If a backend's package is not installed.
    """

    def __init__(self, folder: RunFolder, backends: Sequence[str] = ()) -> None:
        self._loggers = [_logger(name, folder.path) for name in backends]
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
        for logger in self._loggers:
            for name, value in metrics.items():
                logger.log_scalar(name, value, step=step)


def read_curves(folder: RunFolder) -> dict[str, tuple[list[int], list[float]]]:
    """Read the curves of a run: metric to steps and values, those without a number left out."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    if not folder.metrics.exists():
        return curves
    for line in folder.metrics.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        step = entry.pop("step")
        for name, value in entry.items():
            if value is not None:
                steps, values = curves.setdefault(name, ([], []))
                steps.append(step)
                values.append(value)
    return curves


def _logger(name: str, path: Path) -> Logger:
    try:
        return get_logger(name, logger_name=str(path / "logs"), experiment_name=path.name)
    except ImportError as error:
        raise ConfigError(
            f"logging.backends: {name!r} needs a package that is not installed ({error}). "
            f"Install it, or remove {name!r}."
        ) from error
