import json
import logging
import resource
import signal
import sys
import warnings
from pathlib import Path

import pytest

from astrolabe.rank_log import RankLog, log_to, older, path_of, read_tail
from astrolabe.world import ALONE, World

OURS = logging.getLogger("astrolabe_rewards.somewhere")
THEIRS = logging.getLogger("another.library")


@pytest.fixture
def file_limit():
    """Let files grow to so many bytes, as on a disk that is full then."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_when_who_where_and_what(tmp_path):
    with log_to(tmp_path, World(rank=3, size=8)) as log:
        log.step = 7
        log.phase = "score"
        OURS.info("%d videos of é", 4)
        try:
            raise ValueError("wrong")
        except ValueError:
            OURS.exception("failed")
    first, second = lines(tmp_path / "logs" / "rank-003.jsonl")
    time = first.pop("time")
    assert time.startswith("20")
    assert time.endswith("+00:00")
    assert first == {
        "rank": 3,
        "step": 7,
        "phase": "score",
        "level": "INFO",
        "logger": "astrolabe_rewards.somewhere",
        "message": "4 videos of é",
    }
    assert second["traceback"].endswith("ValueError: wrong")


def test_each_phase_begins_with_a_line_and_all_are_passed_on(tmp_path):
    seen = []
    told = [("sample", 0.0), ("sample", 0.5), ("score", 0.0), ("score", 0.0)]
    with log_to(tmp_path, ALONE) as log:
        watch = log.watching(lambda *phase: seen.append(phase))
        for phase in told:
            watch(*phase)
    assert seen == told
    written = [(line["phase"], line["message"]) for line in lines(path_of(tmp_path, 0))]
    assert written == [("sample", "begins"), ("score", "begins"), ("score", "begins")]


def test_of_others_only_warnings_are_kept_and_those_of_python_too(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with log_to(tmp_path, ALONE):
            THEIRS.info("chatter")
            OURS.debug("detail")
            THEIRS.warning("careful")
            warnings.warn("old", stacklevel=1)
    first, second = lines(path_of(tmp_path, 0))
    assert first["message"] == "careful"
    assert second["logger"] == "py.warnings"
    assert "UserWarning: old" in second["message"]


@pytest.mark.parametrize("rank", [0, 1])
def test_the_main_process_alone_shows_a_warning_and_once(tmp_path, monkeypatch, capsys, rank):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # without those of pytest
    with log_to(tmp_path, World(rank=rank, size=2)):
        OURS.info("detail")
        OURS.warning("careful")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == ("careful\n" if rank == 0 else "")
    assert [line["message"] for line in lines(path_of(tmp_path, rank))] == ["detail", "careful"]


def test_logging_is_afterwards_as_it_was(tmp_path):
    root = logging.getLogger()
    before = list(root.handlers), OURS.getEffectiveLevel(), warnings.showwarning
    with log_to(tmp_path, ALONE):
        assert OURS.isEnabledFor(logging.INFO)
    assert (list(root.handlers), OURS.getEffectiveLevel(), warnings.showwarning) == before
    assert not (tmp_path / "logs").exists()  # nothing was logged


def test_a_log_is_bounded_and_loses_the_oldest_lines(tmp_path):
    path = tmp_path / "log"
    log = RankLog(path, 0, limit=2000)
    for number in range(100):
        log.handle(OURS.makeRecord("astrolabe", logging.INFO, "", 0, str(number), (), None))
    log.close()
    kept = [int(line["message"]) for file in (older(path), path) for line in lines(file)]
    assert kept == list(range(kept[0], 100))
    assert len(kept) > 10
    assert max(file.stat().st_size for file in (older(path), path)) <= 2000
    assert len(list(tmp_path.iterdir())) == 2


def test_a_log_goes_on_where_an_earlier_process_left_it(tmp_path):
    for text in ("first", "second"):
        with log_to(tmp_path, ALONE):
            OURS.info(text)
    assert [line["message"] for line in lines(path_of(tmp_path, 0))] == ["first", "second"]


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_on_a_full_disk_the_log_says_so_once_and_nothing_breaks(capsys):
    log = RankLog(Path("/dev/full"), 5)
    for _ in range(3):
        log.handle(OURS.makeRecord("astrolabe", logging.INFO, "", 0, "text", (), None))
    log.close()
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "rank 5: the log /dev/full cannot be written (No space left on device)" in told


def test_a_log_goes_on_once_there_is_room_again(tmp_path, file_limit, capsys):
    with log_to(tmp_path, ALONE):
        OURS.info("first")
        file_limit(path_of(tmp_path, 0).stat().st_size + 10)
        OURS.info("cut off")
        OURS.info("lost")
        file_limit(2**20)
        OURS.info("last")
    first, cut, last = path_of(tmp_path, 0).read_text().splitlines()
    assert json.loads(first)["message"] == "first"
    assert len(cut) == 10
    assert json.loads(last)["message"] == "last"
    assert "the run goes on without it" in capsys.readouterr().err


def test_the_tail_of_a_log_is_read_as_text(tmp_path):
    with log_to(tmp_path, ALONE) as log:
        log.step = 2
        for number in range(5):
            OURS.warning("line %d", number)
    with path_of(tmp_path, 0).open("a") as file:
        file.write('{"cut')
    *told, cut = read_tail(path_of(tmp_path, 0), 3)
    assert [text.partition(" ")[2] for text in told] == [
        "step 2 WARNING astrolabe_rewards.somewhere: line 3",
        "step 2 WARNING astrolabe_rewards.somewhere: line 4",
    ]
    assert cut == '{"cut'
    assert len(read_tail(path_of(tmp_path, 0), 100, most=300)) < 4


def test_a_line_after_one_that_a_kill_cut_off_is_a_line_of_its_own(tmp_path):
    path = path_of(tmp_path, 0)
    path.parent.mkdir()
    path.write_bytes(b'{"time": "20')
    with log_to(tmp_path, ALONE):
        OURS.info("here again")
    cut, whole = path.read_bytes().splitlines()
    assert cut == b'{"time": "20'
    assert json.loads(whole)["message"] == "here again"
