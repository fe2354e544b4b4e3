"""The libraries speak of themselves: who installed one alone has no recipe and no command line."""

import ast
import dataclasses
import re
import typing
from pathlib import Path

import pytest
import typer

from astrolabe.cli import app
from astrolabe.config import Run

SOURCES = sorted((Path(__file__).parents[2] / "packages").glob("*/src/**/*.py"))


def settings(kind, prefix=""):
    """Every setting of a recipe that has a section, as ``train.steps``."""
    for name, hint in typing.get_type_hints(kind).items():
        sections = [one for one in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(one)]
        yield from [f"{prefix}{name}"] if prefix else []
        for section in sections:
            yield from settings(section, f"{prefix}{name}.")


#: Longest first: ``model.options.lora`` is found as ``model.options``, not as ``options.lora``.
SETTINGS = sorted(settings(Run), key=len, reverse=True)
COMMANDS = sorted(typer.main.get_command(app).commands)
APP = {
    "a setting": rf"(?<![\w.])(?:{'|'.join(map(re.escape, SETTINGS))})\b(?!\()",
    "a recipe": r"\brecipes?\b|\[\[\w+\]\]",
    "a flag": r"(?<![\w-])--[a-z][\w-]+",
    "a command": r"\bastrolabe [a-z][\w-]*",
}
#: Texts that are no speech of ours: commands of other programs, arguments, names of file formats.
OTHERS = r"\b(uv|hf|pip|vllm) |^\s*--\S+( '.*')?$|^astrolabe [a-z ]+ \d+$"


def texts(source):
    """Each text of a file, docstrings among them, with its line; what is formatted in is ``{}``."""
    parts = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            values = [
                part.value if isinstance(part, ast.Constant) else "{}" for part in node.values
            ]
            parts |= {id(part) for part in node.values}
            yield node.lineno, "".join(values)
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts
        ):
            yield node.lineno, node.value


def app_words(source):
    if not any(re.search(pattern, source) for pattern in APP.values()):
        return  # to parse a file takes longer
    for line, text in texts(source):
        if not re.search(OTHERS, text):
            for kind, pattern in APP.items():
                yield from ((kind, line, found[0]) for found in re.finditer(pattern, text))


@pytest.mark.parametrize("package", ["rollout", "rewards", "objectives", "eval"])
def test_a_library_has_no_words_of_the_app(package):
    files = [path for path in SOURCES if path.parent.name == f"astrolabe_{package}"]
    assert len(files) > 15
    found = [
        f"{path.name}:{line} speaks of {kind}: {word}"
        for path in files
        for kind, line, word in app_words(path.read_text("utf-8"))
    ]
    assert not found


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Set rollout.group_size to 2.", "a setting"),
        ("(lora.rank and so on)", "a setting"),
        ("{name!r}, or model.options.lora", "a setting"),
        ("as [[rewards]] say", "a recipe"),
        ("in a recipe", "a recipe"),
        ("Serve with more (--max-mib).", "a flag"),
        (f"Start `astrolabe {COMMANDS[0]}`", "a command"),
        ("Try astrolabe serve NAME", "a command"),
    ],
)
def test_the_search_knows_the_app_s_words(text, kind):
    assert kind in [found for found, *_ in app_words(f'raise ValueError(f"""{text}""")')]


@pytest.mark.parametrize("text", ["uv pip install --python X", "--python", "astrolabe votes 1"])
def test_the_search_leaves_others_words(text):
    assert not list(app_words(repr(text)))
