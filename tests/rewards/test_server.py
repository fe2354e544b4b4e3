"""Rewards over HTTP: real servers and sockets; the same scores, nothing lost, little memory."""

import json
import logging
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load, save

from astrolabe_rewards import CompositeReward, FlowMQ, Reward, SharpnessVQ, TinyTextReward
from astrolabe_rewards.batching import Batcher
from astrolabe_rewards.client import RemoteReward
from astrolabe_rewards.scoring_service import MIB, Limits
from astrolabe_rewards.server import RewardServer
from astrolabe_rewards.web.bounds import Bounds
from astrolabe_rewards.wire import SCHEMA, Request, UnavailableError

VARIABLE = "ASTROLABE_TEST_TOKEN"
BINARY = {"Content-Type": "application/octet-stream"}


class Echo(Reward):
    """Its score is a number that pixels, prompt and fps spell; it notes what was scored at once."""

    name, unit, needs_text = "echo", "a number", True

    def __init__(self):
        super().__init__()
        self._sizes, self._inside = [], threading.Lock()

    def score(self, pixels, prompts, fps):
        assert self._inside.acquire(blocking=False), "two forwards at once"
        try:
            self._sizes.append(len(pixels))
            for prompt in prompts:
                if prompt.startswith("raise"):
                    raise ValueError(f"no score\nfor {prompt}")
                if prompt == "exit":
                    raise SystemExit
            time.sleep(sum(float(text[5:]) for text in prompts if text.startswith("sleep")))
            level = pixels.double().mean((1, 2, 3, 4))
            words = [float(text) if text.isdigit() else 0.0 for text in prompts]
            return (level * 65536 + torch.tensor(words).double() * 16 + fps.double()).float()
        finally:
            self._inside.release()


@contextmanager
def serving(rewards, **options):
    """A server in a thread, at its address."""
    limits = Limits(**{name: options.pop(name) for name in list(options) if "_" in name})
    with RewardServer(rewards, port=options.pop("port", 0), limits=limits, **options) as server:
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield server.url
        finally:
            server.stop()
            thread.join()


@pytest.fixture(scope="module")
def url():
    """A server of all built-in rewards and the echo."""
    rewards = (SharpnessVQ(), FlowMQ(), TinyTextReward(), Echo())
    with serving({reward.name: reward for reward in rewards}) as address:
        yield address


def body(level=1, prompts=("7",), frames=2, side=8, schema=str(SCHEMA)):
    shape = (len(prompts), frames, 3, side, side)
    pixels = torch.full(shape, level, dtype=torch.uint8)
    tensors = {"pixels": pixels, "fps": torch.full((len(prompts),), 2.0)}
    return save(tensors, {"schema": schema, "prompts": json.dumps(prompts)})


def ask(url, **options):
    return httpx.post(f"{url}/v1/score/echo", content=body(**options), headers=BINARY, timeout=30)


def scores_of(response):
    assert response.status_code == 200, response.text
    return load(response.content)["scores"].tolist()


def remote(url, reward="echo", **options):
    return RemoteReward(url=url, reward=reward, **{"retries": 0, "timeout": 30.0} | options)


def post(headers=()):
    """The head of a request for scores."""
    lines = {"Host": "127.0.0.1"} | BINARY | dict(headers)
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST /v1/score/echo HTTP/1.1\r\n{text}\r\n".encode()


def told(url, *parts):
    """All that a server answers to bytes, until it ends the connection."""
    host, port = url.removeprefix("http://").split(":")
    answer = b""
    with (
        socket.create_connection((host, int(port)), timeout=10) as line,
        suppress(ConnectionError),
    ):
        for part in parts:
            line.sendall(part)
        while more := line.recv(4096):
            answer += more
    return answer


@contextmanager
def begun_uploads(url, number, size):
    """Connections that have sent the head of a large request and nothing of its body."""
    host, port = url.removeprefix("http://").split(":")
    head = post({"Content-Length": size})
    lines = [socket.create_connection((host, int(port))) for _ in range(number)]
    try:
        for line in lines:
            line.settimeout(30)
            line.sendall(head)
        yield lines
    finally:
        for line in lines:
            line.close()


