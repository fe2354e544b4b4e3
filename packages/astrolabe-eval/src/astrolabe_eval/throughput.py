"""Frames per second and latency of streams of video, and of several of them in turn.

Nothing here knows models: a stream gives chunks, and the clock is read between them. Figures of
variants that are measured one after the other differ by whatever else the machine does meanwhile;
measured in turn, they share it, and it cancels in the ratio of neighbours.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import exp, isfinite, log
from statistics import median

import numpy as np

from astrolabe_eval.statistics import bootstrap_interval

#: Makes a new video ready, which is not timed, and returns its chunks, which are made when asked
#: for.
Stream = Callable[[], Iterable[object]]

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Throughput:
    """One video, timed chunk by chunk."""

    seconds_to_first_frame: float
    """From the first chunk being asked for until it is there."""
    latencies: tuple[float, ...]
    """Seconds of each chunk of the steady state."""
    frames_per_chunk: int

    @property
    def chunks(self) -> int:
        """Chunks of the steady state."""
        return len(self.latencies)

    @property
    def frames_per_second(self) -> float:
        """Of the steady state."""
        return self.frames_per_chunk * self.chunks / sum(self.latencies)

    @property
    def percentiles(self) -> dict[str, float]:
        """Seconds of a chunk: ``p50``, ``p90``, ``p99``, interpolated linearly."""
        return _percentiles(self.latencies)


@dataclass(frozen=True)
class Speed:
    """A variant among others, over all its repeats."""

    frames_per_second: float
    """Median over the repeats."""
    ratio: float
    """Frames per second over those of the first variant in the same round, geometric mean."""
    interval: tuple[float, float] | None
    """Of the ratio, over the rounds; ``(1, 1)`` for the first variant. None where nothing can be
    said: fewer than six rounds, or all of them equal."""
    seconds_to_first_frame: float
    """Median over the repeats."""
    percentiles: dict[str, float]
    """Seconds of a chunk, over the chunks of all repeats."""
    chunks: int
    """Chunks that were timed, over all repeats."""
    rounds: tuple[float, ...]
    """Frames per second of each repeat."""


def measure(
    stream: Stream,
    *,
    frames_per_chunk: int,
    chunks: int,
    warm_up: int,
    synchronise: Callable[[], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Throughput:
    """Time one video.

    Args:
        stream: Starts it.
        frames_per_chunk: Pixel frames of a chunk of the steady state.
        chunks: Chunks of the steady state, at least 1.
        warm_up: Chunks before, at least 1: the first is timed apart, and caches may have to fill.
        synchronise: Waits until an accelerator has done all it was told to.
        clock: Gives seconds.

    Raises:
        ValueError: If a number is too small, or the stream ends before.
    """
    if frames_per_chunk < 1 or chunks < 1 or warm_up < 1:
        raise ValueError(
            f"frames_per_chunk={frames_per_chunk}, chunks={chunks}, warm_up={warm_up}: "
            "each must be 1 or more."
        )
    wait = synchronise or (lambda: None)
    video = iter(stream())
    wait()  # for what making it ready has left to do
    times = [clock()]
    for index in range(warm_up + chunks):
        try:
            next(video)
        except StopIteration:
            raise ValueError(
                f"the stream ended after {index} of {warm_up + chunks} chunks. "
                "Let it go on, or ask for fewer."
            ) from None
        wait()
        times.append(clock())
    seconds = np.diff(times).tolist()
    return Throughput(seconds[0], tuple(seconds[warm_up:]), frames_per_chunk)


def compare_in_turn(
    streams: Mapping[str, Stream],
    repeats: int,
    *,
    frames_per_chunk: int,
    chunks: int,
    warm_up: int,
    synchronise: Callable[[], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    done: Callable[[str, Throughput], None] = lambda name, run: None,
) -> dict[str, Speed]:
    """Time several variants in turn: A B C A B C and so on.

    A short video of each goes before and is not counted: what a process does once, such as choosing
    kernels, belongs to no variant.

    Args:
        streams: Name to what starts a video; the first is what others are compared with.
        repeats: Rounds, at least 2; six for an interval of the ratio.
        frames_per_chunk: As in :func:`measure`, like all that follow.
        chunks: Chunks of the steady state of each video.
        warm_up: Chunks before.
        synchronise: Waits for an accelerator.
        clock: Gives seconds.
        done: Told the name and the figures of each video when it is done.

    Raises:
        ValueError: If there is no stream, a number is too small, or a stream ends before.
    """
    if not streams or repeats < 2:
        raise ValueError(
            f"{len(streams)} streams and {repeats} repeats. Give 1 stream and 2 repeats or more."
        )

    def timed(name: str, count: int) -> Throughput:
        return measure(
            streams[name],
            frames_per_chunk=frames_per_chunk,
            chunks=count,
            warm_up=warm_up,
            synchronise=synchronise,
            clock=clock,
        )

    for name in streams:
        timed(name, 1)
    runs: dict[str, list[Throughput]] = {name: [] for name in streams}
    for _ in range(repeats):
        for name in streams:
            runs[name].append(timed(name, chunks))
            done(name, runs[name][-1])
    first = [run.frames_per_second for run in next(iter(runs.values()))]
    return {name: _summary(of_name, first) for name, of_name in runs.items()}


def throughput_table(speeds: Mapping[str, Speed]) -> str:
    """One row for each variant in GitHub's Markdown.

    Args:
        speeds: As :func:`compare_in_turn` returns them.

    Returns:
        Text that ends with a line feed.
    """
    first = next(iter(speeds))
    heads = ["model", "frames/s", f"to {first} [95 %]", "rounds", "first frame, s"]
    heads += [f"chunk p{percent}, ms" for percent in PERCENTILES]
    lines = [f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]
    for name, speed in speeds.items():
        ratio = "1" if name == first else f"{speed.ratio:.3f}"
        if name != first and speed.interval:
            ratio += " [{:.3f}, {:.3f}]".format(*speed.interval)
        cells = [name, f"{speed.frames_per_second:.2f}", ratio, str(len(speed.rounds))]
        cells.append(f"{speed.seconds_to_first_frame:.3f}")
        cells += [f"{1000 * seconds:.1f}" for seconds in speed.percentiles.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _summary(runs: list[Throughput], first: list[float]) -> Speed:
    rounds = [run.frames_per_second for run in runs]
    # Logarithms: A is as many times faster than B as B is slower than A.
    ratios = [log(own / base) for own, base in zip(rounds, first, strict=True)]
    low, high = (0.0, 0.0) if rounds == first else bootstrap_interval(ratios)
    latencies = [seconds for run in runs for seconds in run.latencies]
    return Speed(
        frames_per_second=median(rounds),
        ratio=exp(sum(ratios) / len(ratios)),
        interval=(exp(low), exp(high)) if isfinite(high) else None,
        seconds_to_first_frame=median(run.seconds_to_first_frame for run in runs),
        percentiles=_percentiles(latencies),
        chunks=len(latencies),
        rounds=tuple(rounds),
    )


def _percentiles(seconds: Iterable[float]) -> dict[str, float]:
    values = np.percentile(list(seconds), PERCENTILES).tolist()
    return {f"p{percent}": value for percent, value in zip(PERCENTILES, values, strict=True)}
