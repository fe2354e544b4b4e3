from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tensordict import TensorDict

from astrolabe import guard, session
from astrolabe.alarm import HackingAlarm
from astrolabe.errors import InvariantError
from astrolabe.run_folder import RunFolder
from astrolabe.train import Step


class Said(list):
    def say(self, text):
        self.append(text)


@pytest.fixture
def watch(tmp_path, small_run):
    said = Said()
    return guard.StepGuard(RunFolder(tmp_path), small_run, said), said


def step(number, *, alarm="", skipped=0, dull=0.0):
    bad = [TensorDict({"video": {"latents": torch.full((2, 3), torch.nan)}}, [2])] * skipped
    metrics = {"advantage/zero_std_fraction": dull}
    return Step(number, metrics, TensorDict(), TensorDict(), TensorDict(), alarm, bad)


def test_a_skipped_batch_is_kept_and_the_third_in_a_row_ends_the_run(watch, tmp_path):
    look, said = watch
    for number in (1, 2):
        look(step(number, skipped=1))
    look(step(3))
    for number in (4, 5):
        look(step(number, skipped=2))
    with pytest.raises(InvariantError, match=r"in 3 steps in a row.*step-000006-0\.safetensors"):
        look(step(6, skipped=1))
    path = tmp_path / "skipped" / "step-000004-1.safetensors"
    assert load_file(path)["video.latents"].isnan().all()
    assert str(path) in said[3]


def test_dull_groups_are_told_once(watch):
    look, said = watch
    for number in range(3):
        look(step(number, dull=1.0))
    (text,) = said
    assert "Raise rollout.group_size" in text


def run_with_alarm(monkeypatch, small_run, tmp_path, capsys, action):
    take = HackingAlarm.take

    def take_once(self, reading):
        take(self, reading)
        return "ALARM: made up." if len(self.history) == 2 else ""

    monkeypatch.setattr(HackingAlarm, "take", take_once)
    rewards = {**small_run.rewards, "flow_mq": replace(small_run.rewards["flow_mq"], weight=0.0)}
    run = replace(
        small_run,
        rewards=rewards,
        guard=replace(small_run.guard, action=action),
        rollout=replace(small_run.rollout, num_frames=3),
        evaluation=replace(small_run.evaluation, judges={}),
    )
    folder = tmp_path / "run"
    assert session.start(run, folder) == 0
    return folder, capsys.readouterr().out


def test_the_alarm_may_stop_a_run_which_still_gets_its_report(
    monkeypatch, small_run, tmp_path, capsys
):
    folder, out = run_with_alarm(monkeypatch, small_run, tmp_path, capsys, "stop")
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())][-1] == "step-000002"
    report = (folder / "report.html").read_text()
    assert "Monitors" in report
    assert "reward/flow_mq (held out)" in report
    words = " ".join(out.split())
    assert "Step 2: ALARM: made up." in words
    assert "saved after step 2 of 3" in words
    assert f"--resume {folder}" in words


def test_a_loss_that_is_never_finite_ends_the_command_in_one_line(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr("astrolabe.train.usable", lambda measured: False)
    run = replace(small_run, rollout=replace(small_run.rollout, num_frames=3))
    with pytest.raises(InvariantError, match="3 steps in a row") as caught:
        session.start(run, tmp_path / "run")
    assert "step-000003-0.safetensors" in str(caught.value)
    assert len(list((tmp_path / "run" / "skipped").iterdir())) == 3