@pytest.mark.parametrize("kind", [SharpnessVQ, FlowMQ, TinyTextReward])
def test_scores_over_http_are_those_of_this_process_bit_for_bit(kind, url, make_batch):
    pixels = torch.randint(0, 256, (2, 3, 9, 3, 48, 48), dtype=torch.uint8)
    texts = [["a red circle", "a blue square spins", "grün"]] * 2
    reward = kind()
    here = reward(make_batch(pixels, texts))["score", reward.name]
    with_name = remote(url, reward.name)
    assert torch.equal(with_name(make_batch(pixels, texts))["score", reward.name], here)


def test_a_remote_reward_tells_of_the_served_one_what_that_one_would(url):
    served, reward = TinyTextReward(), remote(url, "tiny_ta", name="mine")
    assert (reward.unit, reward.needs_text) == (served.unit, True)
    assert reward.fingerprint() == served.fingerprint()
    assert reward.out_keys == [("score", "mine")]
    assert not remote(url, "flow_mq").needs_text
    assert remote(url, "tiny_ta", fingerprint=served.fingerprint()).name == "tiny_ta"


def test_any_program_that_writes_safetensors_can_ask(url):
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    offer = httpx.get(f"{url}/v1/rewards").json()
    assert offer["schema"] == SCHEMA
    assert offer["rewards"]["echo"] == {
        "name": "echo",
        "unit": "a number",
        "needs_text": True,
        "deterministic": True,
        "may_fail": False,
        "fingerprint": Echo().fingerprint(),
        "higher_is_better": True,
    }
    assert scores_of(ask(url, level=3, prompts=["5", "6"])) == [3 * 65536 + 82, 3 * 65536 + 98]


@pytest.mark.parametrize("max_batch", [1, 6])
def test_two_hundred_requests_of_eight_threads_at_once_are_not_mixed_up(max_batch, make_batch):
    echo, shapes = Echo(), [(2, 8), (3, 8), (2, 10)]

    def request(number):
        frames, side = shapes[number % 3]
        pixels = torch.full((1 + number % 2, frames, 3, side, side), number, dtype=torch.uint8)
        words = [str(number), str(number + 1)][: len(pixels)]
        found = client(make_batch(pixels, words, fps=1.0 + number % 15))["score", "echo"]
        expected = [number * 65536 + int(word) * 16 + 1 + number % 15 for word in words]
        return found.flatten().tolist() == expected

    with (
        serving({"echo": echo}, max_batch=max_batch, max_wait=0.02, queue_size=7) as address,
        ThreadPoolExecutor(8) as threads,
    ):
        client = remote(address)
        httpx.get(f"{address}/health")
        assert all(threads.map(request, range(200)))
    assert sum(echo._sizes) == 300
    assert max(echo._sizes) == 2 if max_batch == 1 else 2 < max(echo._sizes) <= max_batch


def test_a_small_request_does_not_wait_for_the_network(url):
    with httpx.Client() as client:
        seconds = []
        for _ in range(20):
            begun = time.perf_counter()
            scores_of(client.post(f"{url}/v1/score/echo", content=body(), headers=BINARY))
            seconds.append(time.perf_counter() - begun)
    assert min(seconds) < 0.035  # a delayed acknowledgement is 0.04


def test_only_what_fits_together_is_joined():
    release = threading.Event()

    class Gate(Echo):
        def score(self, pixels, prompts, fps):
            release.wait(10)
            return super().score(pixels, prompts, fps)

    def request(count, frames=2):
        pixels = torch.zeros(count, frames, 3, 8, 8, dtype=torch.uint8)
        return Request(pixels, ["1"] * count, torch.ones(count))

    gate = Gate()
    batcher = Batcher(gate, "echo", max_batch=4, max_wait=0)
    futures = [batcher.submit(request(1))]
    time.sleep(0.1)  # the first is being scored, and the others gather behind it
    for each in (request(2), request(1, frames=3), request(1), request(2), request(7)):
        futures.append(batcher.submit(each))
    release.set()
    answers = [future.result(10) for future in futures]
    batcher.close()
    assert [len(answer.scores) for answer in answers] == [1, 2, 1, 1, 2, 7]
    assert gate._sizes == [1, 3, 1, 2, 7]


