"""What a step computes and moves on one process, and what a run writes."""

from statistics import mean
from typing import Final

from astrolabe.config import Rollout
from astrolabe.plan_memory import DOUBLE, FLOAT, Bytes
from astrolabe.plan_needs import Needs
from astrolabe.plan_passes import Figures, along
from astrolabe.plan_time import Work, around, gathered, work

#: Context and denoising of old, reference and policy, and the way back.
PASSES_OF_UPDATE: Final = 7
#: Of H.264 as samples are written, an estimate.
BYTES_PER_PIXEL: Final = 0.012


def step_work(needs: Needs) -> dict[str, Work]:
    """Return what the phases of a step do on one process."""
    share, sizes = needs.share, needs.sizes
    chunks = share.batches * needs.run.rollout.windows * needs.run.rollout.num_frames // sizes.chunk
    passes = chunks * (sizes.steps + 1)
    weights = gathered(sizes.base, needs.ranks)
    # Rewards that share weights and ask the same question compute it once.
    scoring = {(one.name, one.question): one.flops for one in needs.rewards}
    return {
        "sample": work(
            _sampled(needs),
            share.batches,
            traffic=passes * (sizes.base + needs.sampled(0).held),
            network=passes * weights,
        ),
        "decode": work(needs.decoded(), chunks),
        "score": Work(flops=share.windows * sum(scoring.values())),
        "update": work(
            needs.learned(),
            share.windows / share.micro_batch,
            traffic=PASSES_OF_UPDATE * share.micro_batches * sizes.base,
            network=PASSES_OF_UPDATE * share.micro_batches * weights
            + share.updates * around(DOUBLE * sizes.trained, needs.gpus),
        ),
    }


def _sampled(needs: Needs) -> Figures:
    """Figures of sampling all trained windows of a batch, with a history of average length."""
    rollout = needs.run.rollout
    alone = first = needs.sampled(0)
    start = average_start(rollout)
    if rollout.shared and start:
        first = along(alone, needs.sampled(1), min(start, 1.0))
        if start > 1:
            first = needs.sampled(1) + needs.history() * (start - 1)
    return first + alone * (rollout.windows - 1)


def average_start(rollout: Rollout) -> float:
    """Return the first trained window of the longest videos, on average."""
    lengths = [rollout.length, rollout.windows, *(length for _, length in rollout.curriculum)]
    last = max(lengths) - rollout.windows
    if rollout.start == "choice":
        return mean([start for start in rollout.starts if start <= last] or [0])
    return {"first": 0.0, "last": float(last), "uniform": last / 2}[rollout.start]


def disk(needs: Needs) -> Bytes:
    """Return what a run writes at most."""
    run, sizes, share = needs.run, needs.sizes, needs.share
    logging, frames = run.logging, run.rollout.windows * sizes.window
    times = 1 + run.train.steps // logging.samples_every if logging.samples_every else 0
    # The adapter as it is trained and as it is published, two snapshots, two moments.
    checkpoint = 6 * FLOAT * sizes.trained
    window = FLOAT * sizes.latent * (run.rollout.num_frames + sizes.context)
    minibatch = needs.gpus * share.windows // share.updates
    return {
        "one checkpoint": checkpoint,
        "all, and one being written": checkpoint * (logging.keep + logging.keep_best + 1),
        "sample videos": int(
            times * logging.samples * frames * sizes.picture / 3 * BYTES_PER_PIXEL
        ),
        "batches kept if losses are not finite": run.guard.max_skipped * window * minibatch,
    }
