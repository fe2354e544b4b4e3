"""What training refuses, its dry run and `plan` refuse; a plan counts every reward."""

import sys
from dataclasses import replace

import pytest

from astrolabe.checks import check_model, check_prompts, check_settings, check_terms
from astrolabe.compose import compose
from astrolabe.errors import ConfigError
from astrolabe.fit import check_scenes
from astrolabe.load import load
from astrolabe.plan import Question, plan
from astrolabe.plan_memory import GIB
from astrolabe.plan_rewards import reward_needs
from astrolabe.prompts import prompt_list
from astrolabe_eval import SuiteError
from astrolabe_rewards import Reward
from astrolabe_rollout.errors import PromptFileError
from astrolabe_rollout.tiny import load_tiny

OFF = "evaluation.at_end=false"


class Mine(Reward):
    """A reward of somebody else's, whose option has the name of one of ours."""

    name, unit = "mine", "none"
    memory = "2.0 GiB bf16, 4.0 fp32"

    def __init__(self, *, max_tokens=4096, dtype="bfloat16"):
        super().__init__()


class Silent(Reward):
    name, unit = "silent", "none"


@pytest.fixture
def others(monkeypatch):
    monkeypatch.setitem(sys.modules, "others", sys.modules[__name__])
    return {name: f"rewards.{name.lower()}.name=others:{name}" for name in ("Mine", "Silent")}


def needs_of_rewards(*overrides):
    run = load(["self_forcing_multi"], list(overrides))
    return dict(zip(run.rewards, reward_needs(run, 81), strict=True))


def test_a_reward_is_taken_for_none_but_what_its_class_is(others):
    found = needs_of_rewards(others["Mine"], "rewards.again.name=others:Mine")
    assert found["mine"].weights == found["again"].weights == 2 * GIB
    assert found["mine"].question == ""
    # Its class shares nothing between two objects, and nothing with VideoReward.
    assert len({found[name].name for name in ("mine", "again", "videoalign_mq")}) == 3
    assert found["videoalign_mq"].name == found["videoalign_ta"].name == "videoalign"


def test_two_copies_of_one_model_are_both_counted():
    given = ["rewards.fine.name=hpsv3", "rewards.fine.options.dtype=float32"]
    found = needs_of_rewards(*given, "rewards.same.name=hpsv3")
    assert found["hpsv3"].name == found["same"].name != found["fine"].name
    copies = {one.name: one.weights for one in found.values() if one.name.startswith("hpsv3")}
    assert sorted(copies.values()) == [int(14.4 * GIB), int(28.9 * GIB)]


def test_of_a_reward_that_does_not_say_what_it_takes_nothing_is_known(others):
    assert not needs_of_rewards(others["Silent"])["silent"].known


def test_motion_in_colour_shares_its_pass_with_the_other_questions():
    colour = needs_of_rewards("rewards.videoalign_mq.options.grayscale=false")
    assert colour["videoalign_mq"].question == colour["videoalign_ta"].question == "colour"
    assert needs_of_rewards()["videoalign_mq"].question == "grey"


@pytest.mark.parametrize(
    ("processes", "overrides"),
    [
        (4, ["rollout.num_prompts=6", "rollout.group_size=2", "rollout.windows=2"]),
        (7, []),
        (2, ["rollout.batch_size=32"]),
        (32, []),
        (4, ["distributed.base=sharded", "distributed.shard_ranks=3"]),
        (1, ["rollout.length=2", "rollout.windows=3"]),
        (1, ["rewards.flow_mq.options.fps=3"]),
        (1, ["evaluation.judges.pixel_chek.weight=1"]),
        (1, ["objective.options.bta=1"]),
    ],
)
def test_what_training_refuses_no_plan_accepts(processes, overrides):
    overrides = ["train.updates=4", *overrides]
    with pytest.raises((ConfigError, LookupError)) as trained:
        check_settings(load(["tiny"], overrides), processes)
    with pytest.raises((ConfigError, LookupError)) as planned:
        plan(Question(["tiny"], overrides, gpus=processes))
    assert str(trained.value) == str(planned.value)


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("rewards.sharpness_vq.options.top=-1", ConfigError),
        ("rollout.prompts=nowhere", LookupError),
        ("evaluation.prompts=nowhere", LookupError),
        ("rollout.prompts=FILE", PromptFileError),
        ("evaluation.prompts=FILE", PromptFileError),
    ],
)
def test_what_the_dry_run_refuses_of_options_and_prompts_no_plan_accepts(tmp_path, override, error):
    (tmp_path / "p.csv").write_text("id,prompt\n1\n")
    override = override.replace("FILE", str(tmp_path / "p.csv"))
    refuses = check_terms if "rewards" in override else check_prompts
    with pytest.raises(error) as trained:
        refuses(load(["tiny"], [override]))
    with pytest.raises(error) as planned:
        plan(Question(["tiny"], [override]))
    assert str(trained.value) == str(planned.value)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("rollout.num_frames=10", "rollout.num_frames: 10 latent frames"),
        ("evaluation.num_frames=10", "evaluation.num_frames: 10 latent frames"),
        ("objective.options.beta=-1", "Give more than 0"),
    ],
)
def test_what_does_not_go_with_the_model_is_refused_without_its_weights(override, told):
    with pytest.raises(ConfigError, match=told):
        check_model(load(["tiny"], [override]), 1)


