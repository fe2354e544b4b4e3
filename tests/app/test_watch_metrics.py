import json
import math

import pytest

from astrolabe import watch_metrics
from astrolabe.metrics_file import go_on_after
from astrolabe.run_folder import RunFolder
from astrolabe.tracking import Tracker
from astrolabe.watch_metrics import last_entry, read_piece


def log(folder, first, last, offset=0.0):
    with Tracker(folder) as tracker:
        for step in range(first, last + 1):
            tracker.log(step, {"reward/total": step + offset})


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path)
    log(folder, 1, 3)
    return folder


def test_only_what_came_since_the_last_time_is_read(folder):
    first = read_piece(folder.metrics)
    assert first["steps"] == [1, 2, 3]
    assert first["values"]["reward/total"] == [1.0, 2.0, 3.0]
    log(folder, 4, 4)
    second = read_piece(folder.metrics, first["offset"], first["mark"])
    assert (second["steps"], second["reset"]) == ([4], False)
    assert read_piece(folder.metrics, second["offset"], second["mark"])["steps"] == []


def test_a_torn_last_line_waits_until_it_is_whole(folder):
    first = read_piece(folder.metrics)
    with folder.metrics.open("a") as file:
        file.write('{"step": 4, "rew')
        file.flush()
        torn = read_piece(folder.metrics, first["offset"], first["mark"])
        assert (torn["steps"], torn["damaged"], torn["offset"]) == ([], 0, first["offset"])
        file.write('ard/total": 4.0}\n')
    whole = read_piece(folder.metrics, torn["offset"], torn["mark"])
    assert whole["values"] == {"reward/total": [4.0]}


@pytest.mark.parametrize("last", [1, 2, 3, 9])
def test_a_resumed_run_is_read_anew_however_far_it_has_grown_again(folder, last):
    before = read_piece(folder.metrics)
    go_on_after(folder.metrics, 1)
    log(folder, 2, last, offset=0.5)
    after = read_piece(folder.metrics, before["offset"], before["mark"])
    assert after["reset"]
    assert after["values"]["reward/total"] == [1.0, *(step + 0.5 for step in range(2, last + 1))]


def test_metrics_that_went_away_are_a_reset(folder):
    before = read_piece(folder.metrics)
    folder.metrics.unlink()
    assert read_piece(None, before["offset"], before["mark"])["reset"]
    assert not read_piece(None)["reset"]


@pytest.mark.parametrize(
    "line", [b"{", b"\xff\xfe", b"[1]", b"7", b'{"a": 1}', b'{"step": "1"}', b"[" * 10**5]
)
def test_damaged_lines_are_counted_and_left_out(folder, line):
    with folder.metrics.open("ab") as file:
        file.write(line + b"\n\n")
    log(folder, 4, 4)
    piece = read_piece(folder.metrics)
    assert (piece["steps"], piece["damaged"]) == ([1, 2, 3, 4], 1)
    assert last_entry(folder.metrics)["step"] == 4


def test_what_is_no_finite_number_becomes_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    values = ["NaN", "Infinity", "-Infinity", "null", "true", '"1"', "[1]", "1e999", "9" * 400]
    path.write_text("".join(f'{{"step": {n}, "a": {v}}}\n' for n, v in enumerate(values, 1)))
    piece = read_piece(path)
    assert piece["values"]["a"] == [None] * len(values)
    json.dumps(piece, allow_nan=False)


def test_a_metric_that_comes_late_has_gaps_before(tmp_path):
    with Tracker(RunFolder(tmp_path)) as tracker:
        tracker.log(1, {"a": 1.0})
        tracker.log(2, {"a": math.nan, "b": 2.0})
    piece = read_piece(tmp_path / "metrics.jsonl")
    assert piece["values"] == {"a": [1.0, None], "b": [None, 2.0]}


def test_a_long_file_is_read_in_pieces(folder, monkeypatch):
    monkeypatch.setattr(watch_metrics, "CHUNK", 100)
    with folder.metrics.open("ab") as file:
        file.write(b"x" * 250 + b"\n")  # no line of metrics: longer than a piece
    log(folder, 4, 5)
    steps, offset, mark, more = [], 0, "", True
    while more:
        piece = read_piece(folder.metrics, offset, mark)
        offset, mark, more = piece["offset"], piece["mark"], piece["more"]
        assert not piece["reset"]
        steps += piece["steps"]
    assert steps == [1, 2, 3, 4, 5]
