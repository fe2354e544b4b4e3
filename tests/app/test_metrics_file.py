"""metrics.jsonl after a kill, a bad disk or an editor: what is good stays, and damage is named."""

import json
import logging

import pytest

from astrolabe.metrics_file import check_metrics, go_on_after, read_metrics
from astrolabe.run_folder import RunFolder
from astrolabe.tracking import Tracker, read_curves


def line(step, **more):
    return json.dumps({"step": step, "reward/total": step / 3, **more}).encode() + b"\n"


FOUR = [line(step) for step in (1, 2, 3, 4)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def go_on(path, data, step=9):
    """Go on after a step; return what is told, the content then, and what was kept beside it."""
    path.write_bytes(data)
    told = go_on_after(path, step)
    assert sorted(path.parent.iterdir()) == sorted({path, *path.parent.glob("*.damaged-*")})
    aside = path.with_name("metrics.jsonl.damaged-1")
    return told, path.read_bytes(), aside.read_bytes() if aside.exists() else None


def test_metrics_after_the_checkpoint_and_a_line_that_was_cut_off_go_without_a_word(path):
    cut = b'{"step": 5, "rew'
    assert go_on(path, b"".join(FOUR) + cut, 2) == ([], b"".join(FOUR[:2]), None)
    assert go_on(path, b"".join(FOUR) + cut) == ([], b"".join(FOUR), None)
    assert go_on(path, cut, 9) == ([], b"", None)


def test_a_run_that_kept_no_metrics_has_nothing_to_cut_back(path):
    assert go_on_after(path, 3) == []
    check_metrics(path)
    assert not path.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + b"".join(FOUR),
        b"".join(FOUR).replace(b"\n", b"\r\n"),
        FOUR[0] + b"\n  \n" + b"".join(FOUR[1:]),
        b"".join(FOUR)[:-1],
        b"".join(FOUR) + b"\n\n",
    ],
    ids=["BOM", "CRLF", "empty lines", "no end of the last line", "empty lines at the end"],
)
def test_what_editors_change_is_no_damage(path, data):
    assert go_on(path, data) == ([], b"".join(FOUR), None)


DAMAGE = {
    "not UTF-8": (b"\xff" + FOUR[0][1:], "line 1 is damaged (its byte 1 is no UTF-8)"),
    "zeros": (b"\0" * 40 + b"\n", "line 1 is damaged (it is no JSON from its character 1 on)"),
    "a zero inside": (FOUR[0].replace(b"0.3", b"0\x003"), "line 1 is damaged (it is no JSON from"),
    "a list": (b"[1, 2]\n", "line 1 is damaged (it holds a list and no object)"),
    "a number": (b"7\n", "line 1 is damaged (it holds a number and no object)"),
    "null": (b"null\n", "line 1 is damaged (it holds null and no object)"),
    "no step": (b"{}\n", "line 1 is damaged (its step is None)"),
    "half a step": (b'{"step": 1.5}\n', "line 1 is damaged (its step is 1.5)"),
    "step true": (b'{"step": true}\n', "line 1 is damaged (its step is True)"),
    "step 0": (b'{"step": 0}\n', "line 1 is damaged (its step is 0)"),
    "a long number": (b'{"step": ' + b"1" * 5000 + b"}\n", "line 1 is damaged (it is no JSON)"),
    "too deep": (b"[" * 200_000 + b"\n", "line 1 is damaged (it is no JSON)"),
    "very long": (b"x" * 2**22 + b"\n", "line 1 is damaged (it is no JSON from its character 1 on"),
    "two lines in one": (FOUR[0][:-1] + FOUR[1], "line 1 is damaged (it is no JSON from"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_line_costs_itself_alone_and_the_file_is_kept_as_it_was(path, case):
    bad, problem = DAMAGE[case]
    data = bad + b"".join(FOUR[1:])
    told, content, aside = go_on(path, data, 3)
    assert (content, aside) == (b"".join(FOUR[1:3]), data)
    assert len(told) == 1
    assert told[0].startswith(f"{path}: {problem}")
    assert told[0].endswith("the file as it was is kept as metrics.jsonl.damaged-1.")
    assert "\n" not in told[0]
    assert go_on_after(path, 3) == []  # said once


def test_a_very_long_line_of_metrics_is_no_damage(path):
    long = line(1, **{f"reward/{n}": n / 7 for n in range(50_000)})
    assert go_on(path, long + FOUR[1]) == ([], long + FOUR[1], None)


def test_damage_in_the_middle_and_at_the_end_is_counted(path):
    data = b"".join([FOUR[0], b"x\n", FOUR[2], b"[]\n", b"{\n"])
    (told,), content, aside = go_on(path, data)
    assert "line 2 is damaged (it is no JSON from its character 1 on), and 2 more lines are" in told
    assert (content, aside) == (FOUR[0] + FOUR[2], data)


def test_the_later_of_two_lines_of_a_step_stays_and_steps_are_put_in_order(path):
    again = line(2, again=1)
    (told,), content, _ = go_on(path, b"".join([*FOUR[:3], again, FOUR[3]]))
    assert "line 4 is damaged (it holds step 2 again)" in told
    assert content == b"".join([FOUR[0], again, *FOUR[2:]])
    (told,), content, _ = go_on(path, b"".join([FOUR[0], FOUR[2], FOUR[1]]))
    assert "line 3 is damaged (it holds step 2 after 3)" in told
    assert content == b"".join(FOUR[:3])


def test_what_was_kept_earlier_is_never_overwritten(path):
    bad = [bytes([number]) + b"\n" + FOUR[0] for number in range(3)]
    for number, data in enumerate(bad, start=1):
        told, _, _ = go_on(path, data)
        assert told[0].endswith(f"metrics.jsonl.damaged-{number}.")
    kept = [path.with_name(f"metrics.jsonl.damaged-{number}").read_bytes() for number in (1, 2, 3)]
    assert kept == bad


def test_a_file_system_without_links_keeps_a_copy(path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    for number in (1, 2):
        told, _, aside = go_on(path, b"x\n" + FOUR[0])
        assert told[0].endswith(f"metrics.jsonl.damaged-{number}.")
        assert aside == b"x\n" + FOUR[0]


def test_a_folder_in_its_place_or_a_file_that_may_not_be_read_is_refused(path, monkeypatch):
    path.mkdir()
    for use in (check_metrics, read_metrics, lambda path: go_on_after(path, 3)):
        with pytest.raises(OSError, match=r"metrics\.jsonl' cannot be used \(it is a folder"):
            use(path)
    path.rmdir()
    path.write_bytes(FOUR[0])

    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", forbidden)  # root may read anything
    with pytest.raises(OSError, match=r"cannot be used \(Permission denied\)\. It must be a file"):
        go_on_after(path, 3)
    monkeypatch.undo()
    assert list(path.parent.iterdir()) == [path]


def test_curves_leave_out_damaged_lines_and_say_so(tmp_path, caplog):
    folder = RunFolder(tmp_path)
    with Tracker(folder) as tracker:
        tracker.log(1, {"a": 0.5})
        tracker.log(2, {"a": 1.5})
    with folder.metrics.open("ab") as file:
        file.write(b'\xff\n{"step": 3, "a": "x"}\n{"step": 4, "a": 2.5}')
    with caplog.at_level(logging.WARNING):
        curves = read_curves(folder)
    steps, values = curves["a"]
    assert steps == [1, 2, 3, 4]
    assert (values[:2], values[3]) == ([0.5, 1.5], 2.5)
    assert values[2] != values[2]
    assert "line 3 is damaged (its byte 1 is no UTF-8); the curves lack that." in caplog.text
