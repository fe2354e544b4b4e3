"""Every package reads files through `input_files`: nothing waits for a pipe or recurses on."""

import ast
import errno
import json
import os
import socket
from pathlib import Path

import pytest

from astrolabe_eval import input_files
from astrolabe_eval.input_files import (
    DEPTH,
    check_depth,
    check_file,
    parse_json,
    read_bytes,
    read_json,
    read_text,
)

ROOT = Path(__file__).parents[2]
SOURCES = sorted(ROOT.glob("*/*/src/**/*.py"))
#: Calls that read what is in a file, or take it apart.
RAW = {"read_text", "read_bytes", "loads", "safe_open", "load_file", "is_zipfile", "resolve"}
CHECKED = {"check_file", "check_complete", "read_value", "parse_json", "check_depth"} | {
    f"read_{kind}" for kind in ("bytes", "text", "json")
}
#: Functions that need no check, by what they read.
FREE = {
    "made here": {
        *(
            "evaluate.protocol",
            "jobs.settings",
            "suite_manifest.describe",
            "load.to_table",
            "load.from_table",
            "stacks.why_hung",
            "video_io.encode_mp4",
        ),
        *("checkpoint.restore", "handover._meet", "parallel.union", "parallel.union_of_windows"),
        *("sameness.compare", "stragglers.compared", "world.gather"),
    },
    "installed with us or the system": {
        *(
            "sameness.source_digests",
            "versions._after",
            "lookout._stopped",
            "watch_app._page",
            "vbench_actions.classes",
        ),
        *("vbench_long._tables", "qwen_prompt.load_template", "worker._own"),
    },
    "said by a process that was started here": {
        *("vbench_environment._environment", "scoring_process._start", "scoring_process._ask"),
        "worker_process.main",
        "lookout.main",
    },
    "checked by those who call it": {
        *("video_file._opened", "weights.opened", "lora_files._unwrapped"),
        *("display._orientation", "line_files.set_aside"),
    },
    "too deep is caught": {
        *("prompt_files._is_json_entry", "wire._header", "wire._texts", "line_files._line"),
        "sealed.unseal",
    },
}


@pytest.fixture
def others(tmp_path):
    """What is no file, by its name in the message."""
    for name in ("folder", "pipe", "socket", "device", "circle"):
        make_other(tmp_path / name, name)
    return tmp_path


def make_other(path, kind):
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            before = os.getcwd()
            os.chdir(path.parent)  # its name may only have a hundred letters
            made.bind(path.name)
            os.chdir(before)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to(path)


def test_the_module_is_the_same_in_each_package():
    texts = {path: path.read_text() for path in ROOT.glob("*/*/src/*/input_files.py")}
    assert len(texts) == 3
    assert len(set(texts.values())) == 1


def named(call):
    """The last name of what is called, and whether it is one of ours, which has no dot."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr, False
    return getattr(call.func, "id", ""), True


def raw_reading(function):
    """Whether a function reads a file by other means than `input_files`."""
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    names = [named(call) for call in calls]
    if any(name in CHECKED and own for name, own in names):
        return False
    opened = {
        ast.unparse(call)
        for call in calls
        if named(call)[0] == "open"
        and (
            ast.unparse(call.func) in ("av.open", "Image.open", "open")
            or "'rb'" in ast.unparse(call)
        )
        and not {"w", "wb", "os.devnull"} & {getattr(a, "value", ast.unparse(a)) for a in call.args}
    }
    loaded = any(ast.unparse(call.func) in ("torch.load", "tomllib.load") for call in calls)
    return bool(opened) or loaded or any(name in RAW for name, _ in names)


def test_nothing_reads_a_file_by_other_means():
    found = {
        f"{path.stem}.{node.name}"
        for path in SOURCES
        if path.stem != "input_files"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and raw_reading(node)
    }
    assert found == set().union(*FREE.values())


def test_reading_by_other_means_is_found():
    for line in (
        "json.loads(x)",
        "path.read_text()",
        "path.open('rb')",
        "av.open(p)",
        "torch.load(p)",
    ):
        assert raw_reading(ast.parse(f"def f():\n    {line}").body[0])
        assert not raw_reading(ast.parse(f"def f():\n    check_file(p)\n    {line}").body[0])


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "device", "circle"])
def test_what_is_no_file_is_refused_at_once(others, kind):
    words = "Too many levels of symbolic links" if kind == "circle" else f"it is a {kind}, not"
    for read in (check_file, read_bytes, read_text, read_json):
        with pytest.raises(OSError, match=words) as refused:
            read(others / kind)
        assert refused.value.filename == str(others / kind)


@pytest.mark.parametrize("name", ["a\0b", "half \ud800", "x" * 300])
def test_a_name_that_no_file_has_is_an_error_of_the_file(tmp_path, name):
    with pytest.raises(OSError, match=r"can have this name|File name too long"):
        check_file(tmp_path / name)


def test_a_file_that_may_not_be_read_is_refused_though_it_is_there(tmp_path, monkeypatch):
    def forbid(path, mode):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / "file").write_bytes(b"")
    check_file(tmp_path / "file")
    monkeypatch.setattr(input_files, "open", forbid, raising=False)  # root may read all files
    with pytest.raises(PermissionError):
        check_file(tmp_path / "file")


def test_a_file_is_read_up_to_a_size(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bytes(path, most=5) == b"12345"
    with pytest.raises(OSError, match="larger than 0 MiB"):
        read_bytes(path, most=4)
    with path.open("wb") as file:
        file.truncate(2**40)  # has no blocks: reading it as a whole would take a terabyte
    with pytest.raises(OSError, match="larger than 1 MiB"):
        read_bytes(path, most=2**20)


def test_text_has_its_place_in_the_message_and_loses_its_mark(tmp_path):
    path = tmp_path / "file"
    path.write_bytes("\ufeffa\nb".encode())
    assert read_text(path) == "a\nb"
    path.write_bytes(b"\xef\xbb\xbfone\ntwo \xe9\n")
    with pytest.raises(ValueError, match="line 2 is not UTF-8: its byte 5 is 0xe9"):
        read_text(path)


@pytest.mark.parametrize("inside", ["[{}]", '{{"a": {}}}'])
def test_json_is_read_to_a_depth(inside):
    text = "1"
    for _ in range(DEPTH):
        parse_json(text)
        text = inside.format(text)
    for deep in (text, "[" * 10**5 + "]" * 10**5, '{"a":' * 10**5):
        with pytest.raises(ValueError, match=f"more than {DEPTH} deep|line 1"):
            parse_json(deep)
    with pytest.raises(ValueError, match=f"more than {DEPTH} deep"):
        check_depth(json.loads(text))


def test_json_holds_whole_characters_and_names_its_line():
    assert parse_json('"\\ud83d\\ude00 \\u00e9"') == "😀 é"
    for half in ('"\\ud800"', '{"\\udfff": 1}'):
        with pytest.raises(ValueError, match="half of a character"):
            parse_json(half)
    with pytest.raises(ValueError, match="line 2 column 1"):
        parse_json("[1,\n")
