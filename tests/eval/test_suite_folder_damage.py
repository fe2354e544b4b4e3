"""What becomes of a SuiteFolder whose files are no longer what was written."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from astrolabe_eval import Evaluation, Suite, SuiteError, SuiteFolder, fill
from astrolabe_eval.sealed import seal, unseal

SUITE = Suite("demo", ("red", "green", "blue", "grey", "white"))


def made(suite, gain=1.0):
    """What a model and its reward would answer: by the seeds, and in the last bits by the batch."""
    totals = np.array([gain * seed / 7 + len(suite) * 2**-33 for seed in suite.seeds])
    levels = [int(gain * seed) % 256 for seed in suite.seeds]
    frames = [np.full((2, 3, 16, 16), level, dtype=np.uint8) for level in levels]
    return Evaluation(
        suite=suite, rewards={"total": totals}, judges={"check": totals * 2}, videos=frames
    )


def folder(path, name="base", **options):
    return SuiteFolder(path / name, SUITE, fps=8.0, protocol={"model": name}, **options)


def filled(path, name="base", batch_size=2):
    target = folder(path, name)
    list(fill(target, made, batch_size=batch_size))
    return target


def scores(target):
    found = target.evaluation()
    assert not found.missing
    return {**found.rewards, **found.judges}


def same(one, other):
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


def cut(path, other):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def one_byte(path, other):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def end(path, other):
    """The name of the seal, so that it is none; of a video its last byte."""
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"sha256":', b'"sha255":') if b"sha256" in data else data[:-1])


def one_digit(path, other):
    """Another digit of a number, which any reader of JSON would take."""
    if path.suffix == ".mp4":
        return one_byte(path, other)
    text = path.read_text()
    at = re.search(r'"(?:fps|total)": \d', text).end() - 1
    path.write_text(f"{text[:at]}{(int(text[at]) + 1) % 10}{text[at + 1 :]}")
    return json.loads(path.read_text())


def in_its_place(path, other):
    path.unlink()
    path.mkdir()
    (path / "something").write_text("of mine")


def nul_bytes(path, other):
    path.write_bytes(bytes(path.stat().st_size))


def foreign(path, other):
    shutil.copy(
        other / path.relative_to(path.parents[len(path.parts) - len(other.parts) - 1]), path
    )


DAMAGES = {
    "emptied": lambda path, other: path.write_bytes(b""),
    "cut": cut,
    "one byte": one_byte,
    "the end": end,
    "one digit": one_digit,
    "another type": lambda path, other: path.write_text("[1, 2]"),
    "NUL": nul_bytes,
    "a folder": in_its_place,
    "removed": lambda path, other: path.unlink(),
    "foreign": foreign,
}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two finished folders, of two models."""
    path = tmp_path_factory.mktemp("two")
    filled(path)
    list(fill(folder(path, "other"), lambda suite: made(suite, 3.0), batch_size=2))
    return path


