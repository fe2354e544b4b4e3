import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict, TensorDictBase

from astrolabe import cli, session
from astrolabe.checks import check_model, check_terms
from astrolabe.compose import compose
from astrolabe.config import Part, RewardTerm
from astrolabe.errors import ConfigError
from astrolabe.explain import explain
from astrolabe.load import load
from astrolabe_objectives import AnchoredLoss, DenoisingLoss
from astrolabe_rewards import CompositeReward, Reward
from astrolabe_rollout import VideoModel

README = Path(__file__).parents[2] / "packages" / "astrolabe-objectives" / "README.md"


class Plain(AnchoredLoss):
    """The shortest loss there is: no names of its own."""

    def forward(self, tensordict):
        seen = self.compare(self.noise(tensordict))
        return self.outcome(seen, (seen.policy - seen.clean).square().mean())


class WithoutAdvantages(DenoisingLoss):
    """Reads neither advantages nor what is selected."""

    out_keys = ("loss_error",)

    def forward(self, tensordict):
        noised = self.noise(tensordict)
        error = self.predict(noised, reference=False).policy - noised["video", "latents"]
        return TensorDict({"loss_error": error.square().mean()})


class Nameless(DenoisingLoss):
    def forward(self, tensordict):
        return TensorDict()


class Talkative(Plain):
    def forward(self, tensordict):
        return super().forward(tensordict).set("extra", torch.zeros(()))


class Silent(Plain):
    out_keys = ("loss_policy", "loss_kl", "kl", "old_deviation", "promised")


class Detached(Plain):
    def forward(self, tensordict):
        return super().forward(tensordict).detach()


class Many(Plain):
    def forward(self, tensordict):
        found = super().forward(tensordict)
        return found.set("loss_policy", found["loss_policy"].expand(2))


class Curious(Plain):
    def _own_keys(self):
        return [*super()._own_keys(), ("video", "pixels")]


class Broken(Plain):
    def forward(self, tensordict):
        raise IndexError("out of luck")


class Dictionary(Plain):
    def forward(self, tensordict):
        return dict(super().forward(tensordict).items())


class Forgetful(Plain):
    def noise(self, tensordict):
        return super().noise(tensordict).select("noisy", "video", "prompt", "window")


class Mute(Plain):
    noise = None


class Strange(Plain):
    whole = "yes"


class Lossless(Plain):
    out_keys = ("kl", "old_deviation")


class Narrow(Plain):
    def __init__(self, network):
        raise AssertionError("never made")


def with_objective(run, kind):
    name = kind if isinstance(kind, str) else f"{__name__}:{kind.__name__}"
    return replace(run, objective=Part(name), rollout=replace(run.rollout, num_frames=3))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Nameless, "Nameless.* has no out_keys. It needs out_keys, list"),
        (Lossless, r"has out_keys = \['kl', 'old_deviation'\]\. It needs out_keys"),
        (Mute, r"has no method noise\. It needs noise, method: noise"),
        (Strange, r"has whole = 'yes'\. It needs whole, True if"),
        (Talkative, "returned loss_policy, loss_kl, kl, old_deviation, extra, and its out_keys"),
        (Silent, r"its out_keys are .*promised\. List each name"),
        (Detached, "no loss of .* depends on the network"),
        (Many, r"returned 'loss_policy' of shape \(2,\)"),
        (Curious, r"reads \[\('video', 'pixels'\)\] by its in_keys"),
        (Broken, "fails on 2 made-up clips: IndexError: out of luck"),
        (Dictionary, "returned a dict. Return a TensorDict with loss_policy"),
        (Forgetful, r"noise\(\) returned a TensorDict, not a TensorDict that still holds"),
        (Narrow, "is given 3 arguments by position"),
    ],
)
def test_an_objective_that_does_not_fit_is_refused_before_anything_is_sampled(
    small_run, kind, message
):
    run = with_objective(small_run, kind)
    with pytest.raises(ConfigError, match=message) as built:
        compose(run)
    with pytest.raises(ConfigError) as rehearsed:
        check_model(run, 1)
    assert str(rehearsed.value) == str(built.value)


