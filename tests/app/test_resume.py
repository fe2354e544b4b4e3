import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

#: What a clock or a memory says, and so no two runs alike.
MEASURED = ("time/", "memory/", "overlap/", "cost/", "throughput/")


def astrolabe(*arguments, **options):
    command = [sys.executable, "-m", "astrolabe", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(MEASURED)} for line in lines
    ]


def wait_for_line(folder, count):
    for _ in range(6000):
        path = folder / "metrics.jsonl"
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.05)
    raise AssertionError(f"{folder} never reached step {count}")


@pytest.fixture(scope="module")
def straight(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight") / "run"
    finish(astrolabe("train", *options(small), "--out", folder))
    return metrics(folder)


def options(small):
    extra = ["train.steps=6", "logging.checkpoint_every=2", "evaluation.at_end=false"]
    extra += ["rollout.batch_size=2"]  # what two processes sample together, one does too
    return [word for text in [*small, *extra] for word in ("--set", text)]


def go_on(folder):
    finish(astrolabe("train", "--resume", folder))
    return metrics(folder)


def finish(process):
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err


def test_a_killed_run_goes_on_bit_for_bit(small, straight, tmp_path):
    folder = tmp_path / "run"
    process = astrolabe("train", *options(small), "--out", folder)
    wait_for_line(folder, 3)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert go_on(folder) == straight


def test_a_run_killed_before_its_first_checkpoint_starts_anew(small, straight, tmp_path):
    folder = tmp_path / "run"
    process = astrolabe("train", *options(small), "--out", folder)
    wait_for_line(folder, 1)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert go_on(folder) == straight


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_says_how_to_go_on_and_does(small, straight, tmp_path, number):
    folder = tmp_path / "run"
    process = astrolabe("train", *options(small), "--out", folder)
    wait_for_line(folder, 1)
    process.send_signal(number)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    done = len(metrics(folder))
    assert f"saved after step {done} of 6" in out
    assert f"astrolabe train --resume {folder}" in out
    assert go_on(folder) == straight


def torchrun(processes, *arguments, **options):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [sys.executable, *launcher, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def ranks(process):
    """Process ids of what torchrun has started, by rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(child) for child in children.split()]


def of_one(lines):
    """Metrics without those that only several processes have."""
    several = ("straggler/", "rollout/")
    return [{k: v for k, v in line.items() if not k.startswith(several)} for line in lines]


@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_starts_again_after_a_killed_rank_bit_for_bit(small, straight, tmp_path, rank):
    folder = tmp_path / "run"
    again = ("--max-restarts=2", "--monitor-interval=0.2", "-m", "astrolabe", "train")
    process = torchrun(2, *again, *options(small), "--out", folder)
    wait_for_line(folder, 3)
    os.kill(ranks(process)[rank], signal.SIGKILL)
    finish(process)
    assert of_one(metrics(folder)) == straight


APART = ("rollout.lag=1", "distributed.rollout_ranks=1")


@pytest.fixture(scope="module")
def late(small, tmp_path_factory):
    """A run of one process whose videos are sampled one step behind."""
    folder = tmp_path_factory.mktemp("late") / "run"
    finish(astrolabe("train", *options([*small, APART[0]]), "--out", folder))
    return metrics(folder)


@pytest.mark.parametrize("rank", [0, 2], ids=["learns", "samples"])
def test_a_killed_rank_that_learns_or_samples_costs_no_bit(small, late, tmp_path, rank):
    folder = tmp_path / "run"
    again = ("--max-restarts=2", "--monitor-interval=0.2", "-m", "astrolabe", "train")
    process = torchrun(3, *again, *options([*small, *APART]), "--out", folder)
    wait_for_line(folder, 3)
    os.kill(ranks(process)[rank], signal.SIGKILL)
    finish(process)
    assert of_one(metrics(folder)) == late


@pytest.mark.parametrize("rank", [0, 2], ids=["learns", "samples"])
def test_any_rank_that_is_asked_to_stop_stops_all(small, late, tmp_path, rank):
    folder = tmp_path / "run"
    command = ("-m", "astrolabe", "train", *options([*small, *APART]), "--out", folder)
    process = torchrun(3, *command)
    wait_for_line(folder, 2)
    os.kill(ranks(process)[rank], signal.SIGUSR1)
    finish(process)
    assert 2 <= len(metrics(folder)) < 6
    apart = ("--set", "distributed.rollout_ranks=0", "--force")
    finish(astrolabe("train", "--resume", folder, *apart))  # each process samples and learns
    assert of_one(metrics(folder)) == late


def test_a_run_goes_on_with_another_number_of_processes(small, straight, tmp_path):
    folder = tmp_path / "run"
    command = ("-m", "astrolabe", "train", *options(small), "--set", "train.steps=3")
    finish(torchrun(2, *command, "--out", folder))
    changes = ("--set", "train.steps=6")
    refused = astrolabe("train", "--resume", folder, *changes)
    _, err = refused.communicate(timeout=600)
    assert refused.returncode == 2
    assert "train.steps: 3 -> 6" in err
    assert "--force" in err
    finish(astrolabe("train", "--resume", folder, *changes, "--force"))
    assert of_one(metrics(folder)) == straight


def test_a_signal_of_a_scheduler_saves_and_leaves_on_all_processes(small, straight, tmp_path):
    folder = tmp_path / "run"
    command = ("-m", "astrolabe", "train", *options(small))
    process = torchrun(2, *command, "--out", folder)
    wait_for_line(folder, 1)
    os.kill(ranks(process)[1], signal.SIGUSR1)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    done = len(metrics(folder))
    assert f"saved after step {done} of 6" in out
    finish(torchrun(2, *command, "--out", folder, "--auto-resume"))
    assert of_one(metrics(folder)) == straight
