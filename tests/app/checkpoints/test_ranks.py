"""What some processes saved, any other number of them restores, bit for bit."""

import errno
import json

import pytest
import torch
from torch.distributed.tensor import DTensor

from astrolabe import state_files
from astrolabe.checkpoint import capture, restore
from astrolabe.checkpoint_files import damage
from astrolabe.saving import Saver
from astrolabe.state_files import read_state, split

slow = pytest.mark.slow


@pytest.fixture
def train_and_save(folder, make_parts, learn):
    """Learn two steps, save in the background of a third; return what was saved, whole."""

    def work(world, sharded):
        parts = make_parts(world, sharded=sharded)
        learn(parts, 2)
        saver = Saver(folder, parts, keep=1)
        saved = whole(parts)
        saver.save(2, {"reward/total": 1.0})
        learn(parts, 1, seed=3)  # messages of its own go on meanwhile
        assert saver.settle() == []
        assert saver.saved == 2
        return saved

    return work


@pytest.fixture
def restore_all(folder, make_parts):
    def work(world, sharded):
        parts = make_parts(world, sharded=sharded)
        assert restore(folder, parts) == (2, [])
        return whole(parts)

    return work


def whole(parts):
    tensors, rest = split(capture(parts, 2))
    gathered = {
        path: value.full_tensor() if isinstance(value, DTensor) else value
        for path, value in tensors.items()
    }
    # As it is now, not as it will be.
    return {path: value.tolist() for path, value in gathered.items()}, json.loads(json.dumps(rest))


def differing(first, second):
    """Names of tensors and of all else in which two states differ."""
    return [
        name
        for one, other in zip(first, second, strict=True)
        for name in one.keys() | other.keys()
        if name not in one or name not in other or one[name] != other[name]
    ]


@pytest.mark.parametrize(
    ("count", "sharded"),
    [(2, True), (2, False), pytest.param(4, True, marks=slow), pytest.param(4, False, marks=slow)],
)
@pytest.mark.parametrize(
    ("others", "spread"),
    [(1, False), (2, True), pytest.param(2, False, marks=slow), pytest.param(4, True, marks=slow)],
)
def test_another_number_of_processes_restores_the_same(
    folder, ranks, train_and_save, restore_all, count, sharded, others, spread
):
    saved = ranks(count, train_and_save, sharded)
    assert all(one == saved[0] for one in saved)
    files = list((folder.newest() / "tensors").iterdir())
    assert len(files) == count  # each wrote a share
    for one in ranks(others, restore_all, spread):
        assert differing(one, saved[0]) == []


def test_what_one_process_saved_several_restore(ranks, train_and_save, restore_all):
    (saved,) = ranks(1, train_and_save, False)
    for one in ranks(2, restore_all, True):
        assert differing(one, saved) == []


def test_each_part_of_a_sharded_state_is_written_once(folder, ranks, train_and_save):
    ranks(2, train_and_save, True)
    tensors, _ = split(read_state(folder.newest()))
    content = sum(value.numel() * value.element_size() for value in tensors.values())
    files = (folder.newest() / "tensors").iterdir()
    assert content < sum(file.stat().st_size for file in files) < content + 100_000


def test_one_process_on_a_full_disk_is_told_by_all_and_leaves_the_last_good(
    folder, ranks, train_and_save, make_parts, monkeypatch
):
    ranks(2, train_and_save, False)

    def work(world):
        if not world.main:

            def full(*arguments):
                raise OSError(errno.ENOSPC, "No space left on device", "/disk")

            monkeypatch.setattr(state_files.HuggingFaceStorageWriter, "write_data", full)
        saver = Saver(folder, make_parts(world), keep=1)
        saver.save(3, {})
        told = saver.settle()
        monkeypatch.undo()
        saver.save(4, {})
        return told, saver.failed, saver.settle(), saver.failed

    first, second = ranks(2, work)
    assert first == second
    told, failed, later, then = first
    assert "step 3 cannot be written: No space left on device (" in told[0]
    assert "the one after step 2 is whole" in told[0]
    assert (failed, later, then) == (1, [], 0)
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-000004"]


def test_a_disk_that_the_processes_do_not_share_is_told(folder, ranks, make_parts, monkeypatch):
    def work(world):
        here = folder if world.main else type(folder)(folder.path.with_name("elsewhere"))
        saver = Saver(here, make_parts(world), keep=1)
        saver.save(3, {})
        return saver.settle()

    for told in ranks(2, work):
        assert "is not found where another process wrote it. Choose an --out on a file" in told[0]
    assert list(folder.checkpoints.iterdir()) == []


def test_all_processes_go_back_to_the_same_checkpoint(folder, ranks, make_parts):
    def save(world):
        saver = Saver(folder, make_parts(world), keep=3)
        for step in (1, 2, 3):
            saver.save(step, {})
            assert saver.settle() == []

    def again(world):
        return restore(folder, make_parts(world))

    ranks(2, save)
    _, second, third = folder.all_checkpoints()
    (third / "state.json").write_text("{")
    for file in (second / "tensors").glob("shard-00002*"):
        file.unlink()
    first, other = ranks(2, again)
    assert first == other
    assert first[0] == 1
    assert [text.split()[0] for text in first[1]] == ["step-000003", "step-000002"]


def test_if_none_is_whole_all_processes_end(folder, ranks, train_and_save, make_parts):
    ranks(2, train_and_save, False)
    (folder.newest() / "state.json").unlink()

    def again(world):
        with pytest.raises((ValueError, SystemExit)) as caught:
            restore(folder, make_parts(world))
        return caught.type.__name__

    assert ranks(2, again) == ["CheckpointError", "SystemExit"]
    assert damage(folder.all_checkpoints()[0]) == "state.json is missing"


def test_numbers_come_back_exactly(tmp_path):
    state = {"a": [1 / 3, 1e-320, float("inf"), 2**70], "b": {"t": torch.tensor(5)}, "c": {}}
    tensors, rest = split(state)
    assert json.loads(json.dumps(rest)) == {"a": state["a"], "b": {}, "c": {}}
    state_files.write_tensors(tmp_path, tensors, None)
    state_files.write_rest(tmp_path, json.dumps(rest))
    assert read_state(tmp_path) == state


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
)
def test_tensors_of_any_kind_come_back(tmp_path, dtype):
    tensors = {
        "scalar": torch.tensor(1, dtype=dtype),
        "empty": torch.zeros(0, 3, dtype=dtype),
        "turned": torch.arange(6).to(dtype).view(2, 3).T,
    }
    state_files.write_tensors(tmp_path, state_files.to_cpu(tensors), None)
    found = state_files.read_tensors(tmp_path)
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], value)