def test_a_cancelled_request_is_not_scored_and_ends_nothing():
    echo = Echo()
    batcher = Batcher(echo, "echo")
    slow = Request(torch.zeros(1, 1, 3, 8, 8, dtype=torch.uint8), ["sleep0.3"], torch.ones(1))
    futures = [batcher.submit(slow) for _ in range(3)]
    assert futures[1].cancel()
    assert futures[2].result(10).errors == [None]
    batcher.close()
    assert len(echo._sizes) == 2
    with pytest.raises(RuntimeError, match="scoring has ended"):
        batcher.submit(slow)


def test_a_failure_of_the_scorer_is_that_of_one_video(url, make_batch, caplog):
    pixels = torch.ones(4, 2, 3, 8, 8, dtype=torch.uint8)
    batch = make_batch(pixels, ["1", "raise it", "exit", "4"], fps=1.0)
    with caplog.at_level(logging.WARNING, "astrolabe_rewards.client"):
        scored = CompositeReward({"echo": (remote(url), 1.0)}, on_error="invalid")(batch)
    assert scored["next", "valid"].flatten().tolist() == [True, False, False, True]
    rewards = scored["next", "reward"].flatten()
    assert rewards.isnan().tolist() == [False, True, True, False]
    assert rewards[[0, 3]].tolist() == [65553.0, 65601.0]
    assert "echo, video 1: ValueError: no score for raise it" in caplog.text
    assert "echo, video 2: SystemExit" in caplog.text
    assert scores_of(ask(url, prompts=["1"])) == [65554.0]  # the server lives


def test_a_batch_larger_than_the_server_takes_is_sent_in_parts(make_batch):
    pixels = torch.arange(7, dtype=torch.uint8)[:, None, None, None, None].expand(7, 4, 3, 32, 32)
    echo = Echo()
    with serving({"echo": echo}, max_body=30_000) as address:
        scored = remote(address)(make_batch(pixels, [str(n) for n in range(7)], fps=1.0))
        large = make_batch(torch.zeros(1, 9, 3, 64, 64, dtype=torch.uint8), ["x"])
        with pytest.raises(ValueError, match=r"a video of 0\.1 MiB is more than the server takes"):
            remote(address)(large)
    assert scored["score", "echo"].flatten().tolist() == [n * 65552 + 1 for n in range(7)]
    assert echo._sizes == [2, 2, 2, 1]


@pytest.mark.parametrize(
    ("path", "content", "status", "reason"),
    [
        ("echo", b"no request at all", 400, "no safetensors"),
        ("echo", b"", 400, "cut short"),
        ("echo", body(schema="99"), 400, "schema '99' and this one '1'"),
        ("echo", body()[:-1], 400, "pixels of shape"),
        ("nothing", body(), 404, "no reward 'nothing' here. Known: sharpness_vq, flow_mq"),
        ("echo", iter([b"x"]), 411, "Send Content-Length"),
    ],
)
def test_requests_that_make_no_sense_are_refused_in_one_line(path, content, status, reason, url):
    response = httpx.post(f"{url}/v1/score/{path}", content=content, headers=BINARY)
    assert response.status_code == status
    assert reason in response.json()["error"]
    assert scores_of(ask(url)) == [65536 + 114]


def test_a_body_over_the_limit_is_refused_before_it_is_sent():
    with serving({"echo": Echo()}, max_body=2000, max_memory=2000) as address:
        with begun_uploads(address, 1, 10**12) as (line,):
            answer = line.recv(4096)
            while more := line.recv(4096):  # the server ends the connection
                answer += more
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"Send fewer videos" in answer
        response = httpx.post(f"{address}/v1/score/echo", content=bytes(5 * MIB), headers=BINARY)
        assert response.status_code == 413
        assert scores_of(ask(address)) == [65536 + 114]


