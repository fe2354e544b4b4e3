import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from astrolabe.stacks import why_hung

SCRIPT = Path(__file__).parent / "scripts" / "hang.py"


@pytest.fixture(scope="module")
def hung(tmp_path_factory):
    """The folder of all runs of the script, and their exit codes."""
    folder = tmp_path_factory.mktemp("hung")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_TOKEN": "hidden-in-the-environment"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads(done.stdout)


def said(folder, name):
    return "".join(path.read_text() for path in sorted(folder.glob(f"{name}-*.stderr")))


def stacks(folder, name):
    [place] = (folder / name / "crash").iterdir()
    return {path.name: path.read_text() for path in place.iterdir()}


def test_all_that_can_write_their_stacks_and_the_run_ends(hung):
    folder, codes = hung
    assert codes["hang"] == [1, 1]
    written = stacks(folder, "hang")
    assert sorted(written) == ["stacks-rank-0.txt", "stacks-rank-1.txt"]
    assert "world.barrier()" in written["stacks-rank-0.txt"]
    assert "time.sleep(FOREVER)" in written["stacks-rank-1.txt"]
    assert "Thread MainThread" in written["stacks-rank-1.txt"]
    assert written["stacks-rank-1.txt"].startswith("rank 1: sample, no progress for ")


def test_one_of_them_says_who_answered_and_who_did_not(hung):
    folder, _ = hung
    text = said(folder, "hang")
    assert text.count("made no progress for") == 1
    assert "rank 0: in phase 'score'; rank 1: in phase 'sample'" in text
    assert "no answer from rank 2, stopped or stuck" in text
    assert "--max-restarts" in text
    assert f"--resume {folder / 'hang'}" in text


def test_a_process_ends_though_the_one_that_keeps_the_store_is_stopped(hung):
    folder, codes = hung
    assert codes["keeper"] == [1]
    assert list(stacks(folder, "keeper")) == ["stacks-rank-1.txt"]
    assert "no answer from rank 0" in said(folder, "keeper")


def test_a_lone_process_that_hangs_ends(hung):
    folder, codes = hung
    assert codes["lone"] == [1]
    assert list(stacks(folder, "lone")) == ["stacks-rank-0.txt"]
    assert "no answer" not in said(folder, "lone")


def test_a_folder_that_cannot_be_written_keeps_no_run_from_ending(hung):
    folder, codes = hung
    assert codes["unwritable"] == [1]
    assert "made no progress" in said(folder, "unwritable")


def test_a_process_that_holds_pythons_lock_is_killed_with_its_stacks(hung):
    folder, codes = hung
    assert codes["native"] == [-signal.SIGKILL]
    written = stacks(folder, "native")
    assert list(written) == ["stacks-rank-0.txt"]
    text = written["stacks-rank-0.txt"]
    assert re.match(r"rank 0: sample, no progress for \d+ s and stands in native code that", text)
    assert re.search(r'File ".*hang\.py", line \d+ in held', text)
    assert re.search(r"rank 0: sample, .* so its process is killed\. ", said(folder, "native"))
    assert f"--resume {folder / 'native'}" in said(folder, "native")
    told = why_hung(folder / "native")
    assert told.startswith("It ended as it hung: rank 0: sample, no progress for ")
    assert "native code" in told
    assert str(next((folder / "native" / "crash").iterdir())) in told
    (folder / "native" / "metrics.jsonl").touch()  # it went on
    assert why_hung(folder / "native") is None


def test_a_resumed_run_is_told_of_every_rank_that_hung_and_of_no_other_crash(hung, tmp_path):
    folder, _ = hung
    told = why_hung(folder / "hang")
    assert "rank 0: score, no progress for" in told
    assert "; rank 1: sample, no progress for" in told
    place = tmp_path / "crash" / "2026-01-01T00-00-00Z"
    place.mkdir(parents=True)
    (place / "stacks-rank-0.txt").write_text("2026-01-01T00-00-00Z\nValueError: 3\n")
    assert why_hung(tmp_path) is None
    assert why_hung(tmp_path / "nothing") is None


@pytest.mark.parametrize("name", ["pause", "paused natively", "slow", "continued"])
def test_what_gets_on_or_was_paused_or_stopped_for_long_goes_on(hung, name):
    folder, codes = hung
    assert codes[name] == [0]
    assert said(folder, name) == ""
    assert not (folder / name).exists()