@pytest.mark.parametrize("kind", [Plain, WithoutAdvantages])
def test_the_shortest_objective_of_ones_own_is_trained(small_run, tmp_path, kind):
    run = with_objective(small_run, kind)
    run = replace(
        run,
        train=replace(run.train, steps=1),
        disagreement=replace(run.disagreement, mode="none"),
        evaluation=replace(run.evaluation, at_end=False),
    )
    check_model(run, 1)
    assert session.start(run, tmp_path / "run") == 0
    assert '"policy/gradient_norm": 0.' in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_the_loss_of_the_readme_is_trained_by_the_command_line(small, tmp_path, monkeypatch):
    block = README.read_text("utf-8").split("## Your own loss")[1].split("```")[1]
    code = "\n".join(re.findall(r"^(?:>>>|\.\.\.) ?(.*)$", block, flags=re.MULTILINE))
    (tmp_path / "my_losses.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    changes = ["train.steps=2", "evaluation.at_end=false", "rollout.num_frames=3"]
    named = ["objective.name=my_losses:ImitateBetter", "objective.options.strength=0.5"]
    assert session.start(load(["tiny"], [*small, *changes, *named]), tmp_path / "run") == 0
    assert '"better_fraction": 0.5' in (tmp_path / "run" / "metrics.jsonl").read_text()


class Misspelt(Reward):
    name, unit, need_text = "misspelt", "none", True

    def score(self, pixels, prompts, fps):
        return pixels.float().mean((1, 2, 3, 4))


class Heavy(Misspelt):
    def __init__(self):
        raise AssertionError("reads gigabytes")


def mute(batch):
    return batch


def speaker() -> Callable[[TensorDictBase], TensorDictBase]:
    return lambda batch: batch.set(("score", "own"), torch.zeros(*batch.batch_size, 1))


def muted() -> Callable[[TensorDictBase], TensorDictBase]:
    return mute


@pytest.mark.parametrize("kind", ["Misspelt", "Heavy"])
@pytest.mark.parametrize("table", ["rewards", "evaluation.judges"])
def test_the_dry_run_refuses_what_a_reward_of_ones_own_declares_wrong(kind, table):
    run = load(["tiny"], [f"{table}.own.name={__name__}:{kind}"])
    with pytest.raises(ValueError, match=r"\.need_text = True would have no effect"):
        check_terms(run)


@pytest.mark.parametrize("table", ["rewards", "evaluation.judges"])
def test_a_function_that_writes_no_score_is_refused_at_the_start(small, table):
    changed = [*small, "rollout.num_frames=3"]

    def start(maker):
        run = load(["tiny"], [*changed, f"{table}.own.name={__name__}:{maker}"])
        compose(run) if table == "rewards" else check_terms(run, judges_only=True)

    start("speaker")
    with pytest.raises(ConfigError, match=table + r"\.own: .* did not write \('score', 'own'\)"):
        start("muted")


def liar() -> Reward:
    return {}


def other_liar() -> VideoModel:
    return {}


class Halfway(Reward):
    name, unit = "halfway", "none"

    def __init__(self):
        torch.nn.Module.__init__(self)

    def score(self, pixels, prompts, fps):
        return pixels


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{__name__}:Halfway", r"Halfway' does not call super\(\).__init__\(\)"),
        (f"{__name__}:liar", "makes a dict, which is no reward"),
    ],
)
def test_what_is_no_reward_is_refused_when_the_run_is_built(small_run, name, message):
    with pytest.raises(ConfigError, match=message):
        compose(replace(small_run, rewards={**small_run.rewards, "mine": RewardTerm(name=name)}))


def test_what_is_no_model_is_refused_by_name(small_run):
    with pytest.raises(ConfigError, match=r"the model '.*:other_liar' makes a dict"):
        compose(replace(small_run, model=Part(f"{__name__}:other_liar")))


@pytest.mark.parametrize(
    ("kind", "name", "lines"),
    [
        ("objectives", "nft", ["out_keys = ['loss_policy',", "whole = False", "noise: method"]),
        ("rewards", "tiny_ta", ["needs_text = True", "score: method"]),
    ],
)
def test_parts_shows_the_contract_beside_the_options(kind, name, lines, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["parts", kind, name])
    shown = capsys.readouterr().out
    assert "Options:" in shown
    assert all(line in shown for line in lines), shown


def test_parts_shows_the_keys_of_an_objective_that_is_in_use(parts, capsys):
    assert "policy_positive" in parts.loss.out_keys
    with pytest.raises(SystemExit, match="0"):
        cli.main(["parts", "objectives", "nft"])
    assert "out_keys = ['loss_policy', 'loss_kl'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("writes", "value", "message"),
    [("mine", float("nan"), "scored videos"), ("other", 1.0, "did not write")],
)
def test_a_callable_that_scores_wrongly_stops_a_run_in_one_line(writes, value, message):
    def term(batch):
        return batch.set(("score", writes), torch.full((2, 1), value))

    pixels = torch.zeros(2, 5, 3, 8, 8, dtype=torch.uint8)
    batch = TensorDict({"video": {"pixels": pixels, "fps": torch.ones(2)}}, batch_size=[2])
    with pytest.raises(ValueError, match=message) as caught:
        CompositeReward({"mine": (term, 1.0)}).score(batch)
    told = explain(caught.value)
    assert told is not None
    assert message in told
