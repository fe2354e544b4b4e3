"""What a process does that only samples and scores."""

from collections.abc import Callable, Iterator

from astrolabe.clock import Clock
from astrolabe.collect import collected
from astrolabe.compose import Parts, sampling_copy
from astrolabe.config import Run
from astrolabe.invariants import check_pairs
from astrolabe.train import reseed


def sample_only(
    run: Run, parts: Parts, clock: Clock, first: int, asked: Callable[[], bool] = lambda: False
) -> Iterator[int]:
    """Sample and score for the processes that learn, until they have enough.

    Args:
        run: The settings.
        parts: From `compose`, or restored to the state after ``first`` steps.
        clock: Measures the phases and tells whoever watches.
        first: Steps that are finished already.
        asked: Whether this process was asked to stop; the others then end after their step.

    Yields:
        The number of each step that was sampled, from 1.
    """
    handover = parts.handover
    assert handover is not None  # or nobody would learn
    values = parts.snapshots.values(sampling_copy(run))
    videos = collected(run, parts, clock, first)
    for step in range(first, run.train.steps):
        if step > first and not run.rollout.lag:
            with clock("wait"):
                if not handover.receive(values):
                    return
        reseed(parts, run.train.seed, step)
        batch, shown = next(videos)
        if step == first:
            check_pairs(parts, batch)
        measured = clock.take()
        with clock("wait"):
            wanted = shown if len(shown) and run.logging.shows(step + 1) else None
            if not handover.give(batch, wanted, measured, values, asked=asked()):
                return
        yield step + 1
    with clock("wait"):  # until the last step is learned and saved
        handover.receive(values)
