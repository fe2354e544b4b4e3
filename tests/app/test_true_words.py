"""What is said of a run that was stopped or refused is so, and how to go on works."""

import errno
from pathlib import Path

import pytest
from typer.testing import CliRunner

from astrolabe import generation, session
from astrolabe.cli import app, main
from astrolabe.errors import ConfigError
from astrolabe.explain import explain
from astrolabe.load import changed, load
from astrolabe.run_folder import RunFolder
from astrolabe_eval import input_files
from astrolabe_rollout.scenes import parse_scenes


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_ctrl_c_while_a_new_run_is_loaded_leaves_nothing(small_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(session, "compose", interrupt)
    assert session.start(small_run, tmp_path / "runs" / "new") == session.INTERRUPTED
    said = capsys.readouterr().out
    assert "Stopped before the run began; nothing is kept." in said
    assert "Trained" not in said
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").glob("*/[!l]*"))
    RunFolder.claim(tmp_path / "runs" / "new")


def test_ctrl_c_while_a_run_is_gone_on_with_says_that_it_is_as_it_was(
    small_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(session, "compose", interrupt)
    RunFolder.claim(tmp_path).begin(small_run)
    assert session.resume(tmp_path) == session.INTERRUPTED
    said = " ".join(capsys.readouterr().out.split())
    assert "Stopped before step 1; all is as it was." in said
    assert "Trained" not in said


def test_a_dropped_step_leaves_what_was_being_saved_and_says_so(
    small_run, tmp_path, monkeypatch, capsys
):
    def one_step(*arguments):
        yield next(steps(*arguments))
        raise KeyboardInterrupt  # the second Ctrl-C, in the middle of step 2

    steps = session.train
    monkeypatch.setattr(session, "train", one_step)
    assert session.start(small_run, tmp_path / "run") == session.INTERRUPTED
    assert [path.name for path in RunFolder(tmp_path / "run").all_checkpoints()] == ["step-000001"]
    assert "Stopped; saved after step 1 of 3." in " ".join(capsys.readouterr().out.split())


def test_a_run_that_is_refused_after_it_began_can_be_started_again(small_run, tmp_path):
    options = ["logging.backends=['csv']", "logging.tracker_options.csv.nothing=1"]
    with pytest.raises(ConfigError, match="there is no option 'nothing'"):
        session.start(changed(small_run, options), tmp_path / "run")
    RunFolder.claim(tmp_path / "run")


def test_what_was_learned_is_never_withdrawn(small_run, tmp_path):
    for made in ("checkpoints/step-000001", "metrics.jsonl"):
        folder = RunFolder.claim(tmp_path / made.partition(".")[0].partition("/")[0])
        folder.begin(small_run)
        if made == "metrics.jsonl":
            folder.metrics.write_text('{"step": 1}\n')
        else:
            (folder.path / made).mkdir(parents=True)
        folder.withdraw()
        assert folder.config.exists()


def forbid(path, mode):
    if Path(path).name in ("mine.toml", "config.json"):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return open(path, mode)


def test_a_recipe_or_a_run_that_may_not_be_read_is_no_matter_of_the_output(
    small_run, tmp_path, monkeypatch
):
    (tmp_path / "mine.toml").write_text("")
    RunFolder(tmp_path).begin(small_run)
    monkeypatch.setattr(input_files, "open", forbid, raising=False)  # root may read all files
    with pytest.raises(ConfigError, match=r"mine.toml' cannot be read \(Permission denied\)"):
        load(["tiny", str(tmp_path / "mine.toml")])
    with pytest.raises(ConfigError, match=r"config.json' cannot be read \(Permission denied\)"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_an_error_of_a_file_names_no_option_that_a_command_may_lack(number):
    assert "--" not in explain(OSError(number, "no", "file"))


def test_a_recipe_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbf[train]\r\nsteps = 7\r\n")
    assert load(["tiny", str(path)]).train.steps == 7


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 99 + "]" * 99, "a." * 99 + "b = 1", "a." * 9999 + "b = 1", "[" * 10**5]
)
def test_a_recipe_nested_deeply_is_refused(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"mine.toml' is no TOML"):
        load(["tiny", str(path)])


def test_a_setting_nested_deeply_is_refused():
    with pytest.raises(ConfigError, match=r"--set model\.options\.a.*more than 64 deep"):
        load(["tiny"], ["model.options" + ".a" * 5000 + "=1"])


def test_a_run_has_a_model_of_its_own(small_run, tmp_path, monkeypatch):
    RunFolder(tmp_path).begin(small_run)
    asked = []
    monkeypatch.setattr(generation, "perform", lambda request, say: asked.append(request))
    typed = ["generate", "a cat", "--run", str(tmp_path)]
    done = CliRunner().invoke(app, [*typed, "--model", "tiny"])
    assert "are both given, and a run has a model of its own" in str(done.exception)
    assert not asked
    assert CliRunner().invoke(app, [*typed, "--set", "model.options.layers=3"]).exit_code == 0
    assert asked[0].model.options == {**small_run.model.options, "layers": 3}
    assert asked[0].trained_on == small_run.rollout.num_frames


@pytest.mark.parametrize("frames", ["-4", "0", "4,9999999999", "9" * 400, "9" * 5000, "nan"])
def test_frames_that_no_video_has_are_refused_by_name(frames):
    done = CliRunner().invoke(app, ["generate", "a cat", f"--switch-frames={frames}"])
    assert isinstance(done.exception, ConfigError)
    assert "--switch-frames" in str(done.exception)
    assert len(str(done.exception)) < 200


@pytest.mark.parametrize("seconds", ["0", "100001", "9" * 400])
def test_a_scene_that_no_machine_makes_is_refused_with_its_place(seconds):
    with pytest.raises(ValueError, match="character 7: a scene must be longer than 0 seconds"):
        parse_scenes(f"a cat[{seconds}s]")


def test_a_mistake_is_told_whatever_the_environment_says(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(SystemExit, match="2"):
        main(["recipes", "tiyn"])
    assert "there is no recipe 'tiyn'" in capsys.readouterr().err
