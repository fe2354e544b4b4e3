"""A run is the same on any number of processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "scripts" / "train_steps.py"
SETTINGS = [
    *("rollout.num_prompts=4", "rollout.group_size=2", "rollout.batch_size=2"),
    *("train.steps=2", "train.updates=2", "train.micro_batch=2"),
]
#: Each of four processes gets whole micro-batches of every update.
FOR_FOUR = ("rollout.num_prompts=8",)


def lines(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def alone(small):
    done = {}

    def run(*changes):
        if changes not in done:
            command = [sys.executable, str(SCRIPT), *small, *SETTINGS, *changes]
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            done[changes] = lines(result.stdout)
        return done[changes]

    return run


def test_two_processes_train_as_one_bit_for_bit(small, alone, processes):
    found = lines(processes(SCRIPT, 2, *small, *SETTINGS))
    assert len(found) == 2
    assert found == alone()
    assert found[0]["adapter"] != found[1]["adapter"]


@pytest.mark.parametrize(
    ("count", "sampling", "changes"),
    [
        pytest.param(3, 1, ("rollout.lag=1",), marks=pytest.mark.slow),
        pytest.param(3, 2, (), marks=pytest.mark.slow),
        pytest.param(4, 2, ("rollout.lag=1", "rollout.windows=2"), marks=pytest.mark.slow),
        pytest.param(2, 1, ("objective.name=dpo", "objective.options={}"), marks=pytest.mark.slow),
    ],
)
def test_processes_that_only_sample_change_nothing(
    small, alone, processes, count, sampling, changes
):
    steps = ("train.steps=3", *changes)
    settings = [*small, *SETTINGS, *steps, f"distributed.rollout_ranks={sampling}"]
    found = lines(processes(SCRIPT, count, *settings))
    assert len({one["adapter"] for one in found}) == 3
    assert found == alone(*steps)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("rollout.windows=2", "rollout.num_frames=3"),
        ("rollout.length=3", "rollout.num_frames=3", "rollout.start=last"),
        ("composite.normalise=running", "advantage.mode=per_reward"),
        ("objective.name=dpo", "objective.options={}"),
        ("objective.name=rwr", "objective.options={}"),
        ("objective.name=cm_grpo", "objective.options={}"),
    ],
    ids=lambda changes: " ".join(changes) or "default",
)
def test_any_run_is_the_same_on_any_number_of_processes(small, alone, processes, count, changes):
    changes = (*FOR_FOUR, *changes)
    found = lines(processes(SCRIPT, count, *small, *SETTINGS, *changes))
    assert found == alone(*changes)


@pytest.mark.slow
@pytest.mark.parametrize("windows", [1, 2])
def test_a_sharded_base_changes_nothing(small, alone, processes, windows):
    changes = (*FOR_FOUR, f"rollout.windows={windows}", "rollout.num_frames=3")
    sharded = [*small, *SETTINGS, *changes, "distributed.base=sharded"]
    assert lines(processes(SCRIPT, 2, *sharded)) == alone(*changes)
    half = [*sharded, "distributed.shard_ranks=2"]
    assert lines(processes(SCRIPT, 4, *half)) == alone(*changes)


@pytest.mark.slow
def test_a_sharded_adapter_trains_the_same_but_for_rounding(small, alone, processes):
    settings = [*small, *SETTINGS, "distributed.base=sharded", "distributed.lora=sharded"]
    found, expected = lines(processes(SCRIPT, 2, *settings)), alone()
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["norm"] == pytest.approx(theirs["norm"], rel=1e-5)
        # From the second update on, what AdamW makes of the last bits of a gradient shows.
        assert ours["metrics"] == pytest.approx(theirs["metrics"], rel=1e-2, abs=1e-6)
