"""What each library does where the libraries of its extras are not installed."""

import pkgutil
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
#: Modules that an extra brings, as they are imported.
ABSENT = {
    "astrolabe_rollout": (
        "diffusers ftfy huggingface_hub peft ray safetensors tokenizers transformers"
    ),
    "astrolabe_rewards": (
        "PIL av cv2 httpx huggingface_hub open_clip starlette tokenizers torchvision transformers "
        "uvicorn"
    ),
    "astrolabe_eval": "tensordict torch",
}


def install_line(package, extra):
    path = ROOT / "packages" / package.replace("_", "-") / "pyproject.toml"
    wanted = tomllib.loads(path.read_text())["project"]["optional-dependencies"][extra]
    return "pip install " + " ".join(map(repr, sorted(wanted)))


class Without:
    """The finders of Python's imports, blind for some packages."""

    def __init__(self, names, finders):
        self.names, self.finders = names, finders

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            return None
        found = (finder.find_spec(name, path, target) for finder in self.finders)
        return next((spec for spec in found if spec is not None), None)

    def find_distributions(self, *context):
        for finder in self.finders:
            yield from getattr(finder, "find_distributions", lambda *_: ())(*context)


@pytest.fixture
def bare(monkeypatch):
    """Imports a package anew, in an environment without the libraries of its extras."""
    before, bared = dict(sys.modules), []

    def drop(package):
        for name in [*sys.modules]:
            if name.partition(".")[0] in (package, *ABSENT[package].split()):
                del sys.modules[name]

    def bare(package):
        drop(package)
        bared.append(package)
        monkeypatch.setattr(sys, "meta_path", [Without(ABSENT[package].split(), sys.meta_path)])
        return import_module(package)

    yield bare
    for package in bared:
        drop(package)
    sys.modules.update(before)


def test_without_the_models_rollout_has_its_environment_and_names_what_is_absent(bare):
    package = bare("astrolabe_rollout")
    for name in ("PromptEnv", "GroupSampler", "make_collector", "read_prompts", "Geometry"):
        getattr(package, name)
    line, refused = install_line("astrolabe_rollout", "wan"), {}
    for module in pkgutil.iter_modules(package.__path__):
        try:
            import_module(f"astrolabe_rollout.{module.name}")
        except ModuleNotFoundError as error:
            refused[module.name] = error
    for error in refused.values():
        assert f"need {error.name}. Install it: {line}." in str(error)
    assert {"tiny", "wan", "lora", "text"} <= refused.keys()
    assert not refused.keys() & {"env", "prompts", "collector", "schedule", "scenes", "windows"}


def test_without_extras_every_reward_can_be_imported_and_names_what_it_needs(bare):
    package = bare("astrolabe_rewards")
    for module in pkgutil.iter_modules(package.__path__):
        import_module(f"astrolabe_rewards.{module.name}")
    needs = import_module("astrolabe_rewards.needs")._NEEDS
    assert len(needs) > 12
    for target, (extra, _) in needs.items():
        module, name = target.split(":")
        options = {"url": "http://127.0.0.1:9", "reward": "x"} if name == "RemoteReward" else {}
        options |= {"model": "x"} if name == "VLMJudge" else {}
        reward = getattr(import_module(f"astrolabe_rewards.{module}"), name)
        with pytest.raises(ModuleNotFoundError) as caught:
            reward(**options)
        assert f"Install it: {install_line('astrolabe_rewards', extra)}." in str(caught.value)


def test_without_torch_eval_has_totals_tables_and_statistics(bare):
    package = bare("astrolabe_eval")
    for name in package.__all__:
        getattr(package, name)
    suite = package.Suite("demo", tuple("abcdefgh"))
    before = package.Evaluation(suite=suite, rewards={"total": np.arange(8.0)})
    after = package.Evaluation(suite=suite, rewards={"total": np.arange(8.0) + 1})
    assert "1" in package.markdown_table(package.compare_many(before, {"later": after}))
    assert package.totals({"motion_smoothness": 0.99}).partial
    line = install_line("astrolabe_eval", "torch")
    for call in (
        lambda: package.generate(len, suite, fps=8),
        lambda: package.score_suite([], len),
        lambda: package.score_intervals({}, len, {}, model="x"),
    ):
        with pytest.raises(ModuleNotFoundError) as caught:
            call()
        assert f"needs torch and tensordict. Install it: {line}." in str(caught.value)
