"""The worker's side of its process: start it, ask it, end it."""

import json
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from torch import Tensor

from astrolabe_rewards.channel import ANSWER, ERROR, HELLO, Memory, receive_reply
from astrolabe_rewards.errors import RewardError, WeightsError
from astrolabe_rewards.scorer import Description
from astrolabe_rewards.wire import SCHEMA, Answer, Request, UnavailableError, WireError

#: Errors of a scorer that come back as what they were; the nearest base class stands for others.
_KINDS: Final = {
    kind.__name__: kind
    for kind in (
        Exception,
        FileNotFoundError,
        ImportError,
        KeyError,
        ModuleNotFoundError,
        NotImplementedError,
        OSError,
        RewardError,
        RuntimeError,
        TypeError,
        UnavailableError,
        ValueError,
        WeightsError,
    )
}
_log = logging.getLogger(__name__)


class _LostError(UnavailableError):
    """The process is gone, and with it the batch; another one may do better."""


class ScoringProcess:
    """A process that holds one scorer; started when it is first needed, and again after it died.

    Any thread may use it; requests are scored one at a time.

    Args:
        command: What to run.
        setup: What the process is told first: JSON.
        what: The scorer's name in messages.
        seconds: How long it may take to start, weights included.
    """

    def __init__(
        self, command: Sequence[str], setup: Mapping[str, object], what: str, seconds: float
    ) -> None:
        self._command = list(command)
        self._setup = json.dumps(setup).encode()
        self._what, self._seconds = what, seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._known: Description | None = None
        self._closed = False
        self._turn = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Number of the process, if there is one."""
        return self._process.pid if self._process else None

    def start(self) -> Description:
        """Start the process and wait until it is ready.

        Raises:
            UnavailableError: If it died, was too slow, or ``close`` was called.
            ValueError: If it runs another schema, or its scorer is not the one of the first start.
            Exception: What the scorer's constructor raised, as near as ``_KINDS`` has it.
        """
        with self._turn:
            return self._start()

    def score(self, request: Request, seconds: float, retries: int) -> Tensor:
        """Score a request, float32 ``[n]``; the process is started again as often as is allowed.

        Raises:
            UnavailableError: If it died or was too slow ``retries + 1`` times.
            Exception: What the scorer raised, as near as ``_KINDS`` has it; never tried again.
        """
        with self._turn, Memory(request.pack()) as memory:
            for left in range(retries, -1, -1):
                try:
                    if self._process is None or self._process.poll() is not None:
                        self._start()
                    return Answer.unpack(self._ask(memory, ANSWER, seconds), len(request)).scores
                except _LostError as error:
                    if left == 0 or self._closed:
                        raise UnavailableError(
                            f"{error}, {retries - left + 1} tries in a row. Standard error has "
                            "what it said last; 'timeout' and 'retries' can be raised."
                        ) from error
                    _log.warning("%s; starting it again, %d tries left", error, left)
        raise AssertionError("the last try returns or raises")

    def close(self) -> None:
        """End the process for good; a batch it is in the middle of fails. May be called twice."""
        self._closed = True
        process = self._process
        if process is not None and process.poll() is None:
            _kill_group(process)  # whoever waits for it sees it die, and leaves
        with self._turn:
            self._end()

    def _start(self) -> Description:
        self._end()
        self._channel, theirs = socket.socketpair()
        with theirs:
            # Its prints go to standard error: standard output belongs to whoever runs us. In a
            # session of its own it does not get our Ctrl-C, and can be ended with its children.
            self._process = subprocess.Popen(
                self._command, stdin=theirs.fileno(), stdout=2, start_new_session=True
            )
        if self._closed:  # asked only now, so that no process slips past ``close``
            self._end()
            raise _LostError(f"{self._what}: the worker is closed. Make a new one.")
        with Memory([self._setup]) as setup:
            hello = json.loads(self._ask(setup, HELLO, self._seconds))
        if hello.get("schema") != SCHEMA:
            self._end()
            raise ValueError(
                f"{self._what}: the worker's process speaks schema {hello.get('schema')!r} and "
                f"this one {SCHEMA}. Install the same version of astrolabe-rewards in both."
            )
        description = Description.read(hello.get("reward"))
        self._known = self._known or description
        if description != self._known:
            self._end()
            raise ValueError(
                f"{self._what}: after a restart the scorer is another one (fingerprint "
                f"{description.fingerprint}, first {self._known.fingerprint}). Its scores would "
                "not compare: leave files of weights alone while they are in use."
            )
        return description

    def _ask(self, memory: Memory, wanted: bytes, seconds: float) -> bytearray:
        """Send memory and wait for the reply; whatever goes wrong, no stale reply is left."""
        assert self._channel is not None
        begun = time.monotonic()
        try:
            memory.send(self._channel)
            kind, payload = receive_reply(self._channel, seconds)
        except TimeoutError as error:
            self._end()
            raise _LostError(
                f"{self._what}: the worker's process gave no answer in {seconds:g} s and was ended"
            ) from error
        except (EOFError, OSError) as error:
            code = self._end()
            raise _LostError(
                f"{self._what}: the worker's process died after {time.monotonic() - begun:.1f} s "
                f"({_in_words(code)})"
            ) from error
        except BaseException:
            self._end()
            raise
        if kind == ERROR:
            raise _rebuilt(json.loads(payload))
        if kind != wanted:
            self._end()
            raise WireError(f"{self._what}: the worker's process replied {kind!r}, not {wanted!r}.")
        return payload

    def _end(self) -> int:
        """End the process if there is one, and forget it; return its exit code."""
        process, self._process = self._process, None
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if process is None:
            return 0
        try:
            return process.wait(0.2)  # one that is dying by itself gets to say of what
        except subprocess.TimeoutExpired:
            _kill_group(process)
            return process.wait()


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process and all that it has started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _in_words(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return f"killed by {signal.Signals(-code).name}"


def _rebuilt(told: Mapping[str, Any]) -> Exception:  # Any: JSON
    """The error of which the process told."""
    known = [name for name in told["kinds"] if name in _KINDS]
    message = told["message"]
    if known[0] != told["kinds"][0]:
        message = f"{told['kinds'][0]}: {message}"
    error = _KINDS[known[0]](message)
    error.add_note(f"In the worker's process:\n{told['where']}")
    return error
