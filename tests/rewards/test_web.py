"""Connections that ask for nothing: they take no place, no time and no log from those that do."""

import asyncio
import logging
import resource
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager

import pytest

from astrolabe_rewards.web.bounds import Bounds
from astrolabe_rewards.web.connections import BoundedServer, _Sparing

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
LARGE = b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def app(scope, receive, send):
    large = scope["path"] == "/large"
    if scope["path"] == "/slow":
        await asyncio.sleep(0.3)
    length = str(2**26 if large else 2).encode()
    headers = [(b"content-length", length)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for _ in range(2**26 // 2**20 if large else 0):
        await send({"type": "http.response.body", "body": bytes(2**20), "more_body": True})
    await send({"type": "http.response.body", "body": b"" if large else b"ok"})


@contextmanager
def serving(**bounds):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = BoundedServer(app, Bounds(**bounds), lifespan="off", timeout_graceful_shutdown=1)
        thread = threading.Thread(target=server.run, args=[[listener]])
        thread.start()
        try:
            yield server, listener.getsockname()
        finally:
            server.should_exit = True
            thread.join()


def connect(address, data=b""):
    line = socket.create_connection(address, timeout=10)
    line.sendall(data)
    return line


def rest(line):
    """What comes until the server ends the connection."""
    answer = b""
    try:
        while more := line.recv(2**20):
            answer += more
    except ConnectionResetError:
        pass
    return answer


def is_answered(line):
    answer = b""
    while not answer.endswith(b"ok") and (more := line.recv(4096)):
        answer += more
    return answer.startswith(b"HTTP/1.1 200 ") and answer.count(b"HTTP") == 1


def test_what_is_not_asked_in_time_is_ended():
    part = b"GET / HTTP/1.1\r\nHost"
    unread = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    with serving(head_seconds=0.3, body_seconds=0.3) as (_, address), ExitStack() as stack:
        silent, cut, after, upload, dripping, honest = (
            stack.enter_context(connect(address, data))
            for data in (b"", part, GET + part, unread, b"G", GET)
        )
        begun = time.monotonic()
        while time.monotonic() - begun < 5:
            try:
                dripping.sendall(b"E")
            except OSError:
                break
            time.sleep(0.02)
        assert time.monotonic() - begun < 5
        for line in (silent, cut):
            assert rest(line).startswith(b"HTTP/1.1 408 ")
        for line, ending in ((after, b"Content-Length: 0\r\n\r\n"), (upload, b"ok")):
            answer = rest(line)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.endswith(ending)
        assert is_answered(honest)
        honest.sendall(GET)  # between requests there is another, longer time
        assert is_answered(honest)


def test_an_answer_that_is_not_read_is_not_kept():
    with serving(stall_seconds=0.2) as (server, address), connect(address, LARGE):
        deadline = time.monotonic() + 5
        connections = server.server_state.connections
        while not connections and time.monotonic() < deadline:
            time.sleep(0.01)
        assert connections
        while connections and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not connections


def test_those_that_say_nothing_make_place_for_those_that_ask():
    with serving(connections=4) as (server, address), ExitStack() as stack:
        known = stack.enter_context(connect(address, GET))
        assert is_answered(known)
        for _ in range(30):
            stack.enter_context(connect(address))
        for _ in range(3):
            with connect(address, GET) as line:
                assert is_answered(line)
        assert len(server.server_state.connections) <= 4
        known.sendall(GET)  # who asked before goes last
        assert is_answered(known)


def test_a_server_that_is_full_of_work_says_come_again():
    slow = GET.replace(b"/ ", b"/slow ", 1)
    with serving(connections=2) as (_, address), ExitStack() as stack:
        busy = [stack.enter_context(connect(address, slow)) for _ in range(2)]
        time.sleep(0.1)
        with connect(address) as line:
            answer = rest(line)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1\r\n" in answer
        for line in busy:
            assert is_answered(line)


def test_there_is_room_for_no_more_connections_than_half_of_the_files(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    assert Bounds(connections=1000).places() == (128, 16)
    assert Bounds(connections=5).places() == (5, 16)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert Bounds(connections=1000).places()[0] == 1000


@pytest.mark.parametrize("name", ["connections", "head_seconds", "body_seconds", "stall_seconds"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("-inf")])
def test_bounds_that_bound_nothing_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        Bounds(**{name: value})


def test_a_thousand_bad_requests_are_one_line_in_the_log(caplog):
    with serving() as (_, address):
        for _ in range(50):
            with connect(address, b"\x16\x03\x01 no request\r\n\r\n") as line:
                assert rest(line).startswith(b"HTTP/1.1 400 ")
    assert len([each for each in caplog.records if each.name == "uvicorn.error"]) == 1
    spare, record = _Sparing(0.0), logging.makeLogRecord({"msg": "all of %s", "args": ("it",)})
    spare._seen["all of %s"] = (0.0, 7)
    assert spare.filter(record)
    assert record.getMessage() == "all of it (and 7 more before, not logged)"


@pytest.mark.slow
def test_three_hundred_silent_connections_under_256_files_take_nothing_from_others():
    code = (
        "import resource, socket, sys\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))\n"
        f"sys.path.insert(0, {str(__file__).rpartition('/')[0]!r})\n"
        "from test_web import app, Bounds, BoundedServer\n"
        "listener = socket.create_server(('127.0.0.1', 0))\n"
        "print(listener.getsockname()[1], flush=True)\n"
        "BoundedServer(app, Bounds(), lifespan='off').run([listener])\n"
    )
    command = [sys.executable, "-c", code]
    with (
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as server,
        ExitStack() as stack,
    ):
        address = ("127.0.0.1", int(server.stdout.readline()))
        for _ in range(300):
            stack.enter_context(connect(address))
        for _ in range(20):
            begun = time.monotonic()
            with connect(address, GET) as line:
                assert is_answered(line)
            assert time.monotonic() - begun < 1
        server.kill()
        assert server.stderr.read() == ""
