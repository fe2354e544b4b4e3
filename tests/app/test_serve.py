import os
import re
import signal
import subprocess
import sys
import textwrap

import httpx
import pytest
import torch
from tensordict import TensorDict

from astrolabe.compose_rewards import build_term
from astrolabe.config import RewardTerm
from astrolabe.errors import ConfigError
from astrolabe.serve import serve_rewards
from astrolabe_rewards import SharpnessVQ

VARIABLE = "ASTROLABE_TEST_TOKEN"
DEFAULTS = {
    "host": "127.0.0.1",
    "port": 0,
    "token_variable": "",
    "max_mib": 8,
    "max_memory_mib": 16,
    "queue_size": 4,
    "max_batch": 1,
    "max_wait": 0.0,
    "say": print,
}
TERMS = {"vq": RewardTerm(name="sharpness_vq", options={"top": 0.5})}


@pytest.fixture(scope="module")
def served():
    """A server in a process of its own that serves sharpness to those who know the token."""
    code = f"""
        from astrolabe.config import RewardTerm
        from astrolabe.serve import serve_rewards
        defaults = {DEFAULTS | {"say": None, "token_variable": VARIABLE}!r}
        say = lambda line: print(line, flush=True)
        serve_rewards({TERMS!r}, **(defaults | dict(say=say)))
    """
    server = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | {VARIABLE: "secret"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield server, server.stdout.readline()
    finally:
        server.kill()
        server.communicate()


@pytest.mark.slow
def test_a_run_takes_a_served_reward_by_name_and_gets_its_scores(served, monkeypatch):
    server, line = served
    found = re.fullmatch(r"serving vq on (http://127\.0\.0\.1:\d+)\n", line)
    assert found, line
    monkeypatch.setenv(VARIABLE, "secret")
    options = {"url": found[1], "reward": "vq", "token_variable": VARIABLE}
    name = "astrolabe_rewards.client:RemoteReward"
    remote = build_term("vq", RewardTerm(name=name, options=options))
    pixels = torch.randint(0, 256, (2, 5, 3, 48, 48), dtype=torch.uint8)
    batch = TensorDict({"video": {"pixels": pixels, "fps": torch.ones(2)}}, batch_size=[2])
    here = SharpnessVQ(top=0.5)(batch.copy())["score", "sharpness_vq"]
    assert torch.equal(remote(batch)["score", "sharpness_vq"], here)

    monkeypatch.setenv(VARIABLE, "wrong")
    with pytest.raises(
        ConfigError, match=r"rewards\.vq\.options: .* the token is missing or wrong"
    ):
        build_term("vq", RewardTerm(name=name, options=options))
    assert httpx.get(f"{found[1]}/v1/rewards").status_code == 401

    server.send_signal(signal.SIGINT)
    _, errors = server.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors  # the command line turns it into exit code 130
    assert "Exception in ASGI" not in errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_variable": VARIABLE}, f"environment variable '{VARIABLE}' is not set"),
        ({"host": "0.0.0.0"}, "can be reached from other machines"),
        ({"max_mib": 32}, "max_memory is 16777216. Give a number of at least 33554432"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"host": "192.0.2.1", "token_variable": "PATH"}, "cannot listen on 192.0.2.1:0: Cannot"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(options, message, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=re.escape(message)):
        serve_rewards(TERMS, **(DEFAULTS | options))


def test_a_reward_that_is_not_installed_is_refused_before_anything_is_served():
    with pytest.raises(LookupError, match=r"no .sharpnes_vq. among the astrolabe\.rewards"):
        serve_rewards({"sharpnes_vq": RewardTerm()}, **DEFAULTS)


def test_a_dead_server_is_one_line_before_a_run_begins():
    part = "astrolabe_rewards.client:RemoteReward"
    options = {"url": "http://127.0.0.1:9", "reward": "vq"}
    with pytest.raises(OSError, match="no reward server answers") as caught:
        build_term("vq", RewardTerm(name=part, options=options))
    from astrolabe.cli import explain

    assert "RewardServer({name: reward}).run()" in explain(caught.value)
