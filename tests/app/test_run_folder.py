import errno
import json
import os

import pytest
import torch

from astrolabe.errors import ConfigError
from astrolabe.load import load
from astrolabe.run_folder import RunFolder, read_state
from astrolabe_rollout.errors import CheckpointError


def write_lora(folder):
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder.claim(tmp_path / "run")
    folder.begin(load(["tiny"]))
    return folder


def save(folder, step, keep=3):
    return folder.save(step, {"step": step, "tensor": torch.arange(5.0)}, write_lora, keep)


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


def test_a_checkpoint_reads_back(folder):
    state = read_state(save(folder, 4))
    assert state["step"] == 4
    assert torch.equal(state["tensor"], torch.arange(5.0))


def test_only_the_newest_checkpoints_stay(folder):
    for step in (1, 2, 9, 10):
        save(folder, step, keep=2)
    assert [path.name for path in folder.all_checkpoints()] == ["step-000009", "step-000010"]
    assert folder.newest().name == "step-000010"


def test_a_run_without_checkpoint_has_no_newest(folder):
    assert folder.newest() is None


@pytest.mark.parametrize("name", ["state.pt", "lora/adapter_model.safetensors"])
def test_a_cut_off_file_is_refused_with_the_older_checkpoint_named(folder, name):
    save(folder, 1)
    path = save(folder, 2) / name
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(
        CheckpointError, match=rf"step-000002' is damaged: {name} has .*step-000001"
    ):
        folder.newest()


def test_a_changed_byte_is_noticed(folder):
    path = save(folder, 1) / "state.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"does not hold what was saved.*starts anew"):
        folder.newest()


def test_a_missing_file_is_noticed(folder):
    (save(folder, 1) / "state.pt").unlink()
    with pytest.raises(CheckpointError, match=r"state\.pt is missing"):
        folder.newest()


@pytest.mark.parametrize("content", [None, "", "[]", '{"files": {"state.pt": 3}}'])
def test_a_checkpoint_without_a_good_manifest_is_refused(folder, content):
    manifest = save(folder, 1) / "manifest.json"
    manifest.unlink() if content is None else manifest.write_text(content)
    with pytest.raises(CheckpointError, match=r"no readable manifest\.json"):
        folder.newest()


def test_a_state_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"step": Evil()}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="is no state of a run"):
        read_state(tmp_path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 not really", b"\x80\x02."])
def test_foreign_bytes_are_no_state(tmp_path, data):
    (tmp_path / "state.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"state\.pt' is no state of a run .*Remove"):
        read_state(tmp_path)


def test_a_failed_save_leaves_older_checkpoints_and_nothing_else(folder):
    save(folder, 1)

    def full_disk(path):
        path.mkdir()
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with pytest.raises(OSError, match="No space left"):
        folder.save(2, {}, full_disk, keep=1)
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-000001"]
    assert folder.newest().name == "step-000001"


def test_a_file_system_that_ends_in_the_middle_of_the_state_is_an_error_of_files(folder, tmp_path):
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"checkpoint could not be written|too large"):
            folder.save(1, {"tensor": torch.zeros(100_000)}, write_lora, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(folder.checkpoints.iterdir()) == []


def test_a_disk_that_cannot_hold_the_run_is_refused(folder):
    folder.check_space(1)
    with pytest.raises(OSError, match="MiB are free and this run needs") as caught:
        folder.check_space(2**60)
    assert caught.value.errno == errno.ENOSPC


def test_metrics_after_the_checkpoint_are_dropped(folder):
    lines = [json.dumps({"step": step, "reward/total": step / 3}) + "\n" for step in (1, 2, 3, 4)]
    folder.metrics.write_text("".join(lines) + '{"step": 5, "rew')
    folder.trim_metrics(2)
    assert folder.metrics.read_text() == "".join(lines[:2])


def test_a_line_cut_off_in_the_middle_ends_the_metrics(folder):
    folder.metrics.write_text('{"step": 1}\n{"st')
    folder.trim_metrics(9)
    assert folder.metrics.read_text() == '{"step": 1}\n'


def test_a_run_that_kept_no_metrics_has_nothing_to_trim(folder):
    folder.trim_metrics(3)
    assert not folder.metrics.exists()
