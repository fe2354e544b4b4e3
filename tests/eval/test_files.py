"""Files that are complete or absent."""

import errno
import os

import numpy as np
import pytest

from astrolabe_eval import Mp4Writer, files, write_mp4
from astrolabe_eval.files import append_line, check_place, replacing, write_atomic


def refusing(monkeypatch, code=errno.ENOSPC):
    """Let the disk refuse what is to be forced onto it."""

    def fsync(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "fsync", fsync)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_the_old_file_stays_and_the_error_names_it(tmp_path, monkeypatch, code):
    path = tmp_path / "a.json"
    write_atomic(path, b"old")
    refusing(monkeypatch, code)
    with pytest.raises(OSError, match=r"a\.json") as refused:
        write_atomic(path, b"new")
    assert (refused.value.errno, refused.value.filename) == (code, str(path))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path):
    path = tmp_path / ("n" * 251 + ".mp4")
    write_mp4(path, np.zeros((1, 3, 16, 16), np.uint8), 8)
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError) as refused:
        write_atomic(tmp_path / "file" / "deep" / "a.json", b"")
    assert refused.value.filename == str(tmp_path / "file")
    with pytest.raises(IsADirectoryError) as refused:
        write_atomic(tmp_path, b"")
    assert refused.value.filename == str(tmp_path)


def test_a_folder_of_a_file_system_that_is_read_only_is_refused():
    with pytest.raises(OSError, match=r"/proc") as refused:
        check_place("/proc/self/none.json")
    assert refused.value.errno in (errno.EROFS, errno.EACCES)


def test_other_errors_while_a_file_grows_are_left_as_they_are(tmp_path):
    with pytest.raises(ConnectionRefusedError, match="server"), replacing(tmp_path / "a.mp4"):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "the server is gone")
    with (
        pytest.raises(OSError, match="other") as refused,
        Mp4Writer(tmp_path / "a.mp4", 8),
    ):
        raise OSError(errno.ENOSPC, "full", "other.json")
    assert refused.value.filename == "other.json"
    assert list(tmp_path.iterdir()) == []


def test_a_line_is_whole_or_absent(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "lines.jsonl"
    append_line(path, b"one")
    with monkeypatch.context() as patch:
        refusing(patch)
        with pytest.raises(OSError, match="lines"):
            append_line(path, b"two")
    assert path.read_bytes() == b"one\n"
    path.write_bytes(b"one\ntw")  # a process was killed
    append_line(path, b"three")
    assert path.read_bytes() == b"one\ntw\nthree\n"
