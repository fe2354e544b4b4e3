"""What settings may run: a recipe, a run folder, a part that is none."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import pytest
from tensordict import TensorDictBase
from typer.testing import CliRunner

from astrolabe.cli import app
from astrolabe.errors import ConfigError
from astrolabe.kinds import is_of_kind
from astrolabe.load import from_json, load
from astrolabe.registry import find
from astrolabe.reward_choice import choose_terms
from astrolabe.run_folder import RunFolder
from astrolabe_objectives import NFTLoss
from astrolabe_rewards import Reward
from astrolabe_rollout import VideoModel

#: A recipe or a config.json, its setting, and whether a recipe for `train` may name it.
CODE = {
    "model.name": ({"model": {"name": "mine:Model"}}, True),
    "objective.name": ({"objective": {"name": "mine:Loss"}}, True),
    "rewards.a.name": ({"rewards": {"a": {"name": "mine:A"}}}, True),
    "rewards.mine:A": ({"rewards": {"mine:A": {"weight": 1.0}}}, True),
    "evaluation.judges.a.name": ({"evaluation": {"judges": {"a": {"name": "mine:A"}}}}, True),
    "rollout.prompts": ({"rollout": {"prompts": "mine:prompts"}}, True),
    "evaluation.prompts": ({"evaluation": {"prompts": "mine:prompts"}}, True),
    "rewards.w.options.target": ({"target": "mine:A"}, False),
    "rewards.w.options.python": ({"python": "./evil"}, False),
    "rewards.w.options.requirements": ({"requirements": ["evil"]}, False),
}
OURS = "astrolabe_rewards.quality:SharpnessVQ"
WORKER = "astrolabe_rewards.worker:ScoringWorker"


def table_of(setting):
    table, allowed = CODE[setting]
    if not allowed:
        table = {"rewards": {"w": {"name": "worker", "options": {"target": OURS, **table}}}}
    return table, allowed


def merged(table, change):
    for key, value in change.items():
        table[key] = merged(table.get(key, {}), value) if isinstance(value, dict) else value
    return table


def toml(table, path=""):
    """Only what the tables above need."""
    own = [
        f"{json.dumps(key)} = {json.dumps(v)}" for key, v in table.items() if type(v) is not dict
    ]
    text = "\n".join([f"[{path}]", *own, ""]) if path and own else ""
    for key, value in table.items():
        if type(value) is dict:
            text += toml(value, ".".join(filter(None, (path, json.dumps(key)))))
    return text


@pytest.mark.parametrize("setting", CODE)
def test_code_in_a_file_is_run_only_where_somebody_said_so(setting, tmp_path):
    table, allowed = table_of(setting)
    recipe = tmp_path / "mine.toml"
    recipe.write_text(toml(table))
    run = load(["tiny", str(recipe)], code="any")
    refused = pytest.raises(ConfigError, match=f"{setting} is .*add --allow-code")
    with refused:
        load(["tiny", str(recipe)], code="entry points")
    if allowed:
        assert load(["tiny", str(recipe)]) == run
    else:
        with refused:
            load(["tiny", str(recipe)])
    config = tmp_path / "config.json"
    config.write_text(json.dumps(asdict(run)))
    with refused:
        from_json(config)
    assert from_json(config, allow_code=True) == from_json(config, known=run) == run


def test_what_is_typed_is_the_users_own():
    typed = ["rewards.w.name=worker", 'rewards.w.options.requirements=["x"]', "model.name=m:M"]
    run = load(["tiny"], [*typed, f"rewards.w.options.target={OURS}"], code="entry points")
    assert run.model.name == "m:M"
    assert choose_terms(["mine:A"])["A"].name == "mine:A"


@pytest.mark.parametrize("name", ["worker", WORKER])
def test_a_worker_is_known_by_each_of_its_names_and_hides_no_other(name, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(f'[rewards.w]\nname = "{name}"\noptions.target = "{OURS}"\n')
    load(["tiny", str(recipe)], code="entry points")
    recipe.write_text(f'[rewards.w]\nname = "{name}"\noptions.target = "{WORKER}"\n')
    with pytest.raises(ConfigError, match="add --allow-code"):
        load(["tiny", str(recipe)], ["rewards.w.weight=1"])


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--resume", "RUN"],
        ["train", "--resume", "RUN", "--set", "train.steps=9"],
        ["train", "tiny", "--out", "RUN", "--auto-resume"],
        ["eval", "RUN"],
        ["export", "RUN", "x", "--format", "merged"],
        ["generate", "a cat", "--run", "RUN"],
        ["speed", "RUN"],
        ["score", "RUN", "--recipe", "RUN/mine.toml"],
        ["serve-rewards", "--recipe", "RUN/mine.toml"],
        ["over-time", "RUN", "--recipe", "RUN/mine.toml"],
    ],
    ids=" ".join,
)
def test_every_command_that_reads_a_run_or_rewards_refuses_code_and_tells_the_way_out(
    command, tmp_path, monkeypatch
):
    imported = []
    monkeypatch.setattr("astrolabe.registry.import_module", imported.append)
    text = '[rewards.blur]\nname = "mine:Blur"\n'
    (tmp_path / "mine.toml").write_text(text)
    RunFolder(tmp_path).begin(load(["tiny", str(tmp_path / "mine.toml")]))
    typed = [part.replace("RUN", str(tmp_path)) for part in command]
    done = CliRunner().invoke(app, typed)
    assert isinstance(done.exception, ConfigError)
    assert "rewards.blur.name is 'mine:Blur'" in str(done.exception)
    assert "--allow-code (or set ASTROLABE_ALLOW_CODE=1)" in str(done.exception)
    assert imported == []


def test_the_environment_variable_says_the_same_as_the_option(tmp_path, monkeypatch):
    RunFolder(tmp_path).begin(load(["tiny"], ["model.name=mine:Model"]))
    monkeypatch.setenv("ASTROLABE_ALLOW_CODE", "1")
    (tmp_path / "checkpoints").mkdir()
    done = CliRunner().invoke(app, ["export", str(tmp_path), str(tmp_path / "x")])
    assert "has no checkpoint yet" in str(done.exception)


class Writes:
    def __call__(self, batch: TensorDictBase) -> TensorDictBase: ...


class Own(Reward):
    name, unit = "own", "none"

    def score(self, pixels, prompts, fps): ...


def make_own() -> Own: ...


def make_call() -> Callable[[TensorDictBase], TensorDictBase]: ...


def make_model() -> VideoModel: ...


def make_list() -> list[str]: ...


def unsaid(): ...


def command(text: str) -> int: ...


FITTING = {
    "models": [VideoModel, make_model, partial(make_model)],
    "rewards": [Own, Writes, make_own, make_call, partial(make_own), NFTLoss],  # it takes a batch
    "objectives": [NFTLoss],
    "suites": [make_list],
}


def test_what_is_called_is_of_its_kind_by_class_or_annotation():
    everything = [*{id(one): one for some in FITTING.values() for one in some}.values()]
    for kind, fitting in FITTING.items():
        for one in [*everything, unsaid, command, print, dict, partial(print), list, str]:
            assert is_of_kind(kind, one) == any(one is fit for fit in fitting), (kind, one)


@pytest.mark.parametrize("kind", FITTING)
@pytest.mark.parametrize(
    "name",
    ["os:system", "subprocess:Popen", "builtins:exec", "antigravity:fly", "pip._internal:main"],
)
def test_modules_of_python_are_not_even_imported(kind, name, monkeypatch):
    imported = []
    monkeypatch.setattr("astrolabe.registry.import_module", imported.append)
    with pytest.raises(LookupError, match="in a module of Python itself"):
        find(kind, name, "here")
    assert imported == []


@pytest.mark.parametrize(
    "name", [":x", "x:", ":", "a b:c", ".a:b", "a:b:c", "a:b.", "a;b:c", "a\0:b"]
)
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(LookupError, match=r"is no part\. Write module:attribute"):
        find("rewards", name, "here")


@pytest.mark.parametrize("name", ["torch:load", "sympy:Lambda", "torch.hub:load", "torch:nn"])
def test_what_others_installed_is_not_called_for_a_part(name):
    with pytest.raises(LookupError, match=f"here: '{name}' is"):
        find("rewards", name, "here")


def test_a_module_that_fails_or_exits_while_it_is_imported_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    for number, line in enumerate(("raise SystemExit(0)", "1 / 0", "def")):
        (tmp_path / f"bad{number}.py").write_text(line)
        with pytest.raises(LookupError, match=f"bad{number}:A' cannot be imported"):
            find("rewards", f"bad{number}:A", "here")
        sys.modules.pop(f"bad{number}", None)
