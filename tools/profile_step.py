"""Where the time of a training step goes: what of it is spent outside the models.

    uv run python tools/profile_step.py
    uv run python tools/profile_step.py tiny --steps 6 --set rollout.batch_size=24
    uv run python tools/profile_step.py self_forcing_multi gpu_80gb
    torchrun --nproc-per-node 8 tools/profile_step.py longlive_streaming

A real run in a temporary folder, checkpoints and sample videos included. Measured are the calls of

- ``rollout``: the policy that samples, without decoding;
- ``decode``: the video codec;
- ``reward``: all reward models and monitors;
- ``update``: noise, losses, gradients, the optimiser;

as intervals of time. ``outside`` is what none of them covers: environment, statistics of groups,
exchange between processes, files. ``hidden`` is what two of them did at once, as where rewards are
scored while the next videos are sampled. The first step, which checks itself, is left out.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from astrolabe import session, train
from astrolabe.load import changed, load
from astrolabe.tracking import Tracker
from astrolabe_rewards import CompositeReward, Monitors
from astrolabe_rollout.codec import PatchStream
from astrolabe_rollout.group_streaming import GroupStreamingPolicy
from astrolabe_rollout.streaming import StreamingPolicy
from astrolabe_rollout.wan_vae import WanStream

PHASES = ("rollout", "decode", "reward", "update")

Interval = tuple[float, float]


class Recorder:
    """Notes when calls of some functions begin and end, and when steps end."""

    def __init__(self) -> None:
        self.intervals: dict[str, list[Interval]] = {phase: [] for phase in PHASES}
        self.steps: list[float] = []

    def watch(self, owner: Any, name: str, phase: str) -> None:
        """Measure a function of a class or module as a phase."""
        function: Callable[..., Any] = getattr(owner, name)

        def measured(*arguments: Any, **options: Any) -> Any:
            begin = now()
            result = function(*arguments, **options)
            self.intervals[phase].append((begin, now()))
            return result

        setattr(owner, name, measured)

    def mark_steps(self) -> None:
        """Note the end of each step: when its metrics are written."""
        log = Tracker.log

        def marked(tracker: Tracker, step: int, metrics: dict[str, float]) -> None:
            log(tracker, step, metrics)
            self.steps.append(now())

        Tracker.log = marked  # type: ignore[method-assign]

    def between(self, begin: float, end: float) -> dict[str, float]:
        """Seconds of each phase, of none (``outside``) and of two at once (``hidden``)."""
        inside = {
            phase: [(max(a, begin), min(b, end)) for a, b in found if a < end and b > begin]
            for phase, found in self.intervals.items()
        }
        seconds = {phase: covered(found) for phase, found in inside.items()}
        # Decoding happens inside the policy's call.
        seconds["rollout"] = covered(inside["rollout"] + inside["decode"]) - seconds["decode"]
        union = covered([interval for found in inside.values() for interval in found])
        seconds["outside"] = end - begin - union
        seconds["hidden"] = sum(seconds[phase] for phase in PHASES) - union
        return seconds


def now() -> float:
    """Seconds, when all that a GPU was asked to do is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def covered(intervals: list[Interval]) -> float:
    """Length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def main() -> None:
    """Run some steps and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", default=["tiny"])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--steps", type=int, default=5, help="steps measured, after one that is not"
    )
    arguments = parser.parse_args()
    run = load(arguments.recipes, arguments.set)
    run = changed(run, [f"train.steps={arguments.steps + 1}", "evaluation.at_end=false"])
    recorder = Recorder()
    recorder.watch(StreamingPolicy, "forward", "rollout")
    recorder.watch(GroupStreamingPolicy, "forward", "rollout")
    recorder.watch(PatchStream, "__call__", "decode")
    recorder.watch(WanStream, "__call__", "decode")
    recorder.watch(CompositeReward, "score", "reward")
    recorder.watch(Monitors, "forward", "reward")
    recorder.watch(train, "update", "update")
    recorder.mark_steps()
    with tempfile.TemporaryDirectory() as folder:
        session.start(run, Path(folder) / "run")
    if not recorder.steps:
        return  # another process than the main one
    first, *_, last = recorder.steps
    seconds, total = recorder.between(first, last), last - first
    sys.stdout.write(f"{arguments.steps} steps of {total / arguments.steps:.2f} s\n")
    for name in (*PHASES, "outside", "hidden"):
        mean = seconds[name] / arguments.steps
        sys.stdout.write(f"{name:>8} {mean:8.3f} s {100 * seconds[name] / total:6.2f} %\n")


if __name__ == "__main__":
    main()
