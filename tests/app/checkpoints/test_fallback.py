import errno
import json
import os
import shutil

import pytest

from astrolabe.checkpoint import restore, restore_reward
from astrolabe.checkpoint_files import publish
from astrolabe.run_folder import RunFolder
from astrolabe.saving import Saver
from astrolabe_eval import input_files
from astrolabe_rollout.errors import CheckpointError

FILES = [
    "lora/adapter_config.json",
    "lora/adapter_model.safetensors",
    "manifest.json",
    "state.json",
    "tensors/shard-00001-model-00001-of-00001.safetensors",
]


@pytest.fixture(scope="module")
def two(make_parts, learn, tmp_path_factory):
    folder = RunFolder.claim(tmp_path_factory.mktemp("two") / "run")
    parts = make_parts()
    saver = Saver(folder, parts, keep=2)
    for step in (10, 20):
        saver.save(step, {})
        assert saver.settle() == []
        learn(parts)
    return folder.checkpoints


@pytest.fixture
def saved(folder, two):
    """A run with checkpoints after steps 10 and 20."""
    shutil.copytree(two, folder.checkpoints)
    return folder.all_checkpoints()


def names(folder):
    return sorted(path.name for path in folder.checkpoints.iterdir())


def flip(path, share):
    data = bytearray(path.read_bytes())
    data[int(len(data) * share)] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "share"), [*((name, 0.5) for name in FILES), ("manifest.json", 0.05), (FILES[-1], 0)]
)
def test_a_flipped_bit_is_noticed_and_the_run_goes_on_from_before(
    folder, saved, make_parts, name, share
):
    flip(saved[1] / name, share)
    with pytest.raises(CheckpointError, match=r"step-000020' is damaged: .* --resume"):
        folder.newest()
    step, told = restore(folder, make_parts())
    assert step == 10
    assert len(told) == 1
    assert told[0].startswith("step-000020 is damaged: ")
    assert name in told[0]
    assert told[0].endswith("damaged-step-000020; the run goes on from step-000010.")
    assert names(folder) == ["damaged-step-000020", "step-000010"]
    assert restore(folder, make_parts()) == (10, [])


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_cut_off_file_is_noticed(folder, saved, make_parts, name):
    whole = (saved[1] / name).read_bytes()
    (saved[1] / name).write_bytes(whole[:-3])
    with pytest.raises(CheckpointError, match=r"has [0-9]+ bytes and should|no readable manifest"):
        folder.newest()
    (saved[1] / name).unlink()
    assert restore(folder, make_parts())[0] == 10


def test_tensors_that_were_put_there_later_are_noticed(folder, saved, make_parts):
    tensors = saved[1] / FILES[-1]
    tensors.with_name("shard-00002-model-00001-of-00001.safetensors").write_bytes(
        tensors.read_bytes()
    )
    assert restore(folder, make_parts())[0] == 10


@pytest.mark.parametrize("content", ["", "[]", '{"files": {"state.json": 3}}', '{"files": []}'])
def test_a_checkpoint_without_a_good_manifest_is_refused(folder, saved, content):
    (saved[1] / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"no readable manifest\.json"):
        folder.newest()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", b"[]"),
        ("state.json", b"{}"),
        ("state.json", b"{"),
        (FILES[-1], b"\x80\x02."),
        (FILES[-1], b""),
    ],
)
def test_a_whole_checkpoint_that_holds_no_state_is_passed_over(
    folder, saved, make_parts, name, content
):
    path = saved[1]
    (path / name).write_bytes(content)
    (path / "manifest.json").unlink()
    path.rename(path.with_name("part"))
    publish(path.with_name("part"), path, None)
    step, told = restore(folder, make_parts())
    assert step == 10
    assert "is no state of a run" in told[0]


def test_if_none_is_whole_nothing_is_moved_and_the_way_out_is_told(folder, saved, make_parts):
    for path in saved:
        flip(path / "state.json", 0.5)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"no checkpoint .* is whole .*step-000010: .*or"):
            restore(folder, make_parts())
    assert names(folder) == ["step-000010", "step-000020"]


def test_a_checkpoint_of_other_settings_is_no_damaged_one(folder, saved, make_parts):
    with pytest.raises(CheckpointError, match=r"does not fit this run \(its adapter has another"):
        restore(folder, make_parts(rank=4))
    assert names(folder) == ["step-000010", "step-000020"]


def test_a_step_can_be_damaged_twice(folder, saved, make_parts):
    (folder.checkpoints / "damaged-step-000020").mkdir()
    flip(saved[1] / "state.json", 0.5)
    assert "damaged-step-000020-2" in restore(folder, make_parts())[1][0]


def test_a_run_without_checkpoint_starts_anew(folder, make_parts):
    assert folder.newest() is None
    assert restore(folder, make_parts()) == (0, [])


def test_a_pickled_state_of_an_earlier_version_is_refused_and_stays(folder, saved, make_parts):
    path = saved[1]
    (path / "state.json").rename(path / "state.pt")
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["files"]["state.pt"] = manifest["files"].pop("state.json")
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert folder.newest() == path  # its adapter can be used
    with pytest.raises(CheckpointError, match=r"earlier version.*lora\.start=.*step-000020/lora"):
        restore(folder, make_parts())
    assert names(folder) == ["step-000010", "step-000020"]


def test_statistics_of_the_reward_are_read_alone(folder, saved, make_parts):
    fresh = make_parts().reward
    restore_reward(folder, fresh)
    assert float(fresh.moments[0, 0]) == 1 / 3


def test_the_manifest_tells_version_step_and_reward(folder, make_parts):
    saver = Saver(folder, make_parts(), keep=1)
    saver.save(3, {"reward/total": 0.25})
    saver.settle()
    manifest = json.loads((folder.newest() / "manifest.json").read_text())
    assert manifest["step"] == 3
    assert manifest["reward/total"] == 0.25
    assert sorted(manifest["files"]) == [name for name in FILES if name != "manifest.json"]


@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
def test_a_checkpoint_that_may_not_be_read_is_refused_and_stays(
    folder, saved, make_parts, name, monkeypatch
):
    def forbid(path, mode):
        if path.name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return path.open(mode)

    monkeypatch.setattr(input_files, "open", forbid, raising=False)  # root may read all files
    for read in (lambda: restore(folder, make_parts()), folder.newest, folder.find):
        with pytest.raises(CheckpointError, match=f"you have no permission for {name}"):
            read()
    assert names(folder) == ["step-000010", "step-000020"]


def test_checkpoints_that_may_not_be_listed_are_not_taken_for_none(
    folder, saved, make_parts, monkeypatch
):
    def forbid(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", forbid)
    with pytest.raises(PermissionError):
        restore(folder, make_parts())
