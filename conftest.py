"""What all tests and examples share."""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

# Tests run in as many processes as there are cores; more threads would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")  # torchrl tells of each storage it makes


class _Refusing(BaseHTTPRequestHandler):
    """Answers as the Hugging Face hub does to somebody who may not read a repository."""

    answers = (  # part of the path, status, error code, message
        ("gated", 403, "GatedRepo", "Access to it is restricted."),
        ("private", 401, "RepoNotFound", "Invalid username or password."),
        ("forbidden", 403, "", "this token cannot read it"),
        ("", 500, "", "the disk of the hub is full"),
    )

    def do_GET(self):
        _, status, code, message = next(one for one in self.answers if one[0] in self.path)
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def refusing_hub(monkeypatch, tmp_path):
    """The address of a hub that gives nothing and says why."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield address
    server.shutdown()
    server.server_close()
