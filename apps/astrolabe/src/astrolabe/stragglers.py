"""Which process the others wait for: figures of a step, compared over the ranks."""

import json
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

from astrolabe.world import World

#: Names and values of what was measured.
Metrics = dict[str, float]

#: What a process does by itself, before it meets the others.
SAMPLING = "time/sample_s"
OWN_WORK = (SAMPLING, "time/score_s")
WAITING = "time/wait_s"
MEMORY = "memory/peak_gib"
RANK, EXCESS = "straggler/rank", "straggler/excess"

#: A rank is slow if its own work takes so much longer than the median, so many steps in a row.
SLOW, STEPS = 0.2, 5


def compared(world: World, measured: Metrics, videos: int) -> Metrics:
    """Gather what each process measured of a step, and compare it.

    Args:
        world: The processes; collective.
        measured: Of this process, from `Clock.take`.
        videos: Of the step, over all processes.

    Returns:
        What this process measured, and the same comparison for every process; see `compare`.
    """
    everyone = [json.loads(text) for text in world.gather_text(json.dumps(measured))]
    return measured | compare(everyone, videos)


def compare(everyone: Sequence[Mapping[str, float]], videos: int) -> Metrics:
    """Compare what the processes measured of a step.

    Waiting for others has a phase of its own, ``wait``, or the slowest process would look like the
    rest.

    Args:
        everyone: ``time/<phase>_s`` and ``memory/peak_gib``, by rank.
        videos: Of the step.

    Returns:
        ``throughput/videos_per_s`` of the whole step and ``throughput/sampled_per_s`` of sampling,
        both by the slowest rank, and ``memory/peak_gib``, the largest. With several processes also
        ``straggler/<phase>_s``, seconds from the median to the slowest rank; ``straggler/rank``,
        which had most to do by itself (sampling and scoring); and ``straggler/excess``, by what
        share of the median it was slower there; the last two only of processes that sample.
    """
    phases = [name for name in everyone[0] if name.startswith("time/")]
    slowest = {phase: max(one.get(phase, 0.0) for one in everyone) for phase in phases}
    whole = max(sum(one.get(phase, 0.0) for phase in phases) for one in everyone)
    metrics = {MEMORY: max(one.get(MEMORY, 0.0) for one in everyone)}
    for name, seconds in (("videos", whole), ("sampled", slowest.get(SAMPLING, 0.0))):
        if seconds:
            metrics[f"throughput/{name}_per_s"] = videos / seconds
    if len(everyone) == 1:
        return metrics
    for phase in (name for name in phases if name != WAITING):
        middle = median(one.get(phase, 0.0) for one in everyone)
        metrics[phase.replace("time/", "straggler/")] = slowest[phase] - middle
    if SAMPLING not in slowest:  # other processes do that, and compare themselves
        return metrics
    own = [sum(one.get(phase, 0.0) for phase in OWN_WORK) for one in everyone]
    metrics[RANK] = float(own.index(max(own)))
    metrics[EXCESS] = max(own) / median(own) - 1 if median(own) else 0.0
    return metrics


class SlowRank:
    """Tells once of a rank that keeps the others waiting step after step.

    Args:
        world: The processes; collective.
    """

    def __init__(self, world: World) -> None:
        self._hosts = world.gather_text(socket.gethostname())
        self._in_a_row: Counter[int] = Counter()
        self._told = False

    def watch(self, metrics: Mapping[str, float]) -> str:
        """Look at the metrics of a finished step; return what to tell, mostly nothing."""
        rank = int(metrics.get(RANK, 0))
        slow = metrics.get(EXCESS, 0.0) > SLOW
        self._in_a_row = Counter({rank: self._in_a_row[rank] + 1} if slow else {})
        if self._told or self._in_a_row[rank] < STEPS:
            return ""
        self._told = True
        return (
            f"Rank {rank} on {self._hosts[rank]} needs {metrics[EXCESS]:.0%} longer than the "
            f"median to sample and score, {STEPS} steps in a row, and all others wait for it. Look "
            "whether something else runs there, or whether its GPU is throttled (nvidia-smi -q -d "
            "PERFORMANCE). (Told once.)"
        )