def test_prompts_of_the_report_are_read_at_the_start(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "v.json").write_text('[{"prompt_en": "a cat"}]')
    for name, error in (("p.txt", PromptFileError), ("v.json", SuiteError)):
        run = load(["tiny"], [f"evaluation.prompts={tmp_path / name}"])
        with pytest.raises(error, match=name):
            check_prompts(run)
        check_prompts(load(["tiny"], [f"evaluation.prompts={tmp_path / name}", OFF]))


def test_scripts_of_scenes_are_read_at_the_start(tmp_path):
    (tmp_path / "p.txt").write_text("a cat | it runs\na cat[x] |\n")
    changes = [f"rollout.prompts={tmp_path / 'p.txt'}", OFF]
    check_prompts(load(["tiny"], changes))  # whole prompts
    with pytest.raises(ConfigError, match=r"rollout\.prompts, prompt 2: "):
        check_prompts(load(["tiny"], [*changes, "rollout.scene_windows=1"]))


SCENES = {
    "keep": ([], "the trained window 1, 'it runs', comes after frames of 'a cat'"),
    "flush": ([], r"the trained window 1, .* \(switch 'flush'\)"),
    "keep, sink": (["start=choice", "starts=[3]", "length=9"], "window 3, 'it rests', .* 'a cat'"),
    "recache": (["start=last", "length=3", "commit=each"], "rollout.commit is 'each'"),
}


def film(tmp_path, *overrides):
    (tmp_path / "p.txt").write_text("a dog\na cat | it runs | it rests\n")
    given = [f"prompts={tmp_path / 'p.txt'}", "scene_windows=1", "num_frames=3", "windows=2"]
    return load(["tiny"], [OFF, *(f"rollout.{each}" for each in (*given, *overrides))])


@pytest.mark.parametrize("case", SCENES)
def test_a_prompt_that_changes_where_training_cannot_follow_is_refused(tmp_path, case):
    overrides, message = SCENES[case]
    run = film(tmp_path, *overrides)
    model = replace(load_tiny(), switch=case.split(",")[0])
    scripts = prompt_list(run.rollout.prompts, "rollout.prompts")
    check_scenes(run, model, scripts[:1])
    with pytest.raises(ConfigError, match=message):
        check_scenes(run, model, scripts)
    check_scenes(run, replace(model, rebuild=model.geometry.chunk), scripts)
    check_scenes(replace(run, rollout=replace(run.rollout, scene_windows=0)), model, scripts)
    if model.switch == "recache":
        check_scenes(film(tmp_path, *overrides[:-1]), model, scripts)
        check_scenes(film(tmp_path, "commit=each"), model, scripts)  # no history to share
    elif case == "keep":
        check_scenes(film(tmp_path, "scene_windows=2"), model, scripts)
        for refuse in (lambda: check_model(run, 1), lambda: compose(run), lambda: planned(run)):
            with pytest.raises(ConfigError, match=message):
                refuse()


def planned(run):
    given = (f"rollout.{name}" for name in ("prompts", "scene_windows", "num_frames", "windows"))
    values = (run.rollout.prompts, 1, 3, 2)
    return plan(
        Question(["tiny"], [OFF, *(f"{n}={v}" for n, v in zip(given, values, strict=True))])
    )


def test_what_a_judge_refuses_is_refused_at_the_start():
    run = load(["tiny"], ["evaluation.judges.vlm_judge.options={model='m', low=5.0, high=1.0}"])
    check_settings(run, 1)
    with pytest.raises(ConfigError, match=r"evaluation\.judges\.vlm_judge\.options: low is 5"):
        check_terms(run, judges_only=True)
    with pytest.raises(ConfigError, match=r"evaluation\.judges\.vlm_judge\.options: low is 5"):
        check_terms(run)
