import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from astrolabe.run_folder import RunFolder
from astrolabe.run_lock import RunLock

HOLDER = """
import sys, time
from pathlib import Path
from astrolabe.run_lock import RunLock
with RunLock(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def refuse(text):
    raise AssertionError(text)


def test_a_second_run_is_refused_until_the_first_is_killed(holder, tmp_path):
    with (
        pytest.raises(BlockingIOError, match=rf"in use by process {holder.pid} on \S+, since 2.*-"),
        RunLock(tmp_path, refuse),
    ):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with RunLock(tmp_path, refuse):
        pass


def test_the_lock_ends_with_its_block_also_by_an_error(tmp_path):
    with pytest.raises(KeyError), RunLock(tmp_path, refuse):
        raise KeyError
    with RunLock(tmp_path, refuse):
        assert str(os.getpid()) in RunLock.path_of(tmp_path).read_text()
        with pytest.raises(BlockingIOError, match="--out"), RunLock(tmp_path, refuse):
            pass


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_holder_that_has_only_begun_is_refused_too(tmp_path, content):
    with RunLock(tmp_path, refuse):
        RunLock.path_of(tmp_path).write_text(content)
        with pytest.raises(BlockingIOError, match="another process"), RunLock(tmp_path, refuse):
            pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_told_and_the_run_goes_on(tmp_path, monkeypatch, number):
    def no_locks(file, kind):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    told = []
    with RunLock(tmp_path, told.append):
        assert len(told) == 1
        assert "has no locks" in told[0]


def test_any_other_error_is_an_error(tmp_path, monkeypatch):
    def broken(file, kind):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output"), RunLock(tmp_path, refuse):
        pass


def test_a_lock_that_a_crash_left_does_not_make_a_folder_full(tmp_path):
    with RunLock(tmp_path, refuse):
        pass
    RunFolder.claim(tmp_path)
