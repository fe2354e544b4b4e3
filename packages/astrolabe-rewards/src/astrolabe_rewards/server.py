"""Rewards over HTTP: one process that holds the models, any number that train or evaluate.

    GET  /health           200, to anybody
    GET  /v1/rewards       what is served, and the limits
    POST /v1/score/NAME    a request of `wire` to its answer

Errors are JSON, ``{"error": "one line"}``. 400: malformed, longer than announced, another schema;
without a token also a ``Host`` that is not this machine. 401: no or the wrong token. 403: a page of
another site asks. 404: no such reward. 408: the body came too slowly. 411, 413: a body without a
length, or too large; it is not read. 415: its type is not ``application/octet-stream``. 503 with
``Retry-After``: as many requests are held as may be.

Connections have no body where they are refused for themselves: 408 if no request comes in time, 503
if there are too many; see `web`.
"""

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, Self

from astrolabe_rewards.needs import installs
from astrolabe_rewards.scorer import Scorer
from astrolabe_rewards.scoring_service import CONTENT_TYPE, Limits, ScoringService, as_json
from astrolabe_rewards.web.bounds import Bounds, is_loopback

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

#: Seconds an idle connection stays open; longer than clients keep theirs, or they meet it closing.
KEEP_ALIVE: Final = 60
_DEFAULTS: Final = Limits()
_BOUNDS: Final = Bounds()


def make_app(
    rewards: Mapping[str, Scorer],
    *,
    token: str | None = None,
    limits: Limits = _DEFAULTS,
    bounds: Bounds = _BOUNDS,
) -> "Starlette":
    """Make the ASGI application that serves rewards; their weights are read here.

    Every reward has one thread, and its module never runs twice at a time. With ``max_batch=1``
    each request is scored as it came, so that scores are those of the same call in one process, bit
    for bit. Joining requests can change the last bit of a float32 score where a kernel depends on
    the size of its batch (of the built-in rewards: ``tiny_ta``, by 1.5e-8).

    Args:
        rewards: Name to reward, or to a callable that writes ``("score", name)``.
        token: What requests must bring as ``Authorization: Bearer TOKEN``; None asks for nothing,
            and answers only requests to ``localhost`` or a loopback address.
        limits: What it takes on.
        bounds: Of these, the seconds for a body; the others are for who holds the sockets.

    Returns:
        The application. When it is shut down its threads end; the rewards are left as they are.

    Raises:
        ModuleNotFoundError: If starlette is not installed.
        ValueError: If there are no rewards, or the token is empty.
    """
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise ModuleNotFoundError(f"serving needs starlette and uvicorn: {installs('serve')}")
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.routing import Route

    from astrolabe_rewards.web.door import Door

    service = ScoringService(rewards, token=token, limits=limits, body_seconds=bounds.body_seconds)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await service.close()

    def refused(_: "Request", error: Exception) -> "Response":
        assert isinstance(error, HTTPException)
        return as_json({"error": error.detail}, error.status_code, error.headers)

    return Starlette(
        routes=[
            Route("/health", service.health),
            Route("/v1/rewards", service.rewards),
            Route("/v1/score/{name}", service.score, methods=["POST"]),
        ],
        middleware=[Middleware(Door, accepts=CONTENT_TYPE, local=token is None)],
        exception_handlers={HTTPException: refused},
        lifespan=lifespan,
    )


class RewardServer:
    """Rewards on a socket of their own; `run` serves until `stop` or Ctrl-C.

    There is no TLS here: token and videos travel in clear. Outside of a trusted network put a proxy
    with TLS before it, or reach it through an SSH tunnel.

    Args:
        rewards: As for `make_app`, and so are ``token`` and ``limits``.
        host: Address to listen on; anything but a loopback address needs a token.
        port: Port to listen on; 0 takes a free one.
        token: What requests must bring.
        limits: What it takes on.
        bounds: How many connections it takes, and how long each may take to ask.

    Attributes:
        url: Where it listens, from now on; requests wait until `run`.

    Raises:
        ModuleNotFoundError: If starlette or uvicorn is not installed.
        OSError: If the address is not to be had.
        ValueError: If a host other than loopback comes without a token, or `make_app` refuses.
    """

    def __init__(
        self,
        rewards: Mapping[str, Scorer],
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        token: str | None = None,
        limits: Limits = _DEFAULTS,
        bounds: Bounds = _BOUNDS,
    ) -> None:
        if token is None and not is_loopback(host):
            raise ValueError(
                f"host {host!r} can be reached from other machines, and there is no token. "
                "Give one, RewardServer(..., token=...), or listen on 127.0.0.1."
            )
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            host.encode("idna")
        except UnicodeError as error:
            raise ValueError(f"host is {host!r:.80}, which is no name of a machine.") from error
        self._socket = socket.create_server((host, port), family=family)
        # Connections inherit it. asyncio sets it only on sockets that name their protocol, and
        # without it the short answer waits 40 ms for its header to be acknowledged.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            app = make_app(rewards, token=token, limits=limits, bounds=bounds)
        except BaseException:
            self._socket.close()
            raise
        from astrolabe_rewards.web.connections import BoundedServer

        self._server = BoundedServer(app, bounds, timeout_keep_alive=KEEP_ALIVE, lifespan="on")
        name = f"[{host}]" if ":" in host else host
        self.url = f"http://{name}:{self._socket.getsockname()[1]}"

    def run(self) -> None:
        """Serve; returns after `stop`, when what had come is answered."""
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Let `run` end; from any thread."""
        self._server.should_exit = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
