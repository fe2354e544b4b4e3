from dataclasses import fields, is_dataclass, replace
from itertools import pairwise

import pytest

from astrolabe.config import Advantage, Disagreement, Part, RewardTerm, Rollout, Run, Train
from astrolabe.errors import ConfigError
from astrolabe.load import changed, from_json, load, overlay_names, recipe_names, to_json
from astrolabe.registry import find, options_of


@pytest.mark.parametrize("name", recipe_names() + overlay_names())
def test_every_recipe_loads_and_names_parts_and_options_that_exist(name):
    run = load(["self_forcing_multi", name] if name in overlay_names() else [name])
    parts = [("models", run.model), ("objectives", run.objective)]
    terms = {**run.rewards, **run.evaluation.judges}
    parts += [("rewards", Part(term.name or key, term.options)) for key, term in terms.items()]
    for kind, part in parts:
        assert part.options.keys() <= options_of(find(kind, part.name, name)).keys()


@pytest.mark.parametrize("name", [name for name in recipe_names() if name != "tiny"])
def test_recipes_of_real_models_follow_the_paper(name):
    """Table S1 of the paper."""
    run = load([name])
    assert (run.lora.rank, run.lora.alpha) == (256, 256)
    assert (run.rollout.num_frames, run.train.lr, run.train.betas) == (21, 1e-5, (0.9, 0.999))
    assert (run.train.weight_decay, run.train.eps, run.train.max_grad_norm) == (1e-4, 1e-8, 1.0)
    assert run.objective.options == {"beta": 1.0, "kl_coeff": 1e-4, "advantage_clip": 5.0}
    assert (run.snapshots.old_decay, run.advantage.std) == (0.9, "global")
    assert run.train.gradient_checkpointing
    assert (run.train.noise_levels, run.train.context, run.train.mask) == (
        *("warped", "clean"),
        "chunk",
    )
    size = (8, 8) if "14b" in name else (48, 24)
    assert (run.rollout.num_prompts, run.rollout.group_size) == size


@pytest.mark.parametrize("given", [["gpu_80gb"], ["gpu_80gb", "tiny"], ["compat_public", "x.toml"]])
def test_an_overlay_comes_after_the_recipe_that_it_changes(given):
    first = "self_forcing_multi" if given == ["gpu_80gb"] else given[1]
    told = rf"'{given[0]}' is an overlay: .* astrolabe train {first} {given[0]}\."
    with pytest.raises(ConfigError, match=told):
        load(given)


def test_recipes_and_overlays_are_told_apart():
    assert not set(recipe_names()) & set(overlay_names())
    assert {"gpu_24gb", "gpu_48gb", "gpu_80gb", "compat_public"} == set(overlay_names())


@pytest.mark.parametrize("gpu", ["gpu_24gb", "gpu_48gb", "gpu_80gb"])
def test_a_smaller_gpu_changes_no_batch(gpu):
    plain, small = load(["self_forcing_multi"]), load(["self_forcing_multi", gpu])
    assert small.rollout == replace(plain.rollout, batch_size=small.rollout.batch_size)
    assert small.objective == plain.objective
    assert small.rewards.keys() == plain.rewards.keys()


