import math

import pytest

from astrolabe_eval.throughput import compare_in_turn, measure, throughput_table


class Machine:
    """Time that passes only while something is made."""

    def __init__(self):
        self.now = 0.0
        self.queued = 0.0
        self.started = []

    def clock(self):
        return self.now

    def synchronise(self):
        self.now += self.queued
        self.queued = 0.0

    def stream(self, name, seconds, *, ready=0.0, queue=False):
        """Chunks that take these seconds, one after the other; a number: all the same."""

        def start():
            self.started.append(name)
            self.now += ready

            def chunks():
                for taken in seconds if isinstance(seconds, list) else [seconds] * 1000:
                    if queue:
                        self.queued += taken
                    else:
                        self.now += taken
                    yield None

            return chunks()

        return start


@pytest.fixture
def machine():
    return Machine()


def test_the_first_frame_warm_up_and_steady_state_are_told_apart(machine):
    steady = [0.125, 0.25, 0.375, 0.5, 1.0]
    stream = machine.stream("a", [4.0, 2.0, *steady, 99.0], ready=50.0)
    run = measure(stream, frames_per_chunk=12, chunks=5, warm_up=2, clock=machine.clock)
    assert run.seconds_to_first_frame == 4.0
    assert run.latencies == tuple(steady)
    assert run.chunks == 5
    assert run.frames_per_second == 5 * 12 / 2.25
    # Of five, p90 lies at place 3.6 of 0..4 and p99 at 3.96, between 0.5 and 1.
    assert run.percentiles == pytest.approx({"p50": 0.375, "p90": 0.8, "p99": 0.98})


def test_work_that_is_only_queued_counts_where_it_was_queued(machine):
    stream = machine.stream("a", [1.0, 2.0, 3.0], queue=True)
    options = {"frames_per_chunk": 3, "chunks": 2, "warm_up": 1, "clock": machine.clock}
    run = measure(stream, synchronise=machine.synchronise, **options)
    assert (run.seconds_to_first_frame, run.latencies) == (1.0, (2.0, 3.0))


def test_the_real_clock_is_used_by_default():
    run = measure(lambda: iter(range(9)), frames_per_chunk=1, chunks=8, warm_up=1)
    assert run.chunks == 8
    assert all(0 <= seconds < 1 for seconds in run.latencies)


def test_variants_are_measured_in_turn_and_compared_with_the_first(machine):
    streams = {"base": machine.stream("base", 0.5), "tuned": machine.stream("tuned", 1.0)}
    told = []
    speeds = compare_in_turn(
        streams,
        3,
        frames_per_chunk=4,
        chunks=2,
        warm_up=1,
        clock=machine.clock,
        done=lambda name, run: told.append((name, run.frames_per_second)),
    )
    assert machine.started == ["base", "tuned"] * 4  # one round is not counted
    assert told == [("base", 8.0), ("tuned", 4.0)] * 3
    assert (speeds["base"].ratio, speeds["base"].interval) == (1.0, (1.0, 1.0))
    assert speeds["tuned"].ratio == pytest.approx(0.5)
    assert speeds["tuned"].interval is None  # three rounds, all equal
    assert speeds["tuned"].rounds == (4.0, 4.0, 4.0)
    assert speeds["tuned"].chunks == 6


def test_a_machine_that_grows_slower_does_not_change_the_ratio(machine):
    def drifting(factor):
        def start():
            seconds = factor * (1 + machine.now)  # of both variants of a round nearly the same
            return machine.stream("", seconds)()

        return start

    slow = {"base": drifting(1e-4), "tuned": drifting(2e-4)}
    options = {"frames_per_chunk": 4, "chunks": 50, "warm_up": 1, "clock": machine.clock}
    speeds = compare_in_turn(slow, 8, **options)
    base = speeds["base"]
    assert max(base.rounds) / min(base.rounds) > 1.1
    low, high = speeds["tuned"].interval
    assert low <= speeds["tuned"].ratio <= high
    assert speeds["tuned"].ratio == pytest.approx(0.5, rel=0.01)


def test_the_ratio_is_the_geometric_mean_and_its_interval_is_of_the_rounds(machine):
    rates = iter([1.0, *[1.0, 2.0, 4.0, 8.0] * 2])  # the first is not counted

    def start():
        return machine.stream("", 1 / next(rates))()

    streams = {"base": machine.stream("base", 1.0), "other": start}
    options = {"frames_per_chunk": 1, "chunks": 1, "warm_up": 1, "clock": machine.clock}
    other = compare_in_turn(streams, 8, **options)["other"]
    assert other.ratio == pytest.approx(math.sqrt(8))
    assert other.frames_per_second == 3.0
    low, high = other.interval
    assert 1 <= low < other.ratio < high <= 8


def test_the_table_has_one_row_for_each_variant(machine):
    streams = {"base": machine.stream("base", 0.5), "merged": machine.stream("merged", 0.4)}
    options = {"frames_per_chunk": 4, "chunks": 2, "warm_up": 1, "clock": machine.clock}
    table = throughput_table(compare_in_turn(streams, 2, **options)).splitlines()
    assert table[0].startswith("| model | frames/s | to base [95 %] | rounds |")
    assert table[1].count("|") == table[0].count("|")
    assert table[2] == "| base | 8.00 | 1 | 2 | 0.500 | 500.0 | 500.0 | 500.0 |"
    assert table[3].startswith("| merged | 10.00 | 1.250 | 2 | 0.400 | 400.0 |")
    assert len(table) == 4


def test_what_cannot_be_measured_is_refused(machine):
    stream = machine.stream("a", [1.0, 1.0])
    with pytest.raises(ValueError, match="ended after 2 of 3 chunks"):
        measure(stream, frames_per_chunk=1, chunks=2, warm_up=1)
    machine.started.clear()
    for wrong in ({"chunks": 0}, {"warm_up": 0}, {"frames_per_chunk": 0}):
        numbers = {"frames_per_chunk": 1, "chunks": 1, "warm_up": 1} | wrong
        with pytest.raises(ValueError, match="1 or more"):
            measure(stream, **numbers)
    numbers = {"frames_per_chunk": 1, "chunks": 1, "warm_up": 1}
    for streams, repeats in (({}, 3), ({"a": stream}, 1)):
        with pytest.raises(ValueError, match="2 repeats or more"):
            compare_in_turn(streams, repeats, **numbers)
    assert machine.started == []
