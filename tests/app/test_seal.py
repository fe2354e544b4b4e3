"""A run goes on, and is read, with the settings that its checkpoints keep, or is refused."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from astrolabe import session
from astrolabe.checkpoint_files import damage, publish, settings_of
from astrolabe.cli import app
from astrolabe.errors import ConfigError
from astrolabe.load import changed, load, to_table
from astrolabe.recipe_changes import check_judged
from astrolabe.run_folder import RunFolder


@pytest.fixture
def run():
    return load(["tiny"], ["rewards.sharpness_vq.weight=0", "train.lr=0.001", "train.steps=30"])


@pytest.fixture
def folder(tmp_path, run):
    """A run with two checkpoints that hold nothing but what is known of them."""
    folder = RunFolder.claim(tmp_path / "run")
    folder.begin(run)
    for step in (10, 20):
        add(folder, step, run)
    return folder


def add(folder, step, run):
    part = folder.checkpoints / ".part"
    part.mkdir(parents=True)
    publish(part, folder.checkpoints / f"step-{step:06d}", None, run and to_table(run))


def edit(folder, **texts):
    """Replace texts in the settings, as an editor does."""
    content = folder.config.read_text()
    for old, new in texts.values():
        assert content.count(old) == 1
        content = content.replace(old, new)
    folder.config.write_text(content)


LR = {"lr": ('"lr": 0.001', '"lr": 0.002')}
STEPS = {"steps": ('"steps": 30', '"steps": 31')}


def test_the_settings_that_a_run_is_saved_with_are_those_it_is_read_with(folder, run):
    assert RunFolder.open(folder.path)[1] == run
    content = json.loads(folder.config.read_text())
    folder.config.write_text(json.dumps(content, indent=7, sort_keys=True))
    with pytest.raises(
        ConfigError, match=r"rewards \(order\): 'sharpness_vq, flow_mq, tiny_ta' ->"
    ):
        RunFolder.open(folder.path)  # a sum in another order is rounded otherwise
    folder.config.write_text(json.dumps(content))  # other spaces are the same settings
    assert RunFolder.open(folder.path)[1] == run


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--resume", "RUN"],
        ["train", "--resume", "RUN", "--force"],
        ["train", "--resume", "RUN", "--set", "train.steps=40", "--force"],
        ["eval", "RUN"],
        ["eval", "RUN", "--set", "evaluation.num_videos=4"],
        ["export", "RUN", "x"],
        ["export", "RUN", "x", "--format", "merged"],
        ["generate", "a cat", "--run", "RUN"],
        ["speed", "RUN"],
    ],
    ids=" ".join,
)
def test_every_command_refuses_a_changed_digit_and_names_it(folder, command):
    edit(folder, **LR)
    done = CliRunner().invoke(app, [part.replace("RUN", str(folder.path)) for part in command])
    assert isinstance(done.exception, ConfigError)
    told = str(done.exception)
    assert told == (
        f"'{folder.config}' was changed after step-000020 was saved (train.lr: 0.001 -> 0.002). "
        "Put back what was saved; with another train.lr it would be another run, which takes "
        "another --out."
    )


def test_a_change_that_is_allowed_says_how_to_make_it(folder):
    edit(folder, **STEPS)
    with pytest.raises(ConfigError) as caught:
        RunFolder.open(folder.path)
    assert "(train.steps: 30 -> 31). Put back what was saved; to change them" in str(caught.value)
    assert f"--resume {folder.path} --set train.steps=VALUE --force." in str(caught.value)


def test_what_is_typed_need_not_be_put_back_first(folder, run):
    edit(folder, **LR, **STEPS)
    assert RunFolder.open(folder.path, typed=["train.lr", "train.steps"])[1] == run
    assert RunFolder.open(folder.path, typed=["train"])[1] == run
    assert RunFolder.open(folder.path, known=run)[1] == run  # all of it, as with a recipe
    with pytest.raises(ConfigError, match=r"\(train\.lr: [^;]*\)"):
        RunFolder.open(folder.path, typed=["train.steps"])


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ('"at_end": true', '"at_end": false', "evaluation.at_end: True -> False"),
        ('"judges": {', '"judges": {"x": {"name": "flow_mq"}, ', r"judges\.x\.name: '\(not set\)'"),
        ('"flow_mq": {', '"flow_m": {', r"rewards\.flow_mq\.weight: 1\.0 -> '\(not set\)'"),
    ],
)
def test_entries_that_came_or_went_are_named(folder, old, new, name):
    edit(folder, one=(old, new))
    with pytest.raises(ConfigError, match=name):
        RunFolder.open(folder.path)


def test_true_is_not_one(tmp_path):
    run = load(["tiny"], ["objective.options.flag=true"])
    folder = RunFolder.claim(tmp_path / "run")
    folder.begin(run)
    add(folder, 1, run)
    edit(folder, one=('"flag": true', '"flag": 1'))
    with pytest.raises(ConfigError, match=r"flag: True -> 1"):
        RunFolder.open(folder.path)


def test_settings_that_a_run_goes_on_with_are_kept_in_all_its_checkpoints(folder, run):
    longer = changed(run, ["train.steps=40"])
    folder.begin(longer)
    assert [settings_of(path) for path in folder.all_checkpoints()] == [to_table(longer)] * 2
    assert [damage(path) for path in folder.all_checkpoints()] == [None, None]
    assert RunFolder.open(folder.path)[1] == longer


def test_a_checkpoint_of_an_earlier_version_is_said_once_and_used(tmp_path, run, caplog):
    folder = RunFolder.claim(tmp_path / "run")
    folder.begin(run)
    assert RunFolder.open(folder.path)[1] == run
    assert caplog.text == ""  # nothing is saved yet
    add(folder, 10, None)
    edit(folder, **STEPS)
    assert RunFolder.open(folder.path)[1] == changed(run, ["train.steps=31"])
    assert caplog.text.count("no checkpoint keeps its settings, as those of earlier versions") == 1
    folder.begin(run)
    assert settings_of(folder.checkpoints / "step-000010") is None
    add(folder, 20, run)
    caplog.clear()
    edit(folder, **STEPS)
    with pytest.raises(ConfigError, match="after step-000020 was saved"):
        RunFolder.open(folder.path)
    assert caplog.text == ""


def test_a_manifest_that_was_changed_too_says_nothing_and_an_older_one_does(folder):
    edit(folder, **LR)
    manifest = folder.checkpoints / "step-000020" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"lr": 0.001', '"lr": 0.002'))
    assert damage(manifest.parent) == "manifest.json does not hold what was saved"
    with pytest.raises(ConfigError, match=r"after step-000010 was saved \(train\.lr"):
        RunFolder.open(folder.path)


def test_settings_of_another_version_are_said_and_do_not_stand_in_the_way(folder, run, caplog):
    part = folder.checkpoints / ".part"
    part.mkdir()
    publish(part, folder.checkpoints / "step-000030", None, to_table(run) | {"later": 1})
    assert RunFolder.open(folder.path)[1] == run
    assert "step-000030 keeps settings of another version (" in caplog.text


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        (["evaluation.num_videos=4", "evaluation.judges.a.name=flow_mq"], None),
        (["rewards.sharpness_vq.options.power=2", "rewards.sharpness_vq.name=flow_mq"], None),
        (["rewards.sharpness_vq.weight=1"], r"another rewards\.sharpness_vq\.weight this"),
        (["rewards.flow_mq.options.power=2"], r"another rewards\.flow_mq\.options, "),
        (["train.lr=1"], r"another train\.lr this would not be what the run has trained"),
        (["model.options.layers=2"], r"model\.options"),
    ],
)
def test_an_evaluation_changes_nothing_that_was_trained(run, changes, wrong):
    if wrong is None:
        check_judged(run, changed(run, changes))
        return
    with pytest.raises(ConfigError, match=wrong):
        check_judged(run, changed(run, changes))


def test_a_held_out_reward_cannot_be_taken_out_of_an_evaluation(folder):
    command = ["eval", str(folder.path), "--unset", "rewards.sharpness_vq"]
    done = CliRunner().invoke(app, command)
    assert "with another rewards.sharpness_vq.weight" in str(done.exception)


@pytest.fixture
def misspelt(trained, tmp_path):
    """A finished run whose judge was misspelt from the beginning, as its checkpoints say."""
    shutil.copytree(trained, tmp_path / "run")
    folder, run = RunFolder.open(tmp_path / "run")
    folder.begin(changed(run, ["evaluation.judges.piksel_check.weight=1"]))
    return folder


MENDED = ["--unset", "evaluation.judges.piksel_check"]


def test_a_misspelt_judge_is_mended_for_one_evaluation(misspelt):
    before = misspelt.config.read_bytes()
    done = CliRunner().invoke(app, ["eval", str(misspelt.path)])
    assert "'piksel_check'" in str(done.exception)
    right = ["--set", "evaluation.judges.pixel_check={}", "--set", "evaluation.num_videos=2"]
    done = CliRunner().invoke(app, ["eval", str(misspelt.path), *MENDED, *right])
    assert done.exception is None, done.output
    assert "pixel_check (judge)" in done.output
    assert misspelt.config.read_bytes() == before


def test_a_misspelt_judge_is_mended_for_good_with_a_report(misspelt):
    changes = {
        "overrides": ["evaluation.at_end=true", "evaluation.num_videos=2"],
        "unset": [MENDED[1]],
    }
    with pytest.raises(LookupError, match="piksel_check"):
        session.resume(misspelt.path, overrides=changes["overrides"], force=True)
    with pytest.raises(ConfigError, match=r"judges\.piksel_check.*repeat the command with --force"):
        session.resume(misspelt.path, **changes)
    assert session.resume(misspelt.path, **changes, force=True) == 0
    assert misspelt.report.exists()
    assert "piksel_check" not in misspelt.config.read_text()
    newest = misspelt.all_checkpoints()[-1]
    assert damage(newest) is None
    assert "piksel_check" not in json.dumps(settings_of(newest))


def test_a_run_whose_metrics_are_damaged_goes_on_and_says_so(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    first, second = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"\xff" + first[1:] + second)
    assert session.resume(tmp_path / "run") == 0
    assert "line 1 is damaged (its byte 1 is no UTF-8)" in " ".join(capsys.readouterr().out.split())
    assert metrics.read_bytes() == second
    kept = metrics.with_name("metrics.jsonl.damaged-1")
    assert kept.read_bytes() == b"\xff" + first[1:] + second
    shutil.rmtree(tmp_path / "run" / "samples", ignore_errors=True)
    metrics.unlink()
    metrics.mkdir()
    with pytest.raises(OSError, match=r"metrics\.jsonl' cannot be used \(it is a folder"):
        session.resume(tmp_path / "run")
