"""Scores in another process: on another device, or with libraries that this process must not have.

A worker is a reward like any other. Its process is started by ``python -m
astrolabe_rewards.worker_process``, is told an importable name and options, and gets videos through
shared memory. A crash or a hang of the scorer costs a restart, not the run.
"""

import json
import shutil
import socket
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import Distribution, distribution
from typing import Any, ClassVar, Final, Self

from tensordict import TensorDictBase
from torch import Tensor

from astrolabe_rewards.reward import Reward
from astrolabe_rewards.scoring_process import ScoringProcess
from astrolabe_rewards.wire import Request

_MODULE: Final = "astrolabe_rewards.worker_process"
_SELF: Final = "astrolabe-rewards"


class ScoringWorker(Reward):
    """A reward whose scores are made in another process; equal, bit for bit, to scores made here.

    Reads and writes what the scorer reads and writes. Calls and submitted batches are scored one
    after the other, in their order. The process is started at once and its weights are read, so
    that what cannot work is refused here. It ends with ``close``, with the ``with`` block, when
    the worker is garbage, and when this process ends, in whatever way.

    A batch during which the process dies or runs out of time is scored again, ``retries`` times, by
    a new process; then it fails with ``UnavailableError``, which ``CompositeReward`` turns into
    invalid videos (``on_error="invalid"``) or lets through. Errors that the scorer raises come back
    as they are and are not tried again. A scorer that hangs inside a library which holds Python's
    lock ends when it is killed, as it is here; if this whole process is killed meanwhile, only when
    it lets go of that lock.

    Needs Linux or macOS. Videos are copied once into memory that both processes share.

    Args:
        target: ``"module:Class"``, importable in the process: a ``Reward``, or anything that makes
            a callable which writes ``("score", name)``, such as a function that returns one.
        options: Keyword arguments of the target; JSON.
        name: Second element of the key that is written; None takes the reward's own. A target that
            makes a plain callable needs it.
        device: Where the scorer is moved; None leaves it. Large rewards have such an option
            themselves and want it among ``options``.
        python: Path of another environment's interpreter, in which astrolabe-rewards is installed;
            None takes this one.
        requirements: Packages of an environment of its own, as ``uv`` reads them, such as
            ``"transformers==4.45.2"``. It is made by ``uv run --isolated`` and holds them and this
            version of astrolabe-rewards. ``python`` may then be a version.
        timeout: Seconds that one batch may take.
        start_timeout: Seconds that the start may take: imports, weights, downloads of ``uv``.
        retries: How often a batch is scored again after a crash or time-out.
        queue_size: Batches that are submitted and not yet scored; ``submit`` waits for a place.

    Raises:
        UnavailableError: If the process died or was too slow while it started.
        TypeError: If ``target`` is no text, or makes no scorer.
        ValueError: If an option is out of its range, ``target`` cannot be imported there, or the
            process runs another schema.
        Exception: What the target's constructor raises.

    Example:
        ``ScoringWorker(target="astrolabe_rewards.quality:SharpnessVQ")``
    """

    name: ClassVar[str] = "worker"
    measures: ClassVar[str] = "what its target measures, in another process"
    unit: ClassVar[str] = "that of its target"
    licence: ClassVar[str] = "that of its target"
    weights_from: ClassVar[str] = "those of its target"
    memory: ClassVar[str] = "that of its target"
    needs_text: ClassVar[bool] = True

    def __init__(
        self,
        *,
        target: str,
        options: Mapping[str, Any] | None = None,  # Any: the target says what it takes
        name: str | None = None,
        device: str | None = None,
        python: str | None = None,
        requirements: Sequence[str] = (),
        timeout: float = 600.0,
        start_timeout: float = 600.0,
        retries: int = 1,
        queue_size: int = 2,
    ) -> None:
        _check(target, timeout, start_timeout, retries, queue_size)
        setup = {
            "target": target,
            "options": dict(options or {}),
            "name": name or "",
            "device": device,
            # What can be imported here can be imported there, if it is the same environment.
            "path": [] if python or requirements else sys.path,
        }
        process = ScoringProcess(_command(python, requirements), setup, target, start_timeout)
        try:
            self._described = process.start()
        except BaseException:
            process.close()
            raise
        # What the class says of workers in general, a worker knows of its own reward.
        self.__dict__.update(
            name=name or self._described.name,
            unit=self._described.unit,
            needs_text=self._described.needs_text,
            deterministic=self._described.deterministic,
            may_fail=self._described.may_fail,
        )
        super().__init__()
        self._process = process
        self._timeout, self._retries = timeout, retries
        self._places = threading.Semaphore(queue_size)
        self._executor = ThreadPoolExecutor(1, f"scoring {self.name}")
        self._finalizer = weakref.finalize(self, process.close)

    @property
    def pid(self) -> int | None:
        """Number of the process at present; None between its death and its next start."""
        return self._process.pid

    def score(self, pixels: Tensor, prompts: list[str] | None, fps: Tensor) -> Tensor:
        """Score in the process, float32 ``[N]``; see ``Reward.score``."""
        request = Request(pixels, prompts or [""] * len(pixels), fps)
        return self._process.score(request, self._timeout, self._retries)

    def submit(self, batch: TensorDictBase) -> "Future[TensorDictBase]":
        """Score a batch in the background, after those submitted before.

        Waits while ``queue_size`` batches are not yet scored.

        Args:
            batch: As for a call; its tensors must stay as they are until the future is done.

        Returns:
            The future of a shallow copy of the batch with its score; it raises what a call would.

        Raises:
            RuntimeError: If the worker is closed.
        """
        places = self._places
        places.acquire()
        try:
            future = self._executor.submit(self, batch.copy())
        except BaseException:
            places.release()
            raise
        future.add_done_callback(lambda _: places.release())
        return future

    def fingerprint(self) -> str:
        """Return that of the reward in the process."""
        return self._described.fingerprint

    def close(self, *, wait: bool = True) -> None:
        """End the process; calling it twice is no error.

        Args:
            wait: First score what was submitted. Otherwise what has not begun is cancelled, and
                what has begun fails with ``UnavailableError``.
        """
        if not wait:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._finalizer()  # which ends what has begun
        self._executor.shutdown()
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(wait=kind is None)


