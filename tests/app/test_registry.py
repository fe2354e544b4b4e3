import pytest
from tensordict import TensorDictBase

from astrolabe.errors import ConfigError
from astrolabe.registry import build, find, names


class Part:
    def __call__(self, batch: TensorDictBase): ...

    def __init__(self, network, *, frames=8, top=0.3):
        if top > 1:
            raise ValueError(f"top is {top}. Give a share.")
        self.network, self.frames, self.top = network, frames, top


class Needy(Part):
    def __init__(self, *, path):
        self.path = path


class Open(Part):
    def __init__(self, **options):
        self.options = options


class Broken(Part):
    def __init__(self, *, frames=8):
        raise FileNotFoundError("no weights")


def here(name):
    return f"{__name__}:{name}"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])


def test_built_in_parts_use_the_entry_points():
    assert names("models")["tiny"] == "astrolabe_rollout.tiny:load_tiny"


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(LookupError, match=r"rewards\.a: .*no 'tinny' among the astrolabe\.models"):
        find("models", "tinny", "rewards.a")
    with pytest.raises(LookupError, match=r"Did you mean 'tiny'\?"):
        find("models", "tinny", "model")


def test_a_part_is_found_by_module_and_attribute():
    assert find("rewards", here("Part"), "rewards.a") is Part


@pytest.mark.parametrize("name", ["no_such_module:A", "torch:Nothing"])
def test_what_cannot_be_imported_is_named(name):
    with pytest.raises(LookupError, match=f"rewards.a: '{name}' cannot be imported"):
        find("rewards", name, "rewards.a")


def test_options_and_fixed_arguments_reach_the_constructor():
    part = build("rewards", here("Part"), {"frames": 4}, "network", where="rewards.a")
    assert (part.network, part.frames, part.top) == ("network", 4, 0.3)


def test_unknown_option_suggests_the_nearest():
    message = r"no option 'frame'\. Did you mean 'frames'\? It takes: frames, top"
    with pytest.raises(ConfigError, match=message):
        build("rewards", here("Part"), {"frame": 4}, "network", where="rewards.a")


def test_settings_cannot_replace_what_the_app_provides():
    with pytest.raises(ConfigError, match="no option 'network'"):
        build("rewards", here("Part"), {"network": 1}, "network", where="rewards.a")


def test_a_missing_option_is_named():
    with pytest.raises(
        ConfigError, match=r"needs the option 'path'\. Give it with --set rewards\.a"
    ):
        build("rewards", here("Needy"), {}, where="rewards.a")


def test_a_refused_option_is_the_users_mistake():
    with pytest.raises(ConfigError, match=r"rewards\.a\.options: top is 2\. Give a share"):
        build("rewards", here("Part"), {"top": 2}, "network", where="rewards.a")


def test_a_part_that_takes_anything_is_given_everything():
    assert build("rewards", here("Open"), {"x": 1}, where="rewards.a").options == {"x": 1}


def test_an_error_of_files_keeps_its_type():
    with pytest.raises(FileNotFoundError, match="no weights"):
        build("rewards", here("Broken"), {"frames": 2}, where="rewards.a")
