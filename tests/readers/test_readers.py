"""Whatever lies where a file is read: it is read, or refused in one line of words, and soon."""

import ast
import json
import os
import signal
import socket
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from astrolabe.explain import explain

ROOT = Path(__file__).parents[2]
SECONDS = 5
#: Longest lines of a message.
WORDS = 2000
#: Files that are broken for whoever reads them.
CORPUS = (
    *(b"", b"\n", b"\0", b"abc", b"hello world", b"\xff\xfe\0\0", b"\xef\xbb\xbf", b"\x80\x02."),
    *(b"null", b"1", b'"a"', b"[]", b"{}", b"[[]]", b'[{"a": 1}]', b'{"a": {"b": [null]}}'),
    *(b"NaN", b"-Infinity", b"9" * 5000, b'"\\ud800"', b'{"step": 1e999}', b"[1,", b'{"a'),
    *(b"[" * 10**5, b'{"a":' * 10**4, b"[" * 500 + b"]" * 500, b"a." * 5000 + b"a = 1"),
    *(b"a = " + b"[" * 10**4, b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"\x89PNG\r\n\x1a\n"),
    *(b"\0\0\0\x18ftypmp42" + bytes(12), bytes(100), b"\xff" * 100, b"\x08\0\0\0\0\0\0\0{}      "),
    *((2**63 - 1).to_bytes(8, "little"), b"a,b\n1\n", b'path,prompt\n"a', b"prompt\n\xe9\n"),
)
#: What replaces a value of JSON.
VALUES = ("null", "true", "-1", "0", "1e999", "NaN", "9" * 400, '""', '"x"', '"\\u0000"', "[]")
VALUES += ("[[]]", "[1, null]", "{}", '{"a": 1}', '"../../x"', "[" * 2000 + "]" * 2000, '"\\udc80"')
#: What is put into other files.
PIECES = (b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\r", b'"', b"[" * 3000, b"{", b"=", b"9" * 400)
PIECES += (b"nan", b"\xff" * 8, b"\n\n", b"|", b"[9e9s]", b"\xe2\x80\xa8")
KINDS = ("folder", "pipe", "socket", "device", "circle", "nothing")


def make_other(path, kind):
    """Put what is no file where one is read."""
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made, _inside(path.parent):
            made.bind(path.name)  # a name may only have a hundred letters
    elif kind in ("device", "circle"):
        path.symlink_to("/dev/zero" if kind == "device" else path)


@contextmanager
def _inside(folder):
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def clear(path):
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)


def write_good(reader, folder):
    """Write a good file for a reader; return its path."""
    path = folder / reader.name
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(reader.good):
        reader.good(path)
    else:
        path.write_text(reader.good)
    return path


@contextmanager
def soon():
    """End what takes too long, in Python or in a call of the system."""

    def late(number, frame):
        raise AssertionError(f"it still reads after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def read(reader, path):
    """Read, or be refused in words."""
    told = None
    with soon(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries warn of old and damaged files
        try:
            reader.read(path)
        except Exception as error:
            told = explain(error)
            if not told or isinstance(error, AssertionError):
                raise
    if told is None:
        return ""
    assert 10 < len(told) < WORDS
    return told


def test_a_good_file_is_read(reader, tmp_path):
    path = write_good(reader, tmp_path)
    assert reader.refused in read(reader, path) if reader.refused else not read(reader, path)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_refused_at_once(reader, kind, tmp_path):
    path = write_good(reader, tmp_path)
    path.unlink()
    make_other(path, kind)
    read(reader, path)


def test_a_broken_file_is_refused_in_words(reader, tmp_path):
    path = write_good(reader, tmp_path)
    for content in CORPUS:
        clear(path)
        path.write_bytes(content)
        try:
            read(reader, path)
        except AssertionError as error:
            raise AssertionError(f"{content[:60]!r}: {error}") from error


def places(value, path=()):
    """Paths of all values in a value of JSON."""
    yield path
    pairs = value.items() if isinstance(value, dict) else ()
    for key, inner in enumerate(value) if isinstance(value, list) else pairs:
        yield from places(inner, (*path, key))


def replaced(text, number, value):
    """JSON in which one of the values is another."""
    content = json.loads(text)
    found = list(places(content))
    *parents, last = found[number % len(found)] or (None,)
    place = content
    for key in parents:
        place = place[key]
    if last is None:
        return value
    place[last] = "@@"
    return json.dumps(content).replace('"@@"', value)


@st.composite
def mutations(draw):
    """A function from a good content to a bad one."""
    number, place = draw(st.integers(0, 10**6)), draw(st.floats(0, 1))
    value, piece = draw(st.sampled_from(VALUES)), draw(st.sampled_from(PIECES))
    length = draw(st.sampled_from((0, 1, 4, 8, 64)))
    cut = draw(st.integers(0, 5)) == 0

    def mutate(data):
        at = int(place * len(data))
        if cut:
            return data[:at]
        if data[:1] in (b"{", b"["):
            try:
                return replaced(data.decode(), number, value).encode()
            except ValueError:  # several lines
                pass
        # The beginning of a file says most of what it is.
        at = at if number % 2 else number % min(len(data) + 1, 256)
        return data[:at] + piece + data[at + length :]

    return mutate


def test_a_damaged_file_is_refused_in_words(reader, tmp_path):
    path = write_good(reader, tmp_path)
    good = path.read_bytes()

    @settings(
        max_examples=10,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutate=mutations())
    def damage(mutate):
        path.write_bytes(mutate(good))
        read(reader, path)

    damage()


def sites():
    """Functions of the packages that read a file by `input_files`, by module."""
    for path in ROOT.glob("*/*/src/**/*.py"):
        tree = ast.parse(path.read_text())
        own = {
            name.asname or name.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and str(node.module).endswith(".input_files")
            for name in node.names
        } - {"parse_json", "check_depth"}
        for node in ast.walk(tree):
            calls = (inner for inner in ast.walk(node) if isinstance(inner, ast.Call))
            reads = any(getattr(call.func, "id", "") in own for call in calls)
            if reads and isinstance(node, ast.FunctionDef):
                yield f"{path.stem}.{node.name}"


def test_everything_that_reads_a_file_is_tried_here(readers, tmp_path):
    reached = set()

    def note(frame, event, argument):
        caller = frame.f_back
        if event == "call" and caller and frame.f_code.co_filename.endswith("input_files.py"):
            reached.add(f"{Path(caller.f_code.co_filename).stem}.{caller.f_code.co_name}")

    for name, reader in readers.items():
        (tmp_path / name).mkdir()
        path = write_good(reader, tmp_path / name)
        sys.setprofile(note)
        try:
            read(reader, path)
        finally:
            sys.setprofile(None)
    assert {*sites()} <= reached
