"""What a run that ended unexpectedly leaves to be read: ``<run>/crash/<UTC time>/``.

Every file goes through `astrolabe.masking`, so that the folder can be shown to others.
"""

import json
import logging
import os
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from astrolabe.config import Run
from astrolabe.masking import known_secrets, mask, mask_settings
from astrolabe.metrics_file import in_words, read_metrics
from astrolabe.rank_log import path_of, read_tail
from astrolabe.run_folder import RunFolder
from astrolabe.stacks import NAME, place_for, stacks
from astrolabe.versions import environment, machine, package_versions
from astrolabe.world import World
from astrolabe_eval.files import write_atomic

log = logging.getLogger(__name__)

STEPS, LINES = 20, 200
"""How much of the metrics and of each log is kept."""

README = """\
What a run of astrolabe left when it ended unexpectedly. To report it, attach this folder.

stacks-rank-N.txt      the error of rank N with its traceback, and what each of its threads did; of
                       several ranks the one with the earliest time came first, others may only have
                       lost their connection to it
log-tail-rank-N.txt    the last {lines} lines of the log of rank N
metrics-tail.jsonl     the last {steps} steps
config.json            the settings
versions.json          Python, packages, GPUs, driver, processor, memory, number of processes

Keys, tokens, passwords and credentials in addresses were replaced by ***, the home directory by ~.
Prompts, paths and the names of your files are still there: look before you publish it.
"""


def report(folder: RunFolder, run: Run, error: BaseException, world: World) -> Path:
    """Write a crash report; never raise.

    What cannot be written or found out is left out.

    Args:
        folder: Of the run.
        run: Its settings.
        error: What ended it.
        world: The processes; not collective, as the others may be gone.

    Returns:
        The folder of the report.
    """
    place = folder.path / "crash"
    try:
        place = place_for(folder.path, world.rank)
        contents = _contents(folder, run, error, world)
    except Exception as problem:
        _give_up(problem)
        return place
    for name, content in contents.items():
        try:
            write_atomic(place / name, content().encode("utf-8", "backslashreplace"))
        except Exception as problem:
            _give_up(problem)
    return place


def _contents(
    folder: RunFolder, run: Run, error: BaseException, world: World
) -> dict[str, Callable[[], str]]:
    """The files of a report, by what makes their text, the most telling first."""
    settings = asdict(run)
    known = known_secrets(settings, os.environ)
    metrics = {"metrics-tail.jsonl": lambda: _metrics_tail(folder, known)}
    if not folder.metrics.exists():
        metrics.clear()
    logs = {
        f"log-tail-rank-{rank}.txt": partial(_log_tail, path, known)
        for rank in range(world.size)
        if (path := path_of(folder.path, rank)).exists()
    }
    return {
        f"stacks-rank-{world.rank}.txt": lambda: mask(describe(error) + stacks(), known),
        "README.txt": lambda: README.format(lines=LINES, steps=STEPS),
        "config.json": lambda: json.dumps(mask_settings(settings, known), indent=2) + "\n",
        "versions.json": lambda: json.dumps(_versions(world, known), indent=2) + "\n",
        **metrics,
        **logs,
    }


def describe(error: BaseException) -> str:
    """An error with its traceback and those that led to it."""
    return f"{datetime.now(UTC):{NAME}}\n{''.join(traceback.format_exception(error))}\n"


def _versions(world: World, known: list[str]) -> dict[str, Any]:  # Any: as `machine`
    return {
        **machine(),
        "processes": world.size,
        "hosts": int(os.environ.get("GROUP_WORLD_SIZE", "1")),  # torchrun's; its groups are hosts
        "packages": package_versions(),
        "environment": mask_settings(environment(), known),
    }


def _metrics_tail(folder: RunFolder, known: list[str]) -> str:
    good, damaged = read_metrics(folder.metrics)
    rows = [line.entry for line in good[-STEPS:]]
    lost = [{"damaged": in_words(damaged)}] if damaged else []
    return "".join(f"{json.dumps(mask_settings(row, known))}\n" for row in [*lost, *rows])


def _log_tail(path: Path, known: list[str]) -> str:
    return mask("\n".join([*read_tail(path, LINES), ""]), known)


def _give_up(problem: Exception) -> None:
    with suppress(Exception):  # nothing may come between the user and the error itself
        log.warning("a part of the crash report cannot be written: %r", problem)
