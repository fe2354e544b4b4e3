"""What a run makes of videos that no reward could score."""

import json
import math
from dataclasses import replace

import pytest
import torch

from astrolabe import session
from astrolabe.clock import Clock
from astrolabe.compose import compose
from astrolabe.config import RewardTerm
from astrolabe.errors import InvariantError
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
    assert "flaky nan (0% scored)" in said


def test_a_run_ends_when_nothing_can_be_scored_again_and_again(flaky_run, tmp_path):
    run = flaky_run(always, steps=9)
    run = replace(run, guard=replace(run.guard, max_skipped=2))
    with pytest.raises(InvariantError, match=r"in 2 steps in a row.*flaky gave no score.*--resume"):
        session.start(run, tmp_path / "run")
    assert len((RunFolder(tmp_path / "run").metrics).read_text().splitlines()) == 2
