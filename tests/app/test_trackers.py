"""Trackers: what they lack is said at the start, none ends a run, and one run is gone on with."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from astrolabe import trackers
from astrolabe.errors import ConfigError
from astrolabe.run_folder import RunFolder
from astrolabe.trackers import known_runs, mlflow_store, tracker_lacks
from astrolabe.tracking import PATIENCE, Tracker, read_curves

SCRIPT = Path(__file__).parent / "scripts" / "drive_trackers.py"


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """All trackers are there, and nobody has logged in."""
    monkeypatch.setattr(trackers, "find_spec", lambda name: True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_", "NETRC")):
            monkeypatch.delenv(name)


def test_a_tracker_that_fails_is_told_of_once_and_given_up_while_the_run_goes_on(tmp_path):
    said = []
    with Tracker(RunFolder(tmp_path), ["csv"], say=said.append) as tracker:
        tracker.log(1, {"a": 1.0})
        place = tmp_path / "logs" / tmp_path.name / "scalars"
        shutil.rmtree(place)
        place.write_text("somebody else's file")
        for step in range(2, PATIENCE + 4):
            tracker.log(step, {f"new{step}": 1.0})
    assert len(said) == 2
    assert said[0].startswith("The tracker csv failed; the run goes on: ")
    assert said[1] == f"The tracker csv failed {PATIENCE} times in a row and gets no more."
    assert len(read_curves(RunFolder(tmp_path))) == PATIENCE + 3


def test_failures_that_are_not_in_a_row_leave_a_tracker_at_work(tmp_path):
    said = []
    with Tracker(RunFolder(tmp_path), ["csv"], say=said.append) as tracker:
        scalars = tmp_path / "logs" / tmp_path.name / "scalars"
        (scalars / "blocked").write_text("a file where a folder ought to be")
        for step in range(1, 3 * PATIENCE + 1):
            tracker.log(step, {"a" if step % PATIENCE == 0 else "blocked/b": 1.0})
    assert (scalars / "a.csv").read_text().split() == ["3,1.0", "6,1.0", "9,1.0"]
    assert not [text for text in said if "gets no more" in text]


def test_a_tracker_that_cannot_be_opened_does_not_end_the_run(tmp_path):
    (tmp_path / "logs").write_text("somebody else's file")
    said = []
    with Tracker(RunFolder(tmp_path), ["csv"], say=said.append) as tracker:
        tracker.log(1, {"a": 1.0})
    assert len(said) == 1
    assert said[0].startswith("The tracker csv cannot be opened and gets nothing: ")
    assert read_curves(RunFolder(tmp_path)) == {"a": ([1], [1.0])}


def test_an_unknown_option_of_a_tracker_is_refused_by_name(tmp_path):
    told = r"logging\.tracker_options\.csv: there is no option 'dir'\. It takes: exp_name, log_dir"
    with pytest.raises(ConfigError, match=told):
        Tracker(RunFolder(tmp_path), ["csv"], {"csv": {"dir": "x"}})


def test_options_reach_a_tracker(tmp_path):
    options = {"csv": {"log_dir": str(tmp_path / "elsewhere"), "exp_name": "mine"}}
    with Tracker(RunFolder(tmp_path), ["csv"], options) as tracker:
        tracker.log(1, {"a": 0.5})
    assert (tmp_path / "elsewhere" / "mine" / "scalars" / "a.csv").read_text() == "1,0.5\n"


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_tracker_that_is_not_installed_is_said_with_the_command(name, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda module: None)
    (lack,) = tracker_lacks(name, {})
    assert lack["fetch"] == f"pip install {name}"


@pytest.mark.usefixtures("installed")
def test_wandb_without_a_login_is_missing_and_with_one_is_not(tmp_path, monkeypatch):
    (lack,) = tracker_lacks("wandb", {})
    assert lack["source"] == "https://api.wandb.ai"
    assert "wandb login" in lack["why"]
    assert (lack["option"], lack["value"]) == ("offline", "true")
    assert tracker_lacks("wandb", {"offline": True}) == []
    assert tracker_lacks("wandb", {"mode": "offline"}) == []
    for variable, value in (("WANDB_API_KEY", "k"), ("WANDB_MODE", "offline")):
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            assert tracker_lacks("wandb", {}) == []
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password k\n")
    assert tracker_lacks("wandb", {}) == []
    assert tracker_lacks("wandb", {"base_url": "https://wandb.example.org"})
    (tmp_path / ".netrc").unlink()
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nmode = offline\n")
    assert tracker_lacks("wandb", {}) == []


@pytest.mark.usefixtures("installed")
def test_mlflow_keeps_runs_in_a_database_unless_it_is_told_where(tmp_path, monkeypatch):
    assert mlflow_store({}, tmp_path) == f"sqlite:///{tmp_path}/logs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert mlflow_store({}, tmp_path) == "http://127.0.0.1:5000"
    assert mlflow_store({"tracking_uri": "databricks"}, tmp_path) == "databricks"
    monkeypatch.setattr(trackers, "find_spec", lambda name: name == "mlflow" or None)
    assert tracker_lacks("mlflow", {}) == []
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert [lack["source"] for lack in tracker_lacks("mlflow", {})] == ["sqlalchemy"]


@pytest.mark.parametrize("content", [None, "", "[]", "{"])
def test_a_damaged_list_of_runs_starts_new_ones(tmp_path, content):
    if content is not None:
        (tmp_path / "trackers.json").write_text(content)
    assert known_runs(tmp_path) == {}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("uv") is None, reason="uv installs the trackers for this test")
def test_every_tracker_gets_the_numbers_and_goes_on_with_its_run(tmp_path):
    packages = ("tensorboard", "wandb", "mlflow-skinny", "sqlalchemy", "alembic", "trackio")
    wanted = [word for name in packages for word in ("--with", name)]
    folder = tmp_path / "run"
    folder.mkdir()
    done = subprocess.run(
        ["uv", "run", "--no-sync", *wanted, "python", str(SCRIPT), str(folder)],
        env=os.environ | {"HOME": str(tmp_path), "TRACKIO_DIR": str(tmp_path / "trackio")},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    report = json.loads(line)
    assert report["said"] == []
    first, second = report["runs"]
    assert first == second
    assert first.keys() == {"wandb", "mlflow"}
    assert report["tensorboard"] == [[1, 0.5], [2, 1.0]]
    assert report["mlflow"] == [[first["mlflow"], 1, 0.5], [first["mlflow"], 2, 1.0]]
    assert report["wandb_ids"] == [f"run-{first['wandb']}"] * 2
    assert report["trackio"] == "run"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"wandb": 3}'])
def test_damaged_runs_of_trackers_are_kept_and_said(tmp_path, caplog, content):
    (tmp_path / "trackers.json.damaged-1").write_text("an earlier one")
    (tmp_path / "trackers.json").write_bytes(content)
    assert known_runs(tmp_path) == {}
    assert (tmp_path / "trackers.json.damaged-2").read_bytes() == content
    assert (tmp_path / "trackers.json.damaged-1").read_text() == "an earlier one"
    assert "trackers.json is damaged: it does not name a run for each tracker" in caplog.text
    caplog.clear()
    assert known_runs(tmp_path) == {}
    assert caplog.text == ""


def test_runs_of_trackers_that_cannot_be_read_are_no_damage(tmp_path):
    (tmp_path / "trackers.json").mkdir()
    with pytest.raises(IsADirectoryError):
        known_runs(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["trackers.json"]
