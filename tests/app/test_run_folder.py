import errno

import pytest

from astrolabe.errors import ConfigError
from astrolabe.load import load
from astrolabe.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder.claim(tmp_path / "run")
    folder.begin(load(["tiny"]))
    return folder


def test_a_new_folder_is_made_with_its_parents(tmp_path):
    assert RunFolder.claim(tmp_path / "a" / "b").path.is_dir()


def test_a_claimed_folder_is_left_empty(tmp_path):
    assert list(RunFolder.claim(tmp_path).path.iterdir()) == []


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match=r"not empty\. Go on with it by .*--resume .*--out"):
        RunFolder.claim(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(FileExistsError, match="not empty"):
        RunFolder.claim(tmp_path / "run")


def test_settings_are_found_again(folder):
    assert RunFolder.open(folder.path)[1] == load(["tiny"])


def test_any_other_folder_is_no_run_folder(tmp_path):
    with pytest.raises(ConfigError, match="is no run folder"):
        RunFolder.open(tmp_path)


def test_a_disk_that_cannot_hold_the_run_is_refused(folder):
    folder.check_space(1)
    with pytest.raises(OSError, match="MiB are free and this run needs") as caught:
        folder.check_space(2**60)
    assert caught.value.errno == errno.ENOSPC


def test_what_a_run_left_that_was_killed_before_it_began_is_no_obstacle(tmp_path):
    for name in (".lock", ".probe", ".config.json.x1", "logs/rank-000.jsonl", "crash/a/README.txt"):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).touch()
    RunFolder.claim(tmp_path / "run")
    (tmp_path / "run" / "config.json").touch()
    with pytest.raises(FileExistsError, match="--resume"):
        RunFolder.claim(tmp_path / "run")
