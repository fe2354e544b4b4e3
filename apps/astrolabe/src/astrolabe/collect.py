"""Sample the videos of a step and score them, as many at a time as the machine holds."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import TypeAlias

import torch
from tensordict import TensorDictBase

from astrolabe.clock import Clock
from astrolabe.compose import Parts
from astrolabe.config import Run
from astrolabe.shown import Extremes
from astrolabe_objectives.snapshots import OLD
from astrolabe_rollout.collector import make_collector

PIXELS = ("video", "pixels")
OVERVIEW = ("video", "overview")


#: Windows of a step ``[n, T]`` without pixels, and some of its videos with them.
Collected: TypeAlias = tuple[TensorDictBase, TensorDictBase]


def collected(run: Run, parts: Parts, clock: Clock, first: int) -> Iterator[Collected]:
    """Sample and score step after step, from step ``first`` on; each when it is asked for."""
    steps = run.train.steps - first
    batches = iter(make_collector(parts.env, parts.behaviour, steps * parts.env.sampler.parts))
    for _ in range(steps):
        yield collect(batches, parts, run, clock)


def received(run: Run, parts: Parts, clock: Clock, first: int) -> Iterator[Collected]:
    """Get the windows of each step from the processes that sample; see `collected`."""
    handover, sampler = parts.handover, parts.env.sampler
    assert handover is not None  # or nobody would send any
    for _ in range(first, run.train.steps):
        with clock("wait"):
            taken = handover.take(parts.snapshots.values(OLD))
        for _ in range(sampler.parts):  # what is saved is where those that sample are
            sampler.advance()
        for name, amount in taken.figures.items():
            clock.count(name, amount)
        yield taken.batch, taken.shown


def collect(batches: Iterator[TensorDictBase], parts: Parts, run: Run, clock: Clock) -> Collected:
    """Sample and score a step's videos; a part of them is scored while the next is sampled.

    All of them are sampled by one policy: the overlap ends with the step. The phase ``score`` is
    what was waited for; what scoring took beside counts as hidden.

    Returns:
        All of them without pixels, ``[N, T]`` on the CPU; the best and the worst of some groups.
    """
    scored: list[TensorDictBase] = []
    shown = Extremes(parts, groups=max(run.logging.samples // 2, 1))
    # A policy that commits the best candidates calls the rewards too, and they run one at a time.
    allowed = run.rollout.overlap and run.rollout.commit != "best"
    overlap = allowed and parts.env.sampler.parts > 1

    def finish(batch: TensorDictBase, scoring: Future[float]) -> None:
        with clock("score"):
            waited = time.perf_counter()
            seconds = scoring.result()
            waited = time.perf_counter() - waited
        if overlap:
            clock.hide(max(0.0, seconds - waited))
        # Not under "time/": what is there adds up to the step.
        for name in parts.reward.rewards:
            clock.count(f"cost/{name}_s", parts.reward.seconds[name])
            clock.count(f"cost/{name}_gib", parts.reward.gib[name])
        shown.take(batch)
        # Pixels are 97 MB for each clip of a real model, and latents of a step fill a GPU.
        scored.append(batch.exclude(PIXELS, OVERVIEW).to("cpu"))

    with ThreadPoolExecutor(max_workers=1) as scorer:
        running: tuple[TensorDictBase, Future[float]] | None = None
        for _ in range(parts.env.sampler.parts):
            with clock("sample"):
                batch = next(batches)
            parts.policy.release()  # the videos are whole; scoring and learning need the room
            if running is not None:
                finish(*running)
            running = batch, scorer.submit(score, parts, batch)
            if not overlap:
                finish(*running)
                running = None
        if running is not None:
            finish(*running)
    return torch.cat(scored), shown.videos()


def score(parts: Parts, batch: TensorDictBase) -> float:
    """Write scores and monitors of a batch; return the seconds that it took."""
    begun = time.perf_counter()
    device = batch[PIXELS].device
    # Both are settings of a thread.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext(), torch.no_grad():
        parts.monitors(parts.reward.score(batch))  # + ("score", *), ("monitor", *)
    return time.perf_counter() - begun
