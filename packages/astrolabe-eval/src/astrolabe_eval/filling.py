"""Make the samples that a `SuiteFolder` lacks, batch by batch."""

import logging
from collections.abc import Callable, Iterator

from astrolabe_eval.scoring import Evaluation
from astrolabe_eval.suite_folder import SuiteFolder
from astrolabe_eval.suites import Suite

_log = logging.getLogger(__name__)


def fill(
    folder: SuiteFolder,
    evaluate: Callable[[Suite], Evaluation],
    *,
    rank: int = 0,
    processes: int = 1,
    batch_size: int = 8,
) -> Iterator[int]:
    """Make the samples that a folder lacks.

    Damaged files are moved away first, each with a warning (`SuiteFolder.mend`). Samples that could
    not be scored the last time come last and are made and scored again: what failed may answer now.
    What has no score once more stays without.

    The batches are the same at every call and with any number of processes, as the last bits of a
    score may depend on the batch: one that lacks a sample is made again as a whole, and of it what
    was lacking is kept.

    Args:
        folder: Where they go.
        evaluate: Makes and scores a batch, with its videos (`evaluate_suite`).
        rank: Number of this process.
        processes: How many share the work; each takes every so-manieth batch.
        batch_size: Samples made together, which are lost together if the process is killed.

    Yields:
        How many samples were kept, after each batch.

    Raises:
        OSError: If a file cannot be read or written.
    """
    for line in folder.mend(rank, processes, batch_size):
        _log.warning("%s", line)
    todo = set(folder.todo(rank, processes, batch_size))
    again = set(folder.unscored(rank, processes, batch_size))
    batches = folder.batches(rank, processes, batch_size)
    for batch in sorted(batches, key=todo.isdisjoint):
        wanted = [index for index in batch if index in todo or index in again]
        if not wanted:
            continue
        part = _part(folder.suite, batch)
        found = evaluate(part)
        for index in wanted:
            place = index - batch.start
            folder.put(index, found.videos[place], _one(found, part, place))
        yield len(wanted)


def _part(suite: Suite, batch: range) -> Suite:
    chosen = slice(batch.start, batch.stop)
    return Suite(suite.name, suite.prompts[chosen], suite.seeds[chosen])


def _one(found: Evaluation, suite: Suite, place: int) -> Evaluation:
    """The result of one sample of a batch."""
    return Evaluation(
        suite=_part(suite, range(place, place + 1)),
        rewards={name: row[place : place + 1] for name, row in found.rewards.items()},
        judges={name: row[place : place + 1] for name, row in found.judges.items()},
    )
