"""Every command that writes, on a disk that is full: one line, nothing spoiled, and it works later.

The system refuses to let files grow beyond some bytes (``RLIMIT_FSIZE``), which a process meets as
it meets a full disk.
"""

import errno
import os
import resource
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import typer

from astrolabe.cli import app, main
from astrolabe.evaluate import evaluate
from astrolabe.explain import WAYS_OUT
from astrolabe.run_folder import RunFolder
from astrolabe_eval import write_mp4

#: Commands that write no file, as they are called here; servers go on until Ctrl-C.
PRINTING = {
    "plan": ("tiny", "--json"),
    "recipes": (),
    "parts": ("rewards",),
    "keys": (),
    "doctor": (),
    "count-votes": ("nobody", "no-key"),
}
SERVING = {"watch", "serve-rewards"}
#: Commands that write, with what each is given; {x} is filled in from `places`.
WRITING = {
    "train": [("--out", "run", "{small}")],
    "eval": [("{run}", "--num-videos", "2", "--out", "evaluation")],
    "generate": [("a red circle", "a blue square", "--frames", "9", "{model}")],
    "score": [
        ("{video}", "--reward", "sharpness_vq", "--out", "scores.csv"),
        ("{video}", "--reward", "sharpness_vq", "--out", "deep/scores.jsonl"),
        ("{videos}", "--reward", "sharpness_vq", "--reward", "flow_mq", "--report", "report"),
        ("{video}", "--reward", "sharpness_vq", "--cache", "seen"),
    ],
    "export": [
        ("{run}", "adapter"),
        ("{run}", "adapter", "--format", "diffusers"),
        ("{run}", "adapter.safetensors", "--format", "original"),
        ("{run}", "merged", "--format", "merged"),
        ("{run}", "merged.safetensors", "--format", "merged"),
        ("{run}", "deep/merged.pt", "--format", "merged"),
    ],
    "convert": [("{wan}", name) for name in ("other", "other.safetensors", "other.pt")],
    "votes": [("{evaluation}", "--pairs", "1")],
    "over-time": [("{evaluation}", "--reward", "sharpness_vq", "--seconds", "0.5")],
    "speed": [("{run}", "--repeats", "2", "--seconds", "0.5")],
    "vbench": [],  # its files are those of a program of its own: see test_vbench_command.py
}
#: Commands that train or sample, of which others here write by the same means.
SLOW = ("train", "speed", "eval")
CASES = [
    pytest.param(
        (room, name, *arguments),
        marks=[pytest.mark.slow] if room or name in SLOW else [],
        id=" ".join(map(str, (room, name, *arguments))),
    )
    for name, calls in WRITING.items()
    for arguments in calls
    # A run goes on without what it cannot write: see checkpoints/test_saving.py.
    for room in ((0, 5000) if name not in ("train", "speed") else (0,))
]


@contextmanager
def full_disk(room=0):
    """No file grows beyond ``room`` bytes within the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def made(trained, tmp_path_factory):
    """What commands work on: a run with an evaluation, videos."""
    root = tmp_path_factory.mktemp("made")
    noise = np.random.default_rng(0).integers(0, 256, (8, 5, 3, 48, 48), dtype=np.uint8)
    for index, frames in enumerate(noise):
        write_mp4(root / "videos" / f"{index}.mp4", frames, 8)
    folder, run = RunFolder.open(trained)
    evaluate(folder, run, lambda line: None, out=root / "evaluated")
    return root


@pytest.fixture
def call(made, trained, small, tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder; return its exit code and what it says to the user."""
    monkeypatch.chdir(tmp_path)
    model = small[:2]
    (evaluation,) = (path for path in (made / "evaluated").iterdir() if path.is_dir())
    words = {
        "{run}": [str(trained)],
        "{video}": [str(made / "videos" / "0.mp4")],
        "{videos}": [str(made / "videos")],
        "{evaluation}": [str(evaluation)],
        "{small}": [word for text in small for word in ("--set", text)],
        "{model}": [word for text in model for word in ("--set", text)],
        "{wan}": [str(made / "wan")],
    }

    def run(*arguments):
        filled = [word for one in arguments for word in words.get(one, [one])]
        with pytest.raises(SystemExit) as ended:
            main(filled)
        said = capsys.readouterr()
        return ended.value.code, said.err

    return run


@pytest.fixture(scope="module", autouse=True)
def wan(made, save_small_wan):
    save_small_wan(made / "wan")


def contents(*roots):
    """Every file with what it holds, but what runs and caches leave there by their nature."""
    files = [path for root in roots for path in root.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files if path.name not in (".lock", "lock")}


def test_every_command_is_known_here():
    commands = set(typer.main.get_command(app).commands)
    assert commands == {*PRINTING, *SERVING, *WRITING}


@pytest.mark.parametrize("case", CASES)
def test_a_full_disk_costs_one_line_and_the_command_works_afterwards(
    call, case, made, trained, tmp_path
):
    room, *command = case
    before = contents(made, trained, tmp_path)
    with full_disk(room):
        code, said = call(*command)
    if code == 0:
        assert room  # all that it writes is smaller
        return
    assert code == 2, said
    assert said.count("\n") == 1, said
    if "--cache" in command:
        assert "the score cache 'seen' cannot be written" in said
        assert "free some space" in said
    else:
        assert said.startswith("error: File too large (")
        assert WAYS_OUT[errno.EFBIG] in said
    after = contents(made, trained, tmp_path)
    assert {path: after.get(path) for path in before} == before
    assert not [path for path in after if ".part" in path.name or ".saving" in str(path)]
    assert call(*command)[0] == 0


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("score", "{video}", "--reward", "sharpness_vq", "--out", "a.csv"), "(a.csv). It is a fo"),
        (("score", "{video}", "--reward", "sharpness_vq", "--out", "b/x.csv"), "(b). It is a file"),
        (("score", "{video}", "--reward", "sharpness_vq", "--cache", "b"), "cache 'b' cannot be"),
        (("score", "{videos}", "--recipe", "tiny", "--report", "b"), "(b). It is a file"),
        (("export", "{run}", "b/adapter"), "(b). It is a file"),
        (("convert", "{wan}", "b/other"), "(b). It is a file"),
        (("generate", "a red circle", "--frames", "9", "{model}", "--out", "b"), "(b). It is a fi"),
        (("train", "{small}", "--out", "b/run"), "write into 'b/run'"),
        (("eval", "{run}", "--num-videos", "2", "--out", "b"), "(b). It is a file"),
    ],
    ids=str,
)
def test_a_place_where_nothing_can_be_is_refused_before_work(
    call, tmp_path, command, message, monkeypatch
):
    (tmp_path / "a.csv").mkdir()
    (tmp_path / "b").write_text("mine")
    monkeypatch.setattr("astrolabe.score.score_videos", pytest.fail)
    code, said = call(*command)
    assert code == 2
    assert said.count("\n") == 1
    assert message in said
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "b"}
    assert (tmp_path / "b").read_text() == "mine"


@pytest.mark.parametrize("name", PRINTING)
def test_commands_that_print_write_no_file(call, tmp_path, name):
    call(name, *PRINTING[name])
    assert list(tmp_path.iterdir()) == []


def test_output_that_cannot_be_written_is_told_of():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "astrolabe", "recipes", "tiny"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == f"error: {os.strerror(errno.ENOSPC)}. {WAYS_OUT[errno.ENOSPC]}\n"
