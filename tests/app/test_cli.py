import json
import shutil
import subprocess
import sys
import tomllib
from collections import namedtuple

import numpy as np
import pytest

from astrolabe.cli import main
from astrolabe.keys_table import END, START, put_table, table
from astrolabe.load import overlay_names, read_recipe, recipe_names
from astrolabe_eval import read_mp4, write_mp4


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Run a command in an empty folder; return its one line if it is refused without a trace."""
    monkeypatch.chdir(tmp_path)

    def check(*arguments):
        # The lock of a run's folder stays, held by nobody.
        before = {*tmp_path.rglob("*"), tmp_path / ".lock"}
        assert run(*arguments) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert {*tmp_path.rglob("*"), tmp_path / ".lock"} == before
        return lines[0]

    return check


def settings(overrides):
    return [word for text in overrides for word in ("--set", text)]


def test_help_loads_no_torch():
    code = (
        "import sys\nfrom astrolabe.cli import main\n"
        "try:\n    main(['train', '--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'torchrl', 'tensordict', 'diffusers', 'numpy', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "astrolabe train --resume" in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        *("train", "eval", "generate", "score", "convert", "export"),
        *("recipes", "parts", "keys", "doctor"),
    ],
)
def test_every_command_explains_itself(capsys, command):
    assert run(command, "--help") == 0
    assert "Usage: astrolabe" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "tiyn"], "error: there is no recipe 'tiyn'. Did you mean 'tiny'?"),
        (["train", "--set", "train.step=3"], "Did you mean train.steps?"),
        (["train", "--set", "train.steps=ten"], "It must be a whole number"),
        (["train", "--set", "rollout.group_size=1"], "Set it to 2 or more"),
        (["train", "--set", "model.name=tinny"], "Did you mean 'tiny'?"),
        (["train", "--set", "model.options.pth=x"], "Did you mean 'path'?"),
        (["train", "--set", "model.options.path=nowhere"], "there is no 'nowhere/"),
        (["train", "--set", "rewards.flow_mg.weight=1"], "Did you mean 'flow_mq'?"),
        (["train", "--set", "rewards.flow_mq.options.fps=1"], "has no option 'fps'"),
        (["train", "--set", "objective.name=nfft"], "Did you mean 'nft'?"),
        (["train", "--set", "objective.options.bta=1"], "Did you mean 'beta'?"),
        (["train", "--set", "objective.options.beta=-1"], "Give more than 0"),
        (["train", "--set", "rollout.num_frames=10"], "Take 9 (33 pixel frames) or 12"),
        (["train", "--set", "rollout.prompts=no.txt"], "there is no prompt file 'no.txt'"),
        (["train", "--set", "rollout.prompts=tiny_trian"], "Did you mean 'tiny_train'?"),
        (["train", "--resume", "nowhere"], "is no run folder"),
        (["train", "--resume", "nowhere", "--dry-run"], "--resume goes on in the folder"),
        (["train", "--auto-resume"], "Name it with --out"),
        (["eval", "nowhere"], "is no run folder"),
        (["generate"], "there is no prompt"),
        (["generate", "a", "--frames", "33", "--seconds", "2"], "are both given"),
        (["generate", "a", "--frames", "34"], "--frames: 34 pixel frames are no whole number"),
        (["generate", "a", "--seconds", "-1"], "--seconds is -1"),
        (["generate", "--file", "no.txt"], "there is no prompt file 'no.txt'"),
        (["generate", "a", "--model", "tinny"], "Did you mean 'tiny'?"),
        (["generate", "a[5x] | b"], "character 3: '5x' is no length"),
        (["generate", "a", "--begin", "no.png"], "there is no file 'no.png'"),
        (["generate", "a", "--switch-frames", "4"], "--switch-frames belongs to --file"),
        (["generate", "a", "--switch-frames", "x"], "is no list of latent frames"),
        (["generate", "a", "--set", "train.steps=3"], "only model.options.NAME=VALUE"),
        (["generate", "a", "--set", "model.options.pth=x"], "Did you mean 'path'?"),
        (["score", "no.mp4"], "There is no video file 'no.mp4'"),
        (["score", "no.mp4", "--reward", "flow"], "Did you mean 'flow_mq'?"),
        (["score", "a", "b", "c", "--prompt", "x", "--prompt", "y"], "2 prompts for 3 videos"),
        (["recipes", "tiyn"], "Did you mean 'tiny'?"),
        (["parts", "reward"], "Did you mean 'rewards'?"),
        (["parts", "rewards", "flow"], "Did you mean 'flow_mq'?"),
    ],
)
def test_a_mistake_ends_in_one_line_with_the_way_out(refused, small, arguments, message):
    model = settings(small[:2]) if arguments[0] == "train" and "--resume" not in arguments else []
    if arguments[0] == "generate" and ("--frames" in arguments or "--seconds" in arguments):
        pytest.importorskip("astrolabe_rollout.tiny")
    assert message in refused(arguments[0], *model, *arguments[1:])


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "holds no prompt"), (b"\n \n", "holds no prompt"), (b"a caf\xe9\n", "is not UTF-8")],
)
def test_a_bad_prompt_file_is_named(refused, tmp_path, content, message):
    (tmp_path / "prompts.txt").write_bytes(content)
    for command in (
        ["train", "--set", "rollout.prompts=prompts.txt"],
        ["generate", "--file", "prompts.txt"],
    ):
        line = refused(*command)
        assert "prompts.txt" in line
        assert message in line


def test_a_run_folder_that_exists_is_left_alone(refused, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    line = refused("train", "--out", "run")
    assert "'run' exists and is not empty" in line
    assert "--resume run" in line


def test_a_folder_that_cannot_be_written_is_named(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in refused("train", "--out", "file/run")


def test_a_full_disk_is_noticed_before_work_starts(refused, small, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 90, 10))
    line = refused("train", *settings(small), "--out", "run")
    assert "0 MiB are free and this run needs 6" in line
    assert "Free some space" in line


@pytest.mark.parametrize("name", ["config.json", "checkpoint"])
def test_a_foreign_run_folder_is_refused(refused, tmp_path, small, capsys, name):
    assert run("train", *settings(small), "--dry-run") == 0
    (tmp_path / "config.json").write_text(capsys.readouterr().out)
    if name == "config.json":
        (tmp_path / "config.json").write_text('{"steps": 3}')
    else:
        (tmp_path / "checkpoints" / "step-000001").mkdir(parents=True)
    assert "config.json" in (line := refused("train", "--resume", ".")) or "manifest" in line


def test_a_video_that_is_none_is_refused(refused, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"not a video")
    assert "a.mp4" in refused("score", "a.mp4")


def test_a_dry_run_prints_every_setting_and_makes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("train", "--set", "train.steps=3", "--dry-run") == 0
    assert json.loads(capsys.readouterr().out)["train"]["steps"] == 3
    assert list(tmp_path.iterdir()) == []


def test_a_printed_recipe_is_a_recipe(capsys):
    assert run("recipes", "tiny") == 0
    assert tomllib.loads(capsys.readouterr().out)["model"]["name"] == "tiny"


def test_recipes_are_listed_with_what_they_are_for(capsys):
    assert run("recipes") == 0
    whole, overlays = capsys.readouterr().out.split("\nOverlays, given after a recipe:\n")
    lines = whole.splitlines()
    assert [line.partition(":")[0] for line in lines] == recipe_names()
    assert [line.partition(":")[0] for line in overlays.splitlines()] == overlay_names()
    assert any(line.startswith("tiny: the embedded model") for line in lines)
    for name in (*recipe_names(), *overlay_names()):  # what is listed is the first line alone
        assert read_recipe(name).splitlines()[1].removeprefix("# ")[0].isupper()


def test_parts_are_listed_and_explained(capsys):
    assert run("parts", "rewards") == 0
    assert "flow_mq" in capsys.readouterr().out
    assert run("parts", "objectives", "nft") == 0
    assert "beta: float = 1.0" in capsys.readouterr().out


def test_the_table_of_keys_names_writers_and_readers(capsys):
    assert run("keys") == 0
    lines = capsys.readouterr().out.splitlines()
    reward = next(line for line in lines if '"next", "reward"' in line)
    assert reward.endswith("| rewards | objectives, eval |")
    assert len({line.count("|") for line in lines}) == 1


def test_the_table_is_put_between_its_marks():
    document = f"before\n{START}\nold\n{END}\nafter\n"
    assert put_table(document) == f"before\n{START}\n{table()}{END}\nafter\n"
    assert put_table(put_table(document)) == put_table(document)
    with pytest.raises(ValueError, match="Add both marks"):
        put_table("no marks")


def test_video_files_are_scored(capsys, tmp_path):
    video = np.random.default_rng(0).integers(0, 255, (9, 3, 48, 48), dtype=np.uint8)
    write_mp4(tmp_path / "a.mp4", video, fps=16)
    assert run("score", tmp_path / "a.mp4", "--reward", "sharpness_vq") == 0
    assert "a.mp4  sharpness_vq" in capsys.readouterr().out


def test_doctor_finds_nothing_to_mend_in_a_fresh_clone(capsys):
    assert run("doctor") == 0
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines()}
    assert all(line.startswith("ok") for line in lines.values())
    assert "self_forcing_multi" in lines["recipes"]
    assert "gpu_24gb" not in lines["recipes"]
    assert "gpu_24gb" in lines["overlays"]


def test_a_bug_keeps_its_traceback(monkeypatch):
    import astrolabe.load

    def broken():
        raise ZeroDivisionError

    monkeypatch.setattr(astrolabe.load, "recipe_names", broken)
    with pytest.raises(ZeroDivisionError):
        main(["recipes"])


@pytest.mark.slow
def test_a_run_leaves_everything_it_promises_and_its_adapter_makes_videos(
    small, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert run("train", *settings(small), "--out", "run") == 0
    run_folder = tmp_path / "run"
    found = {path.relative_to(run_folder).as_posix() for path in run_folder.rglob("*")}
    assert found >= {
        "config.json",
        "metrics.jsonl",
        "report.html",
        "report.json",
        "checkpoints/step-000003/lora/adapter_model.safetensors",
        "samples/step-000001/0.mp4",
        "report.csv",
        "report.md",
        "report.tex",
    }
    report = json.loads((run_folder / "report.json").read_text())
    assert report["rewards"]["total"].keys() >= {"before", "after", "difference", "interval"}
    assert report["judges"].keys() == {"pixel_check"}
    assert run("eval", "run", "--num-videos", "3") == 0
    assert json.loads((run_folder / "report.json").read_text())["prompts"] == 3
    capsys.readouterr()
    assert run("generate", "a red circle", "--run", "run", "--frames", "9", "--out", "made") == 0
    video = read_mp4(capsys.readouterr().out.splitlines()[-1])
    assert (video.frames.shape, video.fps) == ((9, 3, 192, 192), 16.0)