def test_a_full_server_says_come_again_and_holds_no_more_than_its_memory():
    size = len(body(side=256))
    with serving({"echo": Echo()}, max_body=size, max_memory=2 * size) as address:
        with begun_uploads(address, 2, size):
            time.sleep(0.2)
            response = ask(address, side=256)
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            with begun_uploads(address, 20, size) as others:
                for line in others:
                    assert line.recv(4096).startswith(b"HTTP/1.1 503 ")
        time.sleep(0.2)  # the two went away without a body, and their places are free
        assert scores_of(ask(address, side=256)) == [65536 + 114]


def test_no_more_requests_are_held_than_the_queue_takes(make_batch):
    with serving({"echo": Echo()}, queue_size=1) as address, ThreadPoolExecutor(1) as thread:
        slow = thread.submit(ask, address, prompts=["sleep1.5"])
        time.sleep(0.3)
        assert ask(address).status_code == 503
        batch = make_batch(torch.ones(1, 2, 3, 8, 8, dtype=torch.uint8), ["7"], fps=2.0)
        impatient = remote(address, timeout=0.5)
        with pytest.raises(UnavailableError, match=r"the server was busy for 0\.5 s"):
            impatient(batch.copy())
        assert remote(address)(batch)["score", "echo"].item() == 65536 + 114
        assert slow.result().status_code == 200


def test_a_body_that_comes_too_slowly_gives_up_its_place():
    with serving({"echo": Echo()}, queue_size=1, bounds=Bounds(body_seconds=0.2)) as address:
        with begun_uploads(address, 1, 1000) as (line,):
            assert line.recv(4096).startswith(b"HTTP/1.1 408 ")
        assert scores_of(ask(address)) == [65536 + 114]


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer Right", "right", "Bearer wröng"])
def test_a_server_with_a_token_tells_nothing_without_it(header):
    headers = {} if header is None else {"Authorization": header.encode()}
    with serving({"echo": Echo()}, token="right") as address:
        for response in (
            httpx.get(f"{address}/v1/rewards", headers=headers),
            httpx.post(f"{address}/v1/score/echo", content=body(), headers=BINARY | headers),
            httpx.post(f"{address}/v1/score/nothing", content=body(), headers=BINARY | headers),
        ):
            assert response.status_code == 401
            assert response.json() == {"error": "the token is missing or wrong."}
        assert httpx.get(f"{address}/health").json() == {"status": "ok"}


def test_the_token_comes_from_an_environment_variable(monkeypatch, make_batch):
    batch = make_batch(torch.ones(1, 2, 3, 8, 8, dtype=torch.uint8), ["7"], fps=2.0)
    with serving({"echo": Echo()}, token="größer") as address:
        with pytest.raises(ValueError, match="with the option 'token_variable'"):
            remote(address)
        with pytest.raises(ValueError, match=f"{VARIABLE!r} is not set"):
            remote(address, token_variable=VARIABLE)
        monkeypatch.setenv(VARIABLE, "wrong")
        with pytest.raises(ValueError, match="the token is missing or wrong"):
            remote(address, token_variable=VARIABLE)
        monkeypatch.setenv(VARIABLE, "größer\n")  # as a file holds it
        reward = remote(address, token_variable=VARIABLE)
        assert reward(batch)["score", "echo"].item() == 65536 + 114


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "127.0.0.1:8000"}, "url is '127.0.0.1:8000'. Give one such as"),
        ({"url": "ftp://x"}, "Give one such as"),
        ({"timeout": 0}, "timeout is 0. Give seconds"),
        ({"retries": -1}, "retries is -1"),
        ({"reward": "eco"}, "there is no reward 'eco'. Known: sharpness_vq, flow_mq"),
        ({"fingerprint": "0123"}, "not '0123': other options or weights"),
    ],
)
def test_wrong_options_of_a_remote_reward_are_refused(options, message, url):
    with pytest.raises(ValueError, match=re.escape(message)):
        RemoteReward(**{"url": url, "reward": "echo"} | options)


