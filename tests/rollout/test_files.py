"""Files and folders of the models that are complete or absent."""

import errno
import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from astrolabe_rollout import files
from astrolabe_rollout.files import replacing


@pytest.fixture
def small_disk():
    """No file grows beyond 1000 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def torch_file(path):
    with path.open("wb") as file:
        torch.save({"a": torch.zeros(1000)}, file)


WRITERS = {
    "safetensors": lambda path: save_file({"a": torch.zeros(1000)}, path),
    "torch": torch_file,
    "python": lambda path: path.write_bytes(bytes(2000)),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_told_of_whatever_library_writes(tmp_path, small_disk, writer):
    target = tmp_path / "a"
    target.write_text("old")
    with pytest.raises(OSError, match="/a'") as refused, replacing(target) as fresh:
        WRITERS[writer](fresh)
    assert (refused.value.errno, refused.value.filename) == (errno.EFBIG, str(target))
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "old").touch()
    replace = os.replace

    def refuse(source, place):
        if place == target and source.name != ".earlier":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(source))
        replace(source, place)

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(OSError, match="adapter") as refused, replacing(target) as fresh:
        fresh.mkdir()
    assert refused.value.errno == errno.EIO
    assert [path.name for path in target.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


def test_other_errors_are_left_as_they_are(tmp_path):
    with pytest.raises(SafetensorError, match="header"), replacing(tmp_path / "a"):
        raise SafetensorError("Error while serializing: header too large")
    with pytest.raises(FileNotFoundError) as refused, replacing(tmp_path / "a"):
        Path("/no/such/file").read_bytes()
    assert refused.value.filename == "/no/such/file"
    with pytest.raises(NotADirectoryError), replacing("/dev/null/a"):
        pytest.fail("it is a file")