@pytest.mark.parametrize("file", ["manifest.json", "scores/000003.json", "videos/000003.mp4"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_named_kept_and_made_again(tmp_path, two, file, damage):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    whole, other = scores(folder(tmp_path)), folder(tmp_path, "other").path
    path = tmp_path / "base" / file
    before = path.read_bytes()
    damage(path, other)
    assert path.is_dir() or not path.exists() or path.read_bytes() != before
    harm = path.read_bytes() if path.is_file() else None
    again = folder(tmp_path)
    (line,) = again.mend(batch_size=2)
    assert line.startswith(f"{str(path)!r} ")
    assert line.endswith("made again.")
    assert again.mend() == []
    list(fill(again, made, batch_size=2))
    assert same(scores(again), whole)
    assert path.read_bytes() == before
    kept = [each for each in (again.path / "damaged").rglob("*") if each.is_file()]
    if harm is not None:
        assert [each.read_bytes() for each in kept] == [harm]
        assert repr(str(kept[0])) in line
    else:
        assert len(kept) == ("a folder" in line)


def test_what_was_set_aside_stays_when_the_same_is_damaged_again(tmp_path):
    target = filled(tmp_path)
    for text in ("one", "two", "three"):
        (target.path / "scores" / "000001.json").write_text(text)
        list(fill(folder(tmp_path), made, batch_size=2))
    kept = sorted((target.path / "damaged" / "scores").iterdir())
    assert [path.read_text() for path in kept] == ["one", "two", "three"]


def test_all_files_damaged_at_once_are_all_named(tmp_path, caplog):
    target = filled(tmp_path)
    whole = scores(target)
    files = [path for path in target.path.rglob("*") if path.is_file()]
    for path in files:
        path.write_bytes(b"")
    list(fill(folder(tmp_path), made, batch_size=2))
    assert same(scores(folder(tmp_path)), whole)
    # Nothing tells what the videos were once all scores are gone: they are made again with them.
    named = [path for path in files if any(repr(str(path)) in line for line in caplog.messages)]
    assert [path.name for path in named] == [path.name for path in files if path.suffix == ".json"]


def test_a_file_in_place_of_a_folder_is_moved_away(tmp_path):
    whole = scores(filled(tmp_path))
    for name in ("scores", "videos"):
        shutil.rmtree(tmp_path / "base" / name)
        (tmp_path / "base" / name).write_text("mine")
    target = folder(tmp_path)
    assert [("is no folder" in line) for line in target.mend()] == [True, True]
    list(fill(target, made, batch_size=2))
    assert same(scores(target), whole)


@pytest.mark.parametrize("file", ["manifest.json", "scores/000003.json", "videos/000003.mp4"])
def test_a_file_that_may_not_be_read_is_refused_and_no_damage(tmp_path, monkeypatch, file):
    target = filled(tmp_path)
    path, opened = target.path / file, Path.open

    def refuse(self, *arguments, **options):
        if self == path:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)  # root may read everything
    with pytest.raises(PermissionError) as error:
        list(fill(folder(tmp_path), made, batch_size=2))
    assert error.value.filename == str(path)
    assert path.exists()
    assert not (target.path / "damaged").exists()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_kill_anywhere_changes_no_bit(tmp_path, monkeypatch, batch_size, processes):
    def run(target, answer):
        for rank in range(processes):
            list(fill(target, answer, rank=rank, processes=processes, batch_size=batch_size))

    straight = folder(tmp_path, "straight")
    run(straight, made)
    put = SuiteFolder.put
    for survives in range(5):
        target = folder(tmp_path, f"killed{survives}")
        kept = []

        def dies(self, index, frames, result, kept=kept, survives=survives):
            if len(kept) == survives:
                raise KeyboardInterrupt
            kept.append(index)
            put(self, index, frames, result)

        monkeypatch.setattr(SuiteFolder, "put", dies)
        with pytest.raises(KeyboardInterrupt):
            run(target, made)
        monkeypatch.setattr(SuiteFolder, "put", put)
        run(folder(tmp_path, f"killed{survives}"), made)
        assert same(scores(target), scores(straight))


def test_batches_do_not_depend_on_the_number_of_processes(tmp_path):
    one = filled(tmp_path, "one", batch_size=2)
    two = folder(tmp_path, "two")
    for rank in (1, 0):
        list(fill(two, made, rank=rank, processes=2, batch_size=2))
    assert same(scores(one), scores(two))
    assert not same(scores(one), scores(filled(tmp_path, "other", batch_size=3)))


def without_seals(target):
    """As versions wrote it that knew none."""
    for path in (target.path / "manifest.json", *(target.path / "scores").iterdir()):
        entries, _ = unseal(path.read_bytes())
        entries.pop("folder", None)
        if isinstance(entries.get("video"), str):
            entries.pop("video")
        path.write_text(json.dumps(entries))


def test_a_folder_without_seals_is_believed_and_that_is_said_once(tmp_path):
    whole = scores(filled(tmp_path))
    without_seals(folder(tmp_path))
    target = folder(tmp_path)
    assert same(scores(target), whole)
    (line,) = target.mend()
    assert "5 samples of" in line
    assert "believed" in line
    assert list(fill(target, None)) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"rewards": {"total": "0.5"}, "judges": {"check": 1}}, "'total' is '0.5'"),
        ({"rewards": {"total": True}, "judges": {"check": 1}}, "'total' is True"),
        ({"rewards": {"total": 1, "flow": -float("inf")}, "judges": {"check": 1}}, "is -inf"),
        ({"rewards": {"total": 1}, "judges": None}, "no 'judges'"),
        ({"prompt": "red"}, "belongs to another sample"),
        ({"more": 1}, "belongs to another sample"),
    ],
)
def test_in_a_folder_without_seals_what_cannot_be_is_made_again(tmp_path, content, words):
    whole = scores(filled(tmp_path))
    without_seals(folder(tmp_path))
    path = tmp_path / "base" / "scores" / "000003.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | content))
    target = folder(tmp_path)
    found = target.evaluation()
    assert found.suite.prompts == ("red", "green", "blue", "white")
    assert words in found.missing[target.names[3]]
    lines = target.mend()
    assert len(lines) == 2
    assert words in lines[0]
    list(fill(target, made, batch_size=2))
    assert same(scores(target), whole)


def test_scores_of_other_names_than_most_are_listed(tmp_path):
    filled(tmp_path)
    without_seals(folder(tmp_path))
    path = tmp_path / "base" / "scores" / "000000.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rewards": {"total": 1, "flow": 1}}))
    found = folder(tmp_path).evaluation()
    assert found.suite.prompts == SUITE.prompts[1:]
    assert "rewards are ['flow', 'total'], those of others ['total']" in str(found.missing)


def test_a_damaged_manifest_is_refused_where_nothing_is_made(tmp_path):
    filled(tmp_path)
    (tmp_path / "base" / "manifest.json").write_bytes(b"")
    with pytest.raises(SuiteError, match=r"its manifest\.json is empty"):
        SuiteFolder.open(tmp_path / "base")
    (tmp_path / "base" / "manifest.json").write_bytes(
        seal({"suite": 1, "fps": "a", "prompts": 2, "seeds": [], "videos": [], "protocol": 3})
    )
    with pytest.raises(SuiteError, match="describes none"):
        SuiteFolder.open(tmp_path / "base")
