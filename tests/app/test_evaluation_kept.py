"""An evaluation that was killed, or whose files were damaged, ends with the same report."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from astrolabe.cli import main
from astrolabe.evaluate import evaluate
from astrolabe.run_folder import RunFolder
from astrolabe_eval import SuiteFolder

#: One prompt twice in each list: what a text encoder remembers of it must not matter.
PROMPTS = ["a red circle", "a blue square moves left", "a circle", "a red circle", "a big triangle"]


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """The run without its curves, which take longest to draw."""
    path = tmp_path_factory.mktemp("run") / "run"
    shutil.copytree(trained, path)
    (path / "metrics.jsonl").unlink()
    return path


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return str(path)


def evaluated(path, prompts, out, batch_size=2, share=(0, 1), said=None):
    folder, settings = RunFolder.open(path)
    changes = {"exact": False, "num_videos": 0, "prompts": prompts, "batch_size": batch_size}
    settings = replace(settings, evaluation=replace(settings.evaluation, **changes))
    said = [] if said is None else said
    evaluate(folder, settings, said.append, out=out, share=share)
    report = out / "report.json"
    return json.loads(report.read_text())["samples"] if report.exists() else None


def dying(monkeypatch, survives):
    """Let the process die before it keeps one more sample than so many."""
    put, kept = SuiteFolder.put, []

    def dies(self, index, frames, result):
        if len(kept) == survives:
            raise KeyboardInterrupt
        kept.append(index)
        put(self, index, frames, result)

    monkeypatch.setattr(SuiteFolder, "put", dies)
    return lambda: monkeypatch.setattr(SuiteFolder, "put", put)


@pytest.fixture(scope="module")
def straight(run, prompts, tmp_path_factory):
    """The samples of evaluations that nothing interrupted, by the size of their batches."""
    out = tmp_path_factory.mktemp("straight")
    return {size: evaluated(run, prompts, out / str(size), size) for size in (1, 3, 8)}


#: Videos of a batch, and how many are made before the kill.
KILLS = [(1, 2), (3, 4), (3, 7), (8, 3)]


# The fast ones are those of the library, tests/eval/test_suite_folder_damage.py.
@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "survives"), KILLS)
def test_a_kill_in_the_middle_of_a_batch_changes_no_digit(
    run, prompts, straight, tmp_path, monkeypatch, batch_size, survives
):
    revive = dying(monkeypatch, survives)
    with pytest.raises(KeyboardInterrupt):
        evaluated(run, prompts, tmp_path, batch_size)
    revive()
    assert evaluated(run, prompts, tmp_path, batch_size) == straight[batch_size]


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed_give_the_numbers_of_one(
    run, prompts, straight, tmp_path, monkeypatch
):
    revive = dying(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        evaluated(run, prompts, tmp_path, 3, share=(0, 2))
    revive()
    assert evaluated(run, prompts, tmp_path, 3, share=(1, 2)) is None
    assert evaluated(run, prompts, tmp_path, 3, share=(0, 2)) == straight[3]


@pytest.mark.slow
def test_a_killed_process_goes_on_with_the_same_digits(run, tmp_path):
    command = [sys.executable, "-m", "astrolabe", "eval", str(run), "--num-videos", "24"]
    command += ["--no-exact", "--batch-size", "8", "--out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    assert subprocess.run([*command, str(tmp_path / "whole")], env=environment).returncode == 0
    command.append(str(tmp_path / "killed"))
    process = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("killed/*/*/scores/*.json"))) < 27:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "report.json").exists()
    assert subprocess.run(command, env=environment).returncode == 0
    whole, killed = (
        json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "killed")
    )
    assert killed["samples"] == whole["samples"]


@pytest.fixture(scope="module")
def place(run, prompts, tmp_path_factory):
    """A finished evaluation, its folder of models, and its samples."""
    out = tmp_path_factory.mktemp("place")
    samples = evaluated(run, prompts, out)
    (models,) = (path for path in out.iterdir() if path.is_dir())
    return out, models, samples


def call(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(part) for part in arguments])
    return ended.value.code


def test_files_that_were_damaged_are_named_and_made_again(run, prompts, place):
    out, models, samples = place
    files = [
        models / "before" / "scores" / "000001.json",
        models / "before" / "videos" / "000003.mp4",
        models / "step-000002" / "manifest.json",
        models / "step-000002" / "scores" / "000004.json",
    ]
    files[0].write_bytes(b"")
    files[1].write_bytes(files[1].read_bytes()[:-9] + bytes(9))
    files[2].write_text("[]")
    text = files[3].read_text()
    at = re.search(r'"total": [-\d]*\.\d', text).end() - 1
    files[3].write_text(f"{text[:at]}{(int(text[at]) + 1) % 10}{text[at + 1 :]}")
    assert json.loads(files[3].read_text()) != json.loads(text)
    said = []
    assert evaluated(run, prompts, out, said=said) == samples
    named = [line for line in said if line.endswith("made again.")]
    assert len(named) == 4
    for line, path in zip(named, files, strict=True):
        assert repr(str(path)) in line
    assert evaluated(run, prompts, out, said=said) == samples
    assert len([line for line in said if line.endswith("made again.")]) == 4


def test_what_asks_of_videos_says_what_it_leaves_out(run, prompts, place, capsys):
    out, models, samples = place
    row, video = models / "before/scores/000000.json", models / "before/videos/000002.mp4"
    manifest = models / "step-000002" / "manifest.json"
    row.write_bytes(b"")
    video.write_bytes(bytes(9))
    assert call("votes", models) == 0
    shown = capsys.readouterr().out
    assert "scores/000000.json is empty" in shown
    assert "videos/000002.mp4 does not hold what was written" in shown
    key = json.loads((models / "votes-key.json").read_text())
    assert len(key["pairs"]) == len(PROMPTS) - 2
    assert call("vbench", models, "--dimension", "temporal_flickering") == 2
    error = capsys.readouterr().err
    assert f"{str(row)!r} is empty" in error
    assert "astrolabe eval RUN" in error
    for harm in (lambda: manifest.write_text("{"), manifest.unlink):
        harm()
        for command in (("votes",), ("over-time", "--reward", "sharpness_vq")):
            assert call(command[0], models, *command[1:]) == 2
            error = capsys.readouterr().err
            assert "manifest.json" in error
            assert "astrolabe eval RUN" in error
            assert error.count("\n") == 1
    assert evaluated(run, prompts, out) == samples