def _check(
    target: str, timeout: float, start_timeout: float, retries: int, queue_size: int
) -> None:
    """Refuse options out of their range, and systems that cannot hand over open files."""
    if not hasattr(socket, "send_fds"):
        raise ValueError(
            f"a worker needs Linux or macOS, not {sys.platform}. Serve the reward over HTTP."
        )
    if not isinstance(target, str):
        known = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
        example = "{}:{}".format(*known) if all(known) else "my_rewards:Quality"
        raise TypeError(
            f"target is {target!r}, and another process cannot be given it. Give where it is, "
            f"'module:Class': {example!r}."
        )
    if not all(target.partition(":")):
        raise ValueError(f"target is {target!r}. Write module:Class, such as 'my_rewards:Quality'.")
    for option, seconds in (("timeout", timeout), ("start_timeout", start_timeout)):
        if not 0 < seconds <= 1e9:  # beyond, a socket takes no time limit
            raise ValueError(f"{option} is {seconds!r}. Give seconds above 0, such as 600.")
    for name, value, least in (("retries", retries, 0), ("queue_size", queue_size, 1)):
        if type(value) is not int or not least <= value <= 10**6:
            raise ValueError(f"{name} is {value!r}. Give a whole number from {least} to a million.")


def _command(python: str | None, requirements: Sequence[str]) -> list[str]:
    """What starts the process."""
    if not requirements:
        interpreter = shutil.which(python or sys.executable)
        if interpreter is None:
            raise ValueError(f"python is {python!r}, and there is no such program. Give its path.")
        return [interpreter, "-m", _MODULE]
    uv = shutil.which("uv")
    if uv is None:
        raise ValueError(
            "requirements want an environment of their own, which uv makes, and there is no uv. "
            "Install it (pip install uv), or give the python of an environment that you made."
        )
    wanted = [part for each in (_own(distribution(_SELF)), *requirements) for part in ("-w", each)]
    version = ["--python", python] if python else []
    return [uv, "run", "--isolated", "--no-project", *version, *wanted, "python", "-m", _MODULE]


def _own(package: Distribution) -> str:
    """This package as a requirement: where it was installed from, else its version."""
    origin = json.loads(package.read_text("direct_url.json") or "{}")
    if "dir_info" in origin or "archive_info" in origin:
        return f"{_SELF} @ {origin['url']}"
    return f"{_SELF}=={package.version}"