def test_a_server_of_another_schema_is_refused_with_both_versions(monkeypatch, url):
    monkeypatch.setattr("astrolabe_rewards.connection.SCHEMA", 7)
    with pytest.raises(ValueError, match="the server speaks schema 1 and this client 7"):
        remote(url)


def test_what_is_no_reward_server_is_refused(url):
    with pytest.raises(ValueError, match="this is no reward server"):
        remote(f"{url}/health")
    with pytest.raises(UnavailableError, match=r"no reward server answers .*RewardServer\("):
        remote("http://127.0.0.1:9")


def test_a_server_that_comes_back_is_found_again_and_one_that_does_not_fails(make_batch):
    batch = make_batch(torch.ones(2, 2, 3, 8, 8, dtype=torch.uint8), ["7", "7"], fps=2.0)
    with serving({"echo": Echo()}) as address:
        reward, patient = remote(address), remote(address, retries=8)
        assert reward(batch.copy())["score", "echo"].tolist() == [[65536 + 114]] * 2
    port = int(address.rpartition(":")[2])
    composite = CompositeReward({"echo": (reward, 1.0)}, on_error="invalid")
    assert not composite(batch.copy())["next", "valid"].any()
    with pytest.raises(UnavailableError, match="echo did not answer in 1 tries: ConnectError"):
        reward(batch.copy())
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(patient, batch.copy())
        time.sleep(0.3)
        with serving({"echo": Echo()}, port=port):
            assert waiting.result(30)["score", "echo"].tolist() == [[65536 + 114]] * 2


def test_a_server_that_answers_too_slowly_is_given_up(url, make_batch):
    pixels = torch.ones(1, 2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(UnavailableError, match="did not answer in 1 tries: ReadTimeout"):
        remote(url, timeout=0.2)(make_batch(pixels, ["sleep0.6"]))
    assert remote(url)(make_batch(pixels, ["7"], fps=2.0))["score", "echo"].item() == 65536 + 114


def test_a_reward_that_is_another_one_than_at_the_start_is_not_believed(make_batch):
    batch = make_batch(torch.ones(1, 2, 3, 48, 48, dtype=torch.uint8))
    with serving({"vq": SharpnessVQ()}) as address:
        reward = remote(address, "vq")
    with (
        serving({"vq": SharpnessVQ(top=0.5)}, port=int(address.rpartition(":")[2])),
        pytest.raises(UnavailableError, match="another reward than at the start"),
    ):
        reward(batch)


def test_what_was_asked_before_the_end_is_still_answered(monkeypatch):
    came, ended, submit = threading.Semaphore(0), threading.Event(), Batcher.submit

    class Waiting(Echo):
        def score(self, pixels, prompts, fps):
            assert ended.wait(30)
            return super().score(pixels, prompts, fps)

    def noted(batcher, request):
        future = submit(batcher, request)
        came.release()
        return future

    monkeypatch.setattr(Batcher, "submit", noted)
    with ThreadPoolExecutor(3) as threads:
        with serving({"echo": Waiting()}) as address:
            asked = [threads.submit(ask, address, prompts=["1"]) for _ in range(3)]
            assert all(came.acquire(timeout=30) for _ in asked)
            threading.Timer(0.2, ended.set).start()  # while the server is ending
        assert [scores_of(each.result()) for each in asked] == [[65536 + 18.0]] * 3


def test_a_body_is_exactly_as_long_as_announced(url):
    content = body()
    both = post({"Content-Length": len(content), "Transfer-Encoding": "chunked"})
    assert b"two lengths" in told(url, both)
    assert b" 411 " in told(url, post({"Transfer-Encoding": "chunked"}))
    exact = post({"Content-Length": len(content)})
    for more in (b"x", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\r\n" * 400):
        answer = told(url, exact + content + more)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"longer than its Content-Length" in answer
    assert scores_of(ask(url)) == [65536 + 114]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/octet-stream, text/plain"}, 415),
        ({"Content-Type": ""}, 415),
        ({"Host": "evil.example:8000"}, 400),
        ({"Host": "127.0.0.1.evil.example"}, 400),
        ({"Host": "evil@127.0.0.1"}, 400),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "http://127.0.0.1"}, 200),
        ({"Host": "[::1]:8000", "Content-Type": "Application/Octet-Stream; x=y"}, 200),
    ],
)
def test_a_page_of_another_site_cannot_have_videos_scored(headers, status, url):
    content = body()
    head = post({"Content-Length": len(content), "Connection": "close"} | headers)
    assert int(told(url, head + content).split()[1]) == status


