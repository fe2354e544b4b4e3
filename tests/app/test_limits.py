"""Every number of the settings and of the command line is finite and bounded."""

import inspect
import math
import re
from dataclasses import fields, is_dataclass
from typing import get_args, get_type_hints

import pytest
import typer

from astrolabe.cli import MODULES, app
from astrolabe.config import Run
from astrolabe.errors import ConfigError
from astrolabe.limits import OPTIONS, SETTINGS, check_part_option
from astrolabe.load import load
from astrolabe.registry import KINDS, check, find, names, options_of

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


def part_options():
    """Numbers among the options of the installed parts, with what has to be given besides."""
    for kind in KINDS:
        for name in names(kind):
            options = options_of(find(kind, name, kind))
            for option, parameter in options.items():
                if type(parameter.default) in (int, float):
                    yield kind, name, option


@pytest.mark.parametrize(("kind", "name", "option"), [*part_options()])
def test_a_number_that_is_none_or_too_large_is_refused_in_every_option_of_a_part(
    kind, name, option
):
    given = {"reward": "a", "url": "http://a", "target": "a:b", "model": "a", "checkpoint": "a"}
    make = find(kind, name, kind)
    fixed = 3 if kind == "objectives" else 0
    needed = {key: value for key, value in given.items() if key in options_of(make)}
    for value in (*map(float, ("nan", "inf", "-inf", "1e300")), 10**400, -(10**30), "1", True, []):
        with pytest.raises(ConfigError, match=rf"part\.options\.{option} is "):
            check(kind, name, {**needed, option: value}, provided=fixed, where="part")


def test_an_option_of_ones_own_part_is_judged_by_what_its_constructor_states():
    def maker(
        plain=1,
        *,
        share: float = 1,
        open_: float | None = None,
        either: int | str = 1,
        on=False,
        free=None,
    ):
        return plain, share, open_, either, on, free

    takes = inspect.signature(maker).parameters
    for option, value in (
        *(("plain", 2), ("share", 2), ("share", 0.5), ("either", "x"), ("on", True)),
        *(("free", "x"), ("free", [1, "a"]), ("open_", None), ("open_", 1)),
    ):
        check_part_option(option, takes[option], value)
    for option, value, said in (
        ("plain", 1.5, "plain is 1.5. Give a whole number."),
        ("plain", None, "plain is None. Give a whole number."),
        ("open_", "x", "open_ is 'x'. Give a number."),
        ("share", "x", "share is 'x'. Give a number."),
        ("either", 1e300, "either is far too large"),
        ("on", 1, "on is 1. Give true or false."),
        ("free", [1, math.nan], "free is nan. Give a finite number."),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            check_part_option(option, takes[option], value)
