"""No secret is kept or printed, and nothing that others wrote reaches a terminal as it is."""

import ast
import io
import json
import logging
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import astrolabe
from astrolabe.cli import main
from astrolabe.errors import ConfigError
from astrolabe.load import from_json, load, recipe_names, to_json
from astrolabe.masking import hide, variable_of
from astrolabe.recipe_changes import check_changes
from astrolabe.registry import build
from astrolabe.screen import console, echo, guard
from astrolabe.view import LiveView, View

URL = "http://me:hunter2@127.0.0.1:1/x?api_key=q-77&n=3"
NAME = "rewards.remote.options.url"
EVIL = "a[red]cat\x1b[2J\x9b2J\u202e\udc80"
TAMED = r"a[red]cat\x1b[2J\x9b2J\u202e\udc80"


@pytest.fixture
def secret(small):
    options = [f"{NAME}={URL!r}", "rewards.remote.options.reward='a'"]
    return load(["tiny"], [*small, *options])


@pytest.fixture
def kept(secret, tmp_path):
    """The settings of that run as they are in its folder."""
    path = tmp_path / "config.json"
    path.write_text(to_json(secret))
    return path


def test_settings_are_kept_without_secrets_and_get_them_back(secret, kept, monkeypatch):
    assert "hunter2" not in kept.read_text()
    assert "q-77" not in kept.read_text()
    assert "http://***@127.0.0.1:1/x?api_key=***&n=3" in kept.read_text()
    assert from_json(kept, known=secret) == secret
    monkeypatch.setenv(variable_of(NAME), URL)
    assert from_json(kept) == secret


def test_a_setting_whose_secret_is_lacking_is_refused_with_both_ways_to_give_it(kept):
    run = from_json(kept)
    with pytest.raises(
        ConfigError, match=r"ASTROLABE_REWARDS_REMOTE_OPTIONS_URL.*--set"
    ) as refused:
        build("rewards", "remote", run.rewards["remote"].options, where="rewards.remote")
    assert str(refused.value).startswith(f"{NAME} is without its secret")


def test_another_password_is_no_other_run(secret, kept):
    term = secret.rewards["remote"]
    other = replace(term, options=term.options | {"url": URL.replace("hunter2", "swordfish")})
    check_changes(
        from_json(kept), replace(secret, rewards=secret.rewards | {"remote": other}), force=False
    )


@pytest.mark.parametrize("recipe", recipe_names())
def test_of_packaged_recipes_nothing_is_hidden(recipe):
    settings = json.loads(json.dumps(asdict(load([recipe]))))
    assert hide(settings) == settings


def test_no_command_prints_a_secret(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [word for text in small for word in ("--set", text)]
    words += ["--set", f"{NAME}={URL!r}", "--set", "rewards.remote.options.reward='a'"]
    for more in ("--dry-run", "--out=run"):
        with pytest.raises(SystemExit) as ended:
            main(["train", *words, more])
        assert ended.value.code == 2
        said = "".join(capsys.readouterr())
        assert "127.0.0.1" in said
        assert "hunter2" not in said
        assert "q-77" not in said


def test_what_others_wrote_is_printed_as_it_is_written_in_python(capsys):
    echo(EVIL)
    View(1, console()).say(EVIL)
    guard()
    logging.lastResort.handle(logging.makeLogRecord({"msg": EVIL, "levelno": logging.ERROR}))
    assert warnings.formatwarning(EVIL, UserWarning, "file.py", 1).count(TAMED) == 1
    said = capsys.readouterr()
    assert said.out == f"{TAMED}\n{TAMED}\n"
    assert said.err == f"{TAMED}\n"


def test_a_live_table_shows_markup_as_it_is():
    screen = console()
    screen.file = io.StringIO()
    view = LiveView(1, screen, EVIL)
    view.step(1, {f"reward/{EVIL}": 1.0})
    screen.print(view.render())
    assert screen.file.getvalue().count("[red]") == 2
    assert not set("\x1b\x9b\u202e\udc80") & set(screen.file.getvalue())


def test_files_of_strange_names_end_in_one_plain_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a\x1b[2J\nerror: b.mp4"
    path.write_bytes(b"no video")
    with pytest.raises(SystemExit):
        main(["score", str(path), "--reward", "sharpness_vq"])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "\x1b" not in said


#: Modules that use the streams themselves, and why.
PRINTING = {
    "screen.py": "the one place",
    "watchdog.py": "the last words of a process, through `shown`",
    "lookout.py": "the last words about a process that hangs",
    "rank_log.py": "tells that the log itself fails",
    "view.py": "asks whether it is a terminal",
    "generation.py": "asks whether it is a terminal",
}


def test_no_other_module_prints():
    found = set()
    for path in Path(astrolabe.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name in ("print", "Console", "typer.echo", "typer.secho") or "sys.std" in name:
                found.add(path.name)
    assert found == PRINTING.keys()
