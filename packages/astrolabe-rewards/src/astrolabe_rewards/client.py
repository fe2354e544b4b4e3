"""Scores from a reward server: another machine, or another process on this one."""

import logging
import math
import os
import weakref
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from astrolabe_rewards.connection import Connection
from astrolabe_rewards.reward import Reward
from astrolabe_rewards.wire import Request, UnavailableError

_log = logging.getLogger(__name__)


class RemoteReward(Reward):
    """A reward that a server scores (`server`); equal, bit for bit, to scores made here.

    Reads and writes what the served reward reads and writes. The server is asked at once what it
    serves, so that a wrong address, token, version or name is refused here.

    A batch larger than the server takes is sent in parts. A busy server is asked again until
    ``timeout``, at the pace that it asks for; a server that cannot be reached or breaks off is
    asked again ``retries`` times, after pauses of 0.5, 1, 2 … 30 seconds. Then the batch fails with
    ``UnavailableError``, which ``CompositeReward`` turns into invalid videos
    (``on_error="invalid"``) or lets through. A video that the reward cannot score is NaN, and the
    reason is logged.

    Args:
        url: Of the server, such as ``"http://127.0.0.1:8000"``.
        reward: Its name there.
        name: Second element of the key that is written; None takes the reward's own.
        token_variable: Name of the environment variable that holds the token; empty sends none.
        timeout: Seconds that the answer to one part may take.
        retries: How often a part is sent again after a failure.
        fingerprint: Refuse a reward with another one; empty takes any. In either case it must not
            change while this object lives.

    Raises:
        ModuleNotFoundError: If httpx is not installed.
        UnavailableError: If no server answers.
        ValueError: If an option is wrong, or the server refuses the token, speaks another schema,
            or has no such reward.
    """

    name: ClassVar[str] = "remote"
    measures: ClassVar[str] = "what a reward on a server measures"
    unit: ClassVar[str] = "that of the served reward"
    licence: ClassVar[str] = "that of the served reward"
    weights_from: ClassVar[str] = "on the server"
    memory: ClassVar[str] = "none here"
    needs_text: ClassVar[bool] = True
    may_fail: ClassVar[bool] = True

    def __init__(
        self,
        *,
        url: str,
        reward: str,
        name: str | None = None,
        token_variable: str = "",
        timeout: float = 600.0,
        retries: int = 5,
        fingerprint: str = "",
    ) -> None:
        if not (math.isfinite(timeout) and timeout > 0):
            raise ValueError(f"timeout is {timeout!r}. Give seconds above 0, such as 600.")
        if retries < 0:
            raise ValueError(f"retries is {retries!r}. Give a whole number of at least 0.")
        connection = Connection(url, _token(token_variable), timeout=timeout, retries=retries)
        try:
            described, self._max_body = connection.offer(reward)
            if fingerprint not in ("", described.fingerprint):
                raise ValueError(
                    f"{connection.url}: {reward!r} has the fingerprint {described.fingerprint!r}, "
                    f"not {fingerprint!r}: other options or weights. Serve the one that is "
                    "wanted, or leave the option 'fingerprint' out."
                )
        except BaseException:
            connection.close()
            raise
        # What the class says of served rewards in general, this object knows of its own.
        self.__dict__.update(
            name=name or described.name,
            unit=described.unit,
            needs_text=described.needs_text,
            deterministic=described.deterministic,
        )
        super().__init__()
        self._reward, self._connection, self._described = reward, connection, described
        weakref.finalize(self, connection.close)

    def score(self, pixels: Tensor, prompts: list[str] | None, fps: Tensor) -> Tensor:
        """Have the server score, float32 ``[N]``; see ``Reward.score``."""
        request = Request(pixels.cpu(), prompts or [""] * len(pixels), fps.cpu())
        return torch.cat([self._part(part) for part in self._parts(request)])

    def fingerprint(self) -> str:
        """Return that of the served reward."""
        return self._described.fingerprint

    def _parts(self, request: Request) -> Iterator[Request]:
        """Parts of a request that the server takes."""
        video = request.pixels[0].numel()
        header = request.pack()[0].nbytes  # of the whole: that of a part is no larger
        size = (self._max_body - header) // (video + 4)
        if size < 1:
            raise ValueError(
                f"{self._connection.url}: a video of {video / 2**20:.1f} MiB is more than the "
                f"server takes, {self._max_body / 2**20:.1f} MiB. Serve with a larger "
                "Limits.max_body, or score smaller videos."
            )
        for begin in range(0, len(request), size):
            yield request[begin : begin + size]

    def _part(self, request: Request) -> Tensor:
        """Scores of one part."""
        url = self._connection.url
        answer = self._connection.ask(self._reward, request)
        if answer.fingerprint != self.fingerprint():
            raise UnavailableError(
                f"{url}: {self._reward} is another reward than at the start (fingerprint "
                f"{answer.fingerprint!r}, then {self.fingerprint()!r}). Its scores would not "
                "compare: serve the first again."
            )
        for index, reason in enumerate(answer.errors):
            if reason is not None:
                _log.warning("%s: %s, video %d: %s", url, self._reward, index, reason)
        return answer.scores


def _token(variable: str) -> str:
    """The token in an environment variable."""
    token = os.environ.get(variable, "").strip() if variable else ""
    if variable and not token:
        raise ValueError(
            f"the environment variable {variable!r} is not set. Put the reward server's token into "
            "it, or leave the option 'token_variable' out for a server without one."
        )
    return token
