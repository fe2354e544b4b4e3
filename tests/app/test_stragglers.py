import json
import socket
from dataclasses import dataclass

import pytest

from astrolabe.stragglers import SlowRank, compare, compared
from astrolabe.world import ALONE, World

ONE = {"time/sample_s": 4.0, "time/score_s": 2.0, "time/update_s": 2.0, "memory/peak_gib": 10.0}


@dataclass(frozen=True)
class Told(World):
    """Processes of which the others have said what they say."""

    others: tuple[str, ...] = ()

    def gather_text(self, text):
        return [text, *self.others]


def test_the_slowest_rank_is_compared_with_the_median():
    everyone = [ONE, ONE | {"memory/peak_gib": 11.0}, ONE | {"time/sample_s": 7.0}]
    found = compare(everyone, videos=22)
    assert found == {
        "memory/peak_gib": 11.0,
        "throughput/videos_per_s": 22 / 11,
        "throughput/sampled_per_s": 22 / 7,
        "straggler/sample_s": 3.0,
        "straggler/score_s": 0.0,
        "straggler/update_s": 0.0,
        "straggler/rank": 2.0,
        "straggler/excess": 0.5,
    }


def test_a_rank_that_only_waits_is_no_straggler():
    waiting = ONE | {"time/wait_s": 5.0}
    working = ONE | {"time/sample_s": 9.0, "time/wait_s": 0.0}
    found = compare([waiting, waiting, working], videos=8)
    assert found["straggler/rank"] == 2.0
    assert "straggler/wait_s" not in found


def test_a_lone_process_has_a_throughput_and_no_straggler():
    found = compared(ALONE, ONE | {"overlap/hidden_s": 1.0}, videos=16)
    assert found == ONE | {
        "overlap/hidden_s": 1.0,
        "throughput/videos_per_s": 2.0,
        "throughput/sampled_per_s": 4.0,
    }


def test_every_process_keeps_its_own_times_beside_the_comparison():
    other = ONE | {"time/sample_s": 8.0, "memory/peak_gib": 12.0}
    found = compared(Told(0, 2, others=(json.dumps(other),)), ONE, videos=12)
    assert found["time/sample_s"] == 4.0
    assert found["memory/peak_gib"] == 12.0
    assert found["straggler/rank"] == 1.0


def test_a_step_that_took_no_time_divides_by_nothing():
    idle = {"time/sample_s": 0.0, "memory/peak_gib": 1.0}
    assert compare([idle] * 2, 4)["straggler/excess"] == 0.0


def test_processes_that_only_learn_keep_nobody_waiting_for_videos():
    learning = {"time/score_s": 0.1, "time/update_s": 5.0, "memory/peak_gib": 1.0}
    found = compare([learning, learning | {"time/score_s": 9.0}], videos=4)
    assert found["straggler/score_s"] == pytest.approx(4.45)
    assert "straggler/rank" not in found


def slow(rank, excess=0.25):
    return {"straggler/rank": float(rank), "straggler/excess": excess}


def test_a_rank_that_is_slow_five_times_in_a_row_is_told_once_with_its_host():
    hint = SlowRank(Told(0, 3, others=("node-b", "node-c")))
    steps = [*[slow(2)] * 4, slow(2, 0.1), *[slow(2)] * 4, slow(1), *[slow(2)] * 4]
    assert [hint.watch(step) for step in steps] == [""] * len(steps)
    told = [hint.watch(slow(2)) for _ in range(10)]
    assert told[1:] == [""] * 9
    assert told[0].startswith("Rank 2 on node-c needs 25% longer than the median")


def test_the_first_host_is_this_one_and_a_lone_process_is_never_slow():
    hint = SlowRank(ALONE)
    assert [hint.watch({}) for _ in range(10)] == [""] * 10
    own = SlowRank(Told(0, 2, others=("other",)))
    assert socket.gethostname() in [own.watch(slow(0)) for _ in range(5)][-1]


@pytest.mark.parametrize("excess", [0.0, 0.2])
def test_a_little_slower_is_not_slow(excess):
    hint = SlowRank(Told(0, 2, others=("other",)))
    assert not any(hint.watch(slow(1, excess)) for _ in range(10))
