"""What a run makes of videos that no reward could score."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch

from astrolabe import session
from astrolabe.clock import Clock
from astrolabe.compose import compose
from astrolabe.config import RewardTerm
from astrolabe.errors import InvariantError
from astrolabe.evaluate import evaluate
from astrolabe.evaluated import over_time
from astrolabe.run_folder import RunFolder
from astrolabe.shown import describe
from astrolabe.train import train
from astrolabe_rewards import Reward


class Flaky(Reward):
    """Below 0, as VideoAlign; what it cannot score is said by the one who makes the run."""

    name, unit, may_fail = "flaky", "none", True
    fails = staticmethod(lambda call, levels: torch.zeros(len(levels), dtype=torch.bool))
    calls = 0

    def score(self, pixels, prompts, fps):
        self.calls += 1
        levels = pixels.float().mean((1, 2, 3, 4)) / 255
        return torch.where(type(self).fails(self.calls, levels), math.nan, levels - 2)


def first_of_all(call, levels):
    return torch.arange(len(levels)) == 0


def first_half(call, levels):
    return torch.arange(len(levels)) < len(levels) // 2


def second_call(call, levels):
    return torch.full((len(levels),), call == 2)


def always(call, levels):
    return torch.ones(len(levels), dtype=torch.bool)


@pytest.fixture
def flaky_run(small_run, monkeypatch):
    def make(fails, *, weight=1.0, **train):
        monkeypatch.setattr(Flaky, "fails", staticmethod(fails))
        return replace(
            small_run,
            rewards={
                "flaky": RewardTerm(name=f"{__name__}:Flaky", weight=weight),
                "sharpness_vq": RewardTerm(weight=1.0 - weight),
            },
            composite=replace(small_run.composite, normalise="none", on_error="invalid"),
            disagreement=replace(small_run.disagreement, mode="none"),
            rollout=replace(small_run.rollout, num_frames=3),
            evaluation=replace(small_run.evaluation, at_end=False, judges={}),
            train=replace(small_run.train, **train),
        )

    return make


def adapters(parts):
    return [
        *(value.detach().clone() for value in parts.parameters.values()),
        *(value.clone() for value in parts.snapshots.values("old").values()),
    ]


def test_an_unscored_video_is_counted_and_left_out_of_means_extremes_and_advantages(flaky_run):
    run = flaky_run(first_of_all, steps=1)
    step = next(train(run, compose(run), Clock()))
    scores = step.judged["score", "flaky"].flatten()
    assert step.metrics["reward/total"] == pytest.approx(float(scores[1:].mean()))
    assert step.metrics["advantage/valid_fraction"] == step.metrics["valid_fraction/flaky"] == 0.75
    assert step.metrics["valid_fraction/sharpness_vq"] == 1.0
    assert step.judged["next", "reward"].flatten().isnan().tolist() == [True, False, False, False]
    assert step.judged["advantage"].flatten()[0] == 0
    shown = describe(step.judged, step.shown, list(run.rewards))
    ranks = [(video["group"], video["rank"], video["of"]) for video in shown]
    assert ranks == [(0, 1, 1), (1, 1, 2), (1, 2, 2)]
    step.judged["next", "reward"][1] = math.nan
    video, *_ = describe(step.judged, step.shown, list(run.rewards))
    assert (video["reward"], video["rank"], video["of"]) == (None, None, 0)


def test_a_watched_reward_that_fails_changes_nothing_that_is_trained(flaky_run):
    results = []
    for fails in (always, lambda call, levels: levels < 0):
        run = flaky_run(fails, weight=0.0, steps=2)
        parts = compose(run)
        steps = list(train(run, parts, Clock()))
        assert not any(step.unscored for step in steps)
        results.append(([step.metrics["reward/total"] for step in steps], adapters(parts)))
        share = steps[-1].metrics["valid_fraction/flaky"]
        assert share == (0.0 if fails is always else 1.0)
    (totals, failed), (others, scored) = results
    assert totals == others
    assert all(torch.equal(one, other) for one, other in zip(failed, scored, strict=True))


def test_a_step_without_a_score_moves_nothing_and_logs_no_number(flaky_run):
    run = flaky_run(second_call, steps=3)
    parts = compose(run)
    steps, states = [], []
    for step in train(run, parts, Clock()):
        steps.append(step)
        states.append(adapters(parts))
    assert [step.unscored for step in steps] == [False, True, False]
    assert all(torch.equal(a, b) for a, b in zip(states[0], states[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(states[1], states[2], strict=True))
    silent = steps[1].metrics
    unknown = ("reward/total", "reward/flaky", "loss/policy", "policy/kl", "advantage/group_std")
    assert all(math.isnan(silent[name]) for name in unknown)
    assert silent["guard/skipped"] == run.train.updates
    assert silent["valid_fraction/flaky"] == silent["advantage/valid_fraction"] == 0
    assert len(steps[1].shown) == 0


def test_an_update_of_unscored_windows_alone_is_not_made(flaky_run):
    run = flaky_run(first_half, steps=1, updates=4)
    step = next(train(run, compose(run), Clock()))
    assert step.metrics["guard/skipped"] == 2
    assert step.metrics["loss/policy"] > 0


def test_keep_best_and_the_curve_know_nothing_of_a_step_without_a_score(
    flaky_run, tmp_path, capsys
):
    run = flaky_run(second_call, steps=3)
    run = replace(run, logging=replace(run.logging, keep=1, keep_best=1, checkpoint_every=1))
    assert session.start(run, tmp_path / "run") == 0
    lines = [
        json.loads(line, parse_constant=pytest.fail)
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    totals = [line["reward/total"] for line in lines]
    assert totals[1] is None
    best = 1 + max((0, 2), key=lambda step: totals[step])
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {"step-000003", f"step-{best:06d}"}
    said = " ".join(capsys.readouterr().out.split())
    assert "Step 2: no video could be scored (flaky gave no score at all)" in said
    assert "flaky n/a (0% scored)" in said


def test_a_run_ends_when_nothing_can_be_scored_again_and_again(flaky_run, tmp_path):
    run = flaky_run(always, steps=9)
    run = replace(run, guard=replace(run.guard, max_skipped=2))
    with pytest.raises(InvariantError, match=r"in 2 steps in a row.*flaky gave no score.*--resume"):
        session.start(run, tmp_path / "run")
    assert len((RunFolder(tmp_path / "run").metrics).read_text().splitlines()) == 2


class Shy(Flaky):
    """A judge that raises for some videos, where the other says NaN."""

    name = "shy"

    def score(self, pixels, prompts, fps):
        levels = pixels.float().mean((1, 2, 3, 4))
        if (levels < type(self).border).any():
            raise RuntimeError("too dark for me")
        return levels


def evaluated(run, folder, out, said):
    return evaluate(folder, run, said.append, out=out)


@pytest.mark.slow
def test_an_evaluation_keeps_what_is_unscored_as_no_number_and_asks_again(
    trained, tmp_path, monkeypatch, capsys
):
    folder, run = RunFolder.open(trained)
    sane = run.rewards
    monkeypatch.setattr(Flaky, "fails", staticmethod(lambda call, levels: levels < 0))
    monkeypatch.setattr(Shy, "border", 0, raising=False)
    run = replace(
        run,
        rewards={**run.rewards, "flow_mq": RewardTerm(name=f"{__name__}:Flaky", weight=1.0)},
        composite=replace(run.composite, normalise="none", on_error="invalid"),
        evaluation=replace(
            run.evaluation,
            judges={
                "shy": RewardTerm(name=f"{__name__}:Shy"),
                "sharp": RewardTerm(name="sharpness_vq"),
            },
        ),
    )
    whole = evaluated(run, folder, tmp_path / "whole", [])
    assert whole["judges"]["shy"]["unscored"] == 0
    levels = sorted(s["before"]["flow_mq"] for s in whole["samples"])
    low = (levels[0] + levels[1]) / 2 + 2  # the darkest video of the untrained model alone
    shy = sorted(s["before"]["shy"] for s in whole["samples"])
    monkeypatch.setattr(Flaky, "fails", staticmethod(lambda call, found: found < low))
    monkeypatch.setattr(Shy, "border", (shy[0] + shy[1]) / 2)
    said = []
    found = evaluated(run, folder, tmp_path / "part", said)
    text = (tmp_path / "part" / "report.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == found
    (place,) = (tmp_path / "part").glob("*/before/scores")
    rows = [json.loads(file.read_text(), parse_constant=pytest.fail) for file in place.iterdir()]
    assert sum(row["rewards"]["flow_mq"] is None for row in rows) == 1
    for row in rows:
        assert (row["rewards"]["total"] is None) == (row["rewards"]["flow_mq"] is None)
    for one, other in zip(whole["samples"], found["samples"], strict=True):
        for which in ("before", "after"):
            for name, score in other[which].items():
                assert score == one[which][name] or (score is None and name != "sharp")
    assert found["rewards"]["flow_mq"]["unscored"] >= 1
    assert found["judges"]["shy"]["unscored"] >= 1
    assert found["judges"]["sharp"] == whole["judges"]["sharp"]
    assert any("unscored" in line for line in said)
    assert "left out: " in (tmp_path / "part" / "report.md").read_text()

    monkeypatch.setattr(Flaky, "fails", staticmethod(lambda call, found: found < 0))
    monkeypatch.setattr(Shy, "border", 0)
    said = []
    assert evaluated(run, folder, tmp_path / "part", said)["samples"] == whole["samples"]
    assert re.match(r"Sampling and scoring 1 videos before training, 1 of them again", said[0])

    monkeypatch.setattr(Flaky, "fails", staticmethod(always))
    strict = replace(run, composite=replace(run.composite, on_error="raise"))
    with pytest.raises(ValueError, match=r"'flow_mq' scored videos .* not finite"):
        evaluated(strict, folder, tmp_path / "strict", [])
    judged = replace(run, composite=strict.composite, rewards=sane)
    judges = {"held": RewardTerm(name=f"{__name__}:Flaky")}
    judged = replace(judged, evaluation=replace(run.evaluation, judges=judges))
    with pytest.raises(ValueError, match=r"'held' scored videos .* not finite"):
        evaluated(judged, folder, tmp_path / "judged", [])

    (place,) = (path for path in (tmp_path / "part").iterdir() if path.is_dir())
    monkeypatch.setattr(Flaky, "fails", staticmethod(always))
    over_time(place, {"flaky": RewardTerm(name=f"{__name__}:Flaky")}, 0.5, said.append)
    content = json.loads((place / "over-time.json").read_text(), parse_constant=pytest.fail)
    assert content["before"]["overall"] == {"flaky": None}
    assert content["before"]["unscored"] == {"flaky": len(whole["samples"])}
    assert any("intervals unscored" in line and "n/a" in line for line in said)
