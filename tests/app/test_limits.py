"""Every number of the settings and of the command line is finite and bounded."""

import math
from dataclasses import fields, is_dataclass
from typing import get_args, get_type_hints

import pytest
import typer

from astrolabe.cli import MODULES, app
from astrolabe.config import Run
from astrolabe.errors import ConfigError
from astrolabe.limits import OPTIONS, SETTINGS
from astrolabe.load import load

#: The last has more digits than Python reads.
WRONG = ("nan", "inf", "-inf", "1e300", str(10**400), str(-(10**30)), "9" * 5000)


def kinds_of(hint):
    """Types that a type is made of."""
    inner = [kind for part in get_args(hint) for kind in kinds_of(part)]
    return {*inner, hint} if isinstance(hint, type) else {*inner}


def tables(kind=Run, path=""):
    """Paths of all tables of settings."""
    for item in fields(kind):
        hint = get_type_hints(kind)[item.name]
        inner = next((each for each in (hint, *get_args(hint)) if is_dataclass(each)), None)
        if inner is not None:
            name = f"{path}{item.name}" + ("" if inner is hint else ".sharpness_vq")
            yield inner, name
            yield from tables(inner, f"{name}.")


NUMBERS = {
    f"{name}.{item.name}": (f"{kind.__name__}.{item.name}", get_type_hints(kind)[item.name])
    for kind, name in tables()
    for item in fields(kind)
    if kinds_of(get_type_hints(kind)[item.name]) & {int, float}
}


def test_each_range_is_that_of_a_setting():
    assert {field for field, _ in NUMBERS.values()} == set(SETTINGS)
    assert all(
        math.isfinite(end) for pair in [*SETTINGS.values(), *OPTIONS.values()] for end in pair
    )


@pytest.mark.parametrize("setting", NUMBERS)
def test_a_number_that_is_none_or_too_large_is_refused_in_every_setting(setting):
    _, hint = NUMBERS[setting]
    form = "{}"
    if hint not in (int, float):
        form = {"betas": "[{}, 0.9]", "starts": "[{}]", "curriculum": "[[0, {}]]"}[
            setting.rpartition(".")[2]
        ]
    for number in WRONG:
        with pytest.raises(ConfigError, match=setting) as refused:
            load(["tiny"], [f"{setting}={form.format(number)}"])
        assert "\n" not in str(refused.value)


def options():
    """Names of commands and of those of their options that are numbers."""
    for module in MODULES:
        for command in module.commands.registered_commands:
            hints = get_type_hints(command.callback)
            numbers = [name for name, hint in hints.items() if kinds_of(hint) & {int, float}]
            yield command.name or command.callback.__name__.replace("_", "-"), numbers


def test_a_number_that_is_none_or_too_large_is_refused_in_every_option():
    found, command, usage = set(), typer.main.get_command(app), typer.BadParameter
    required = {
        "plan": ["tiny"],
        "score": ["v"],
        "votes": ["v"],
        "over-time": ["v"],
        "generate": ["a cat"],
        "speed": ["r"],
        "eval": ["r"],
        "watch": ["r"],
    }
    for name, parameters in options():
        found.update(parameters)
        for parameter in parameters:
            option = f"--{parameter.replace('_', '-')}"
            for number in WRONG:
                typed = [name, *required.get(name, []), option, number]
                with pytest.raises((ConfigError, usage)) as refused:
                    command(typed, standalone_mode=False)
                told = getattr(refused.value, "format_message", refused.value.__str__)()
                assert option in told, typed
    assert found == set(OPTIONS)
