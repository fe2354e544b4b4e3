"""A process that holds Python's lock in native code, watched from outside; no torch is imported."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from astrolabe.stacks import why_hung

BEGIN = """
import ctypes, sys, threading
from pathlib import Path
from astrolabe.lookout import PAUSED, Lookout

lookout = Lookout(Path(sys.argv[1]), 3, 0.1, 1.0)
lookout.start()
over, phase = threading.Event(), ["sample"]

def beat():
    while not over.wait(0.1):
        lookout.tell(phase[0])

def hold(seconds):
    ctypes.PyDLL(None).sleep(seconds)

threading.Thread(target=beat, daemon=True).start()
over.wait(0.5)
"""
END = """
over.set()
lookout.end()
"""


def begun(folder, body):
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN + textwrap.dedent(body) + END, str(folder)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"SOME_TOKEN": "hold(600)"},
    )


def test_a_process_that_holds_pythons_lock_is_killed_with_its_stacks(tmp_path):
    since = time.monotonic()
    process = begun(tmp_path, "hold(600)")
    _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert time.monotonic() - since < 60
    [file] = (tmp_path / "crash").glob("*Z/stacks-rank-3.txt")
    text = file.read_text()
    assert re.match(r"rank 3: sample, no progress for 1 s and stands in native code that", text)
    assert "in hold" in text
    assert re.search(rf"^rank 3: sample, .*killed\. Its stacks: {file.parent}\. .*--resume", said)
    told = why_hung(tmp_path)
    assert told.startswith("It ended as it hung: rank 3: sample, no progress for 1 s and stands in")
    assert str(file.parent) in told
    (tmp_path / "metrics.jsonl").touch()  # it has gone on since
    os.utime(file, (0, 0))
    assert why_hung(tmp_path) is None


def test_a_folder_that_cannot_be_written_keeps_no_process_from_ending(tmp_path):
    (tmp_path / "file").touch()
    process = begun(tmp_path / "file", "hold(600)")
    _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert "Its stacks: not written" in said


@pytest.mark.parametrize(
    "body",
    [
        "over.wait(2.5)",
        "phase[0] = PAUSED; lookout.tell(PAUSED); hold(3)",
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    ],
    ids=["gets on", "is paused", "is stopped"],
)
def test_what_gets_on_is_paused_or_stopped_lives(tmp_path, body):
    process = begun(tmp_path, body)
    if "SIGSTOP" in body:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        time.sleep(3)
        process.send_signal(signal.SIGCONT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_other_crashes_are_no_hang(tmp_path):
    place = tmp_path / "crash" / "2026-01-01T00-00-00Z"
    place.mkdir(parents=True)
    (place / "stacks-rank-0.txt").write_text("2026-01-01T00-00-00Z\nValueError: 3\n")
    assert why_hung(tmp_path) is None
    assert why_hung(tmp_path / "nothing") is None
