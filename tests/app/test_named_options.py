"""What help, messages and pages tell a reader to type exists."""

import ast
import re
from pathlib import Path

import pytest
import typer

from astrolabe.cli import app

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path for part in ("apps", "packages") for path in (ROOT / part).glob("*/src/**/*.py")
)
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("*/*/README.md")])
#: Options of other programs that ours name or call.
FOREIGN = {
    "--isolated", "--no-project", "--python", "--with",  # uv run
    "--no-build-isolation", "--no-deps", "--find-links", "--all-packages", "--upgrade",  # pip, uv
    "--nproc-per-node", "--nproc_per_node", "--nnodes", "--node-rank", "--standalone",  # torchrun
    "--master-addr", "--master-port", "--rdzv-backend", "--rdzv-endpoint", "--max-restarts",
    "--monitor-interval", "--rdzv-id",
    "--include", "--local-dir", "--limit-mm-per-prompt",  # hf, vllm
}  # fmt: skip
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
_COMMAND = re.compile(r"(?<![\w/.-])(?:astrolabe|-m astrolabe) ([a-z][a-z-]*)([^\n`|;]*)")


def _options():
    group = typer.main.get_command(app)
    return {
        name: {"--help", *(word for part in command.params for word in _words(part))}
        for name, command in group.commands.items()
    }


def _words(parameter):
    return [*parameter.opts, *parameter.secondary_opts]


OPTIONS = _options()


def _texts(path):
    """Texts of a module, pieces of one f-string joined; a gap stands for what is filled in."""
    tree = ast.parse(path.read_text())
    inside = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                part.value if isinstance(part, ast.Constant) else "{}" for part in node.values
            )
        elif isinstance(node, ast.Constant) and id(node) not in inside:
            yield node.value if isinstance(node.value, str) else ""


def _unknown(text):
    """Options in a text that no command has, and of a command named there that it has not."""
    every = FOREIGN.union(*OPTIONS.values())
    wrong = {word for word in _OPTION.findall(text) if word not in every}
    for name, rest in _COMMAND.findall(text):
        if name in OPTIONS:
            # A sentence may go on to another program.
            rest = re.split(r"\. |: |, | && |#|\) ", rest)[0]
            wrong |= {
                f"{name} {word}" for word in _OPTION.findall(rest) if word not in OPTIONS[name]
            }
    return wrong


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_option_that_a_message_names_exists(path):
    wrong = {word for text in _texts(path) for word in _unknown(text)}
    assert not wrong


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_and_option_on_a_page_exists(path):
    wrong = set()
    for block in re.findall(r"```(?:sh|bash)?\n(.*?)```|`([^`\n]+)`", path.read_text(), re.S):
        text = " ".join(block)
        wrong |= {
            f"{name} {word}"
            for name, rest in _COMMAND.findall(text)
            if name in OPTIONS
            for word in _OPTION.findall(rest.partition("#")[0])
            if word not in OPTIONS[name]
        }
    assert not wrong


def test_a_misspelt_option_is_found():
    assert _unknown("Give it with --num-vidoes.") == {"--num-vidoes"}
    assert _unknown("Make one: astrolabe eval RUN --pairs 3") == {"eval --pairs"}
    assert not _unknown("Make one: astrolabe votes RUN --pairs 3")
