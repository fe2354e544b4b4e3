"""How far `astrolabe plan` is right, on the embedded model and a CPU.

    uv run python tools/validate_plan.py

A batch of videos is sampled and then learned from, by the run's own code, each size in a process of
its own. Measured is by how much the resident memory of a phase, at its peak, exceeds that of the
process when everything is there and warm; planned is the phase less what is there all the time.
glibc is told to give large blocks back at once and to fill what it hands out: memory then counts
from the moment that it is taken, as it does on a GPU.
"""

import argparse
import ctypes
import gc
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

FRAMES, VIDEOS = (3, 9, 18), (8, 16, 32)
PROMISED = 0.15
#: Read by glibc when a process starts.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "16384",
    "MALLOC_PERTURB_": "165",
    "OMP_NUM_THREADS": "1",
}
PHASES = ("sample", "update")


def settings(frames: int, videos: int, checkpointing: bool):
    """A run that samples and learns from one group of so many videos."""
    from astrolabe.load import load

    return load(
        ["tiny"],
        [
            f"rollout.num_frames={frames}",
            "rollout.num_prompts=1",
            f"rollout.group_size={videos}",
            "train.updates=1",
            f"train.micro_batch={videos}",
            f"train.gradient_checkpointing={str(checkpointing).lower()}",
        ],
    )


def planned(frames: int, videos: int, checkpointing: bool) -> dict[str, float]:
    """Bytes of the phases beyond what is there all the time."""
    from astrolabe.plan_memory import SHOWN, phases, standing
    from astrolabe.plan_needs import Needs

    needs = Needs(settings(frames, videos, checkpointing))
    there = sum(standing(needs).values())
    # Nothing is scored here, and so nothing is kept to be shown.
    totals = {phase.name: phase.total - phase.parts[SHOWN] - there for phase in phases(needs)[1:]}
    return {"sample": max(totals["sample"], totals["decode"]), "update": totals["update"]}


def measured(frames: int, videos: int, checkpointing: bool) -> dict[str, float]:
    """The same, of a process; run in a fresh one."""
    import torch

    from astrolabe.clock import Clock
    from astrolabe.compose import compose
    from astrolabe.train import update

    torch.set_num_threads(1)
    run = settings(frames, videos, checkpointing)

    def sample(parts, count: int):
        batch = parts.env.reset()[:count].clone()
        parts.behaviour(batch)
        parts.policy.release()
        return batch.exclude(("video", "pixels"))

    def learn(parts, batch) -> None:
        batch["advantage"] = torch.linspace(-1, 1, len(batch))[:, None]
        batch["kl", "selected"] = torch.ones(len(batch), 1, dtype=torch.bool)
        batch["noisy", "seed"] = torch.arange(len(batch))
        update(batch.select(*parts.loss.in_keys, *parts.loss.optional_keys), parts, run, Clock())

    parts = compose(run)
    learn(parts, sample(parts, 1))  # moments and the libraries' own are there before the count
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the warm-up left free is not used again
    before = memory("VmRSS")
    batch, sampled = peak(lambda: sample(parts, videos))
    _, learned = peak(lambda: learn(parts, batch))
    return {"sample": sampled - before, "update": learned - before}


def peak(action: Callable[[], Any]) -> tuple[Any, int]:
    """Do something; return what it returned, and the peak of resident memory in bytes."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    result = action()
    return result, memory("VmHWM")


def memory(name: str) -> int:
    """A figure of this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def fresh(function: Callable[..., Any], *arguments: object) -> Any:
    """Call a function in a process of its own."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def main() -> None:
    """Print the table; exit with 1 if an error is larger than promised."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--frames", type=int, nargs="+", default=FRAMES)
    parser.add_argument("--videos", type=int, nargs="+", default=VIDEOS)
    parser.add_argument("--checkpointing", action="store_true")
    options = parser.parse_args()
    print("| phase | frames | videos | planned, MiB | measured, MiB | error |")
    print("| --- | --- | --- | --- | --- | --- |")
    worst = 0.0
    for frames in options.frames:
        for videos in options.videos:
            case = (frames, videos, options.checkpointing)
            expected, found = planned(*case), fresh(measured, *case)
            for phase in PHASES:
                error = expected[phase] / found[phase] - 1
                worst = max(worst, abs(error))
                sizes = f"{expected[phase] / 2**20:.1f} | {found[phase] / 2**20:.1f}"
                row = f"| {phase} | {frames} | {videos} | {sizes} | {error:+.1%} |"
                print(row, flush=True)
    print(f"\nLargest error {worst:.1%}, promised {PROMISED:.0%}.")
    raise SystemExit(worst > PROMISED)


if __name__ == "__main__":
    main()