def test_a_server_with_a_token_may_have_any_name():
    with serving({"echo": Echo()}, token="right") as address:
        headers = BINARY | {"Host": "gpu7.lan:9000", "Authorization": "Bearer right"}
        response = httpx.post(f"{address}/v1/score/echo", content=body(), headers=headers)
        assert scores_of(response) == [65536 + 114]


def test_only_this_machine_can_reach_a_server_without_a_token():
    with serving({"echo": Echo()}) as address:
        assert address.startswith("http://127.0.0.1:")
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(ValueError, match="can be reached from other machines"):
            RewardServer({"echo": Echo()}, host=host, port=0)
    with pytest.raises(ValueError, match="no name of a machine"):
        RewardServer({"echo": Echo()}, host="a" * 5000, port=0, token="t")
    with serving({"echo": Echo()}, host="localhost") as address:
        assert httpx.get(f"{address}/health").status_code == 200
    with RewardServer({"echo": Echo()}, host="0.0.0.0", port=0, token="t") as server:
        assert server.url.startswith("http://0.0.0.0:")


def test_servers_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="no rewards to serve"):
        RewardServer({}, port=0)
    with pytest.raises(ValueError, match="the token is empty"):
        RewardServer({"echo": Echo()}, port=0, token=" ")
    with RewardServer({"echo": Echo()}, port=0) as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(OSError, match="Address already in use"):
            RewardServer({"echo": Echo()}, port=port)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_body": 0}, "max_body is 0. Give a number of at least 1."),
        ({"max_body": 10, "max_memory": 9}, "max_memory is 9. Give a number of at least 10."),
        ({"queue_size": 0}, "queue_size is 0"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"max_wait": float("nan")}, "max_wait is nan"),
    ],
)
def test_limits_out_of_their_range_are_refused(limits, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Limits(**limits)


@pytest.mark.slow
def test_a_flood_of_large_bodies_takes_no_more_memory_than_is_allowed(tmp_path):
    """Forty uploads of 64 MiB at once, of which two may be held: about 2.5 GiB against 128 MiB."""
    script = tmp_path / "serve.py"
    script.write_text(
        "import time\n"
        "from astrolabe_rewards.scoring_service import MIB, Limits\n"
        "from astrolabe_rewards.server import RewardServer\n"
        "def slow(batch):\n"
        "    time.sleep(0.5)\n"
        "    return batch.set(('score', 'echo'), batch['video', 'fps'])\n"
        "limits = Limits(max_body=65 * MIB, max_memory=130 * MIB)\n"
        "server = RewardServer({'echo': slow}, port=0, limits=limits)\n"
        "print(server.url, flush=True)\n"
        "server.run()\n"
    )
    server = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    try:
        address = server.stdout.readline().strip()
        content = body(frames=21, side=1024, prompts=["1"])
        head = post({"Content-Length": len(content)})
        host, port = address.removeprefix("http://").split(":")

        def upload(_):
            with socket.create_connection((host, int(port))) as line:
                line.sendall(head + content)
                return line.recv(4096).split()[1]

        status = Path(f"/proc/{server.pid}/status")
        httpx.get(f"{address}/health")
        at_rest = int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 1024
        with ThreadPoolExecutor(40) as threads:
            answers = list(threads.map(upload, range(40)))
        peak = int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 1024
    finally:
        server.kill()
        server.communicate()
    assert set(answers) == {b"200", b"503"}
    assert answers.count(b"200") >= 2
    assert peak - at_rest < 130 + 60, (at_rest, peak)