def test_later_recipe_and_override_win(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text("[train]\nsteps = 7\nlr = 3e-4\n")
    run = load(["tiny", str(mine)], ["train.lr=2e-4"])
    assert (run.train.steps, run.train.lr) == (7, 2e-4)
    assert run.rollout == load(["tiny"]).rollout


def test_a_table_of_rewards_is_merged_by_name():
    run = load(["tiny"], ["rewards.flow_mq.weight=0.5", "rewards.mine.name=a.b:C"])
    plain = load(["tiny"], [])
    assert run.rewards["flow_mq"] == replace(plain.rewards["flow_mq"], weight=0.5)
    assert run.rewards["mine"] == RewardTerm(name="a.b:C")
    assert run.rewards["tiny_ta"] == plain.rewards["tiny_ta"]


def test_another_part_does_not_inherit_options():
    assert load(["tiny"], []).objective.options
    assert load(["tiny"], ["objective.name=rwr"]).objective == Part("rwr")
    changed = load(["tiny"], ["objective.name=rwr", "objective.options.temperature=2.0"])
    assert changed.objective.options == {"temperature": 2.0}


def test_override_without_quotes_is_a_text():
    assert load(["tiny"], ["rollout.prompts=my prompts.txt"]).rollout.prompts == "my prompts.txt"


def test_an_entry_of_a_table_is_taken_out_and_any_other_setting_is_as_by_default():
    plain = load(["tiny"])
    run = load(["tiny"], unset=["rewards.flow_mq", "train.lr", "evaluation.judges"])
    assert run.rewards.keys() == plain.rewards.keys() - {"flow_mq"}
    assert run.train == replace(plain.train, lr=Train().lr)
    assert run.evaluation == replace(plain.evaluation, judges={})
    assert changed(plain, [], ["rewards.flow_mq"]).rewards == run.rewards


def test_what_is_taken_out_can_be_set_anew():
    new = ["rewards.flow_mq.weight=2", "rewards.flow_mq.name=sharpness_vq"]
    run = load(["tiny"], [*new, "disagreement.mode=none"], unset=["rewards.flow_mq"])
    assert run.rewards["flow_mq"] == RewardTerm(weight=2.0, name="sharpness_vq")
    assert list(run.rewards)[-1] == "flow_mq"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "rewards.flow_mg",
            r"Did you mean rewards\.flow_mq\? In rewards there are: ",
        ),
        ("evaluation.judges.x", r"no such entry\. In evaluation\.judges there are: pixel_check\."),
        ("trian.lr", r"no such entry\. In trian there are: none"),
        ("train.lr.x", r"no such entry"),
        ("nothing", r"no such entry\. In a run there are: model, rewards"),
        ("train.lr=3", r"names no setting\. Write its name without a value"),
        ("train.", r"names no setting"),
        ("", r"names no setting"),
        ("model.name", r"model\.name is not set and has no default\. Add --set model\.name=VALUE"),
        ("rewards", r"rewards has no term with a weight"),
    ],
)
def test_what_cannot_be_taken_out_is_named(name, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(["tiny"], unset=[name])
    assert str(caught.value).startswith(f"--unset {name}")


def test_a_whole_number_is_a_number():
    assert load(["tiny"], ["train.lr=1"]).train.lr == 1.0


def test_saved_settings_read_back_to_the_same_run(tmp_path):
    run = load(["tiny"], ["train.betas=[0.8, 0.9]", "objective.options.beta=0.1"])
    (tmp_path / "config.json").write_text(to_json(run))
    assert from_json(tmp_path / "config.json") == run


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trian.steps=2", r"no setting trian\. Did you mean train\?"),
        ("train.step=2", r"no setting train\.step\. Did you mean train\.steps\?"),
        ("rewards.flow_mq.wieght=2", r"Did you mean rewards\.flow_mq\.weight\?"),
        ("evaluation.judges.a.weigth=2", r"Did you mean evaluation\.judges\.a\.weight\?"),
        ("train.steps=ten", r"train\.steps is 'ten'\. It must be a whole number"),
        ("train.steps=2.5", r"train\.steps is 2\.5\. It must be a whole number"),
        ("train.steps=true", r"train\.steps is True\. It must be a whole number"),
        ("train.lr='1e-4'", r"train\.lr is '1e-4'\. It must be a number"),
        ("evaluation.at_end=1", r"evaluation\.at_end is 1\. It must be true or false"),
        ("rollout.prompts=3", r"rollout\.prompts is 3\. It must be a text"),
        ("model=tiny", r"model is 'tiny'\. It must be a table"),
        ("advantage.std=golbal", r"one of 'global', 'group' or 'none'"),
        ("logging.backends=['wanbd']", r"one of 'csv', 'tensorboard'"),
        ("train.steps=0", r"train\.steps is 0\. Set it to 1 or more"),
        ("train.lr=nan", r"train\.lr is nan\. Give a finite number"),
        ("rollout.group_size=1", r"rollout\.group_size is 1: .* Set it to 2 or more"),
        ("snapshots.old_decay=1.5", r"snapshots\.old_decay is 1\.5\. Give a number"),
        ("advantage.reward=hpsv3", r"advantage\.reward is 'hpsv3', which is no reward"),
        ("disagreement.primary=x", r"Choose from: total, sharpness_vq"),
        ("train.updates=7", r"does not divide the 96 windows"),
        ("evaluation.judges.flow_mq.weight=1", r"judges\.flow_mq is a reward of this run too"),
        ("rewards.total.weight=1", r"rewards\.total is the name of the weighted sum"),
        ("rollout.lag=2", r"rollout\.lag is 2\. Give a number from 0 to 1"),
        ("train.steps", r"no assignment"),
        ("=3", r"no assignment"),
    ],
)
def test_a_wrong_setting_is_named_with_its_place(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(["tiny"], [override])
    assert str(caught.value).startswith(f"--set {override}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distributed.base=sharded"], r"rollout_ranks is 2 but base is 'sharded'"),
        (
            ["rollout.commit=best", "rollout.windows=3", "composite.normalise=running"],
            r"running statistics of composite\.normalise",
        ),
    ],
)
def test_processes_that_only_sample_lack_what_only_others_have(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load(["tiny"], ["distributed.rollout_ranks=2", *overrides])


def test_a_group_that_goes_on_from_one_candidate_is_drawn_whole():
    parted = ["rollout.group_size=4", "rollout.num_prompts=2", "rollout.batch_size=2"]
    for commit in ("random", "best"):
        longer = [*parted, "rollout.windows=2", f"rollout.commit={commit}"]
        with pytest.raises(ConfigError, match=r"parts groups of 4.*multiple of group_size"):
            load(["tiny"], longer)
        assert load(["tiny"], [*longer, "rollout.batch_size=4"]).rollout.commits
    # One window goes on from nothing, and each candidate from itself.
    assert not load(["tiny"], [*parted, "rollout.length=2"]).rollout.commits
    assert not load(["tiny"], [*parted, "rollout.windows=2", "rollout.commit=each"]).rollout.commits


def test_videos_of_the_first_step_and_of_every_few_are_kept():
    shown = [load(["tiny"], ["logging.samples_every=3"]).logging.shows(n) for n in range(1, 7)]
    assert shown == [True, False, True, False, False, True]
    assert not load(["tiny"], ["logging.samples_every=0"]).logging.shows(1)


def test_a_mistake_in_a_file_names_the_file(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text("[rollout]\ngroup_size = 1\n")
    with pytest.raises(ConfigError, match=r"mine\.toml'.*rollout\.group_size is 1"):
        load(["tiny", str(mine)])


def test_broken_toml_names_file_and_line(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text("[train]\nsteps = = 3\n")
    with pytest.raises(ConfigError, match=r"mine\.toml' is no TOML: .*line 2"):
        load([str(mine)])


def test_a_recipe_that_is_not_utf8_is_refused(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_bytes(b'[model]\nname = "t\xff"\n')
    with pytest.raises(ConfigError, match=r"mine\.toml': line 2 is not UTF-8"):
        load([str(mine)])


def test_unknown_recipe_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"no recipe 'tiyn'\. Did you mean 'tiny'\?"):
        load(["tiyn"])


def test_a_run_without_rewards_is_refused():
    with pytest.raises(ConfigError, match="rewards has no term with a weight"):
        load([])


def test_a_lone_reward_cannot_disagree():
    with pytest.raises(ValueError, match="is the only reward"):
        Run(rewards={"a": RewardTerm()})
    assert Run(rewards={"a": RewardTerm()}, disagreement=Disagreement(mode="none"))


@pytest.mark.parametrize("content", ["", "[]", '{"train": {"steps": "x"}}', "{"])
def test_foreign_settings_in_a_run_folder_are_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        from_json(tmp_path / "config.json")


def test_a_folder_without_settings_is_no_run_folder(tmp_path):
    with pytest.raises(ConfigError, match="is no run folder"):
        from_json(tmp_path / "config.json")


def test_every_setting_is_documented_beside_its_default():
    import ast
    import inspect

    from astrolabe import config

    def undocumented(kind):
        body = ast.parse(inspect.getsource(kind)).body[0].body
        names = {
            node.target.id
            for node, after in pairwise(body)
            if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr)
        }
        return [item.name for item in fields(kind) if item.name not in names]

    kinds = [kind for kind in vars(config).values() if is_dataclass(kind) and kind is not Run]
    assert len(kinds) == 13
    assert {kind.__name__: undocumented(kind) for kind in kinds if undocumented(kind)} == {}


def test_defaults_are_those_of_the_paper():
    train, rollout = Train(), Rollout()
    assert (train.lr, train.weight_decay, train.max_grad_norm) == (1e-5, 1e-4, 1.0)
    assert (rollout.group_size, rollout.num_prompts, rollout.num_frames) == (24, 48, 21)
    assert (Advantage().std, Disagreement().mode) == ("global", "selective")
