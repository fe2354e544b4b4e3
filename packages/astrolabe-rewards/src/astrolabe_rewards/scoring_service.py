"""What the reward server does with a request: who may ask, how much is held, what is answered."""

import asyncio
import hmac
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from astrolabe_rewards.batching import Batcher
from astrolabe_rewards.scorer import Scorer, load
from astrolabe_rewards.web import EXCESS, LAST
from astrolabe_rewards.wire import SCHEMA, Request, WireError

if TYPE_CHECKING:
    from starlette.exceptions import HTTPException
    from starlette.requests import Request as HttpRequest
    from starlette.responses import Response

MIB: Final = 2**20
#: Of the body of a request and its answer.
CONTENT_TYPE: Final = "application/octet-stream"
#: The connection stays: what still comes is thrown away, and the client gets to read the answer.
LATER: Final = {"Retry-After": "1"}


@dataclass(frozen=True)
class Limits:
    """What a server takes on.

    Attributes:
        max_body: Largest body of a request, bytes.
        max_memory: Most bytes of all bodies that are held, at least ``max_body``. Joining copies
            them once more.
        queue_size: Most requests that are held; others are told to come again.
        max_batch: Join requests whose videos have one shape up to this many videos; 1 joins none.
        max_wait: Seconds to wait for requests to join.

    Raises:
        ValueError: If one is out of its range.
    """

    max_body: int = 512 * MIB
    max_memory: int = 2048 * MIB
    queue_size: int = 64
    max_batch: int = 1
    max_wait: float = 0.01

    def __post_init__(self) -> None:
        least = {"max_body": 1, "max_memory": self.max_body, "queue_size": 1, "max_batch": 1}
        for name, bound in (least | {"max_wait": 0}).items():
            value = getattr(self, name)
            if not value >= bound:
                raise ValueError(f"{name} is {value!r}. Give a number of at least {bound}.")


class Admission:
    """How many requests, and bytes of them, are held at once: this bounds the memory.

    Args:
        requests: Most requests.
        size: Most bytes of their bodies.
    """

    def __init__(self, requests: int, size: int) -> None:
        self._requests, self._size = requests, size

    @contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Hold a request within the block, from before its body is read.

        Raises:
            BlockingIOError: If there is no place now.
        """
        if not self._requests or size > self._size:
            raise BlockingIOError("no place for another request now. Ask again.")
        self._requests, self._size = self._requests - 1, self._size - size
        try:
            yield
        finally:
            self._requests, self._size = self._requests + 1, self._size + size


class ScoringService:
    """The rewards, each with its thread, and its answers to HTTP requests.

    Args:
        rewards: Name to reward, or to a callable that writes ``("score", name)``. Their weights are
            read here.
        token: What requests must bring; None asks for nothing.
        limits: What it takes on.
        body_seconds: In which a body must have come; a slow sender would otherwise hold its place
            for ever.

    Raises:
        ValueError: If there are no rewards, or the token is empty.
    """

    def __init__(
        self,
        rewards: Mapping[str, Scorer],
        *,
        token: str | None,
        limits: Limits,
        body_seconds: float,
    ) -> None:
        if not rewards:
            raise ValueError("there are no rewards to serve. Give at least one.")
        if token is not None and not token.strip():
            raise ValueError("the token is empty. Give some letters, or None to ask for none.")
        self._token, self._max_body = token, limits.max_body
        self._body_seconds = body_seconds
        self._admission = Admission(limits.queue_size, limits.max_memory)
        for scorer in rewards.values():
            load(scorer)
        self._batchers = {
            name: Batcher(scorer, name, max_batch=limits.max_batch, max_wait=limits.max_wait)
            for name, scorer in rewards.items()
        }

    async def health(self, _: "HttpRequest") -> "Response":
        """Say that the server is there."""
        return as_json({"status": "ok"})

    async def rewards(self, http: "HttpRequest") -> "Response":
        """Say what is served."""
        self._authorise(http)
        served = {name: asdict(each.description) for name, each in self._batchers.items()}
        return as_json({"schema": SCHEMA, "max_body": self._max_body, "rewards": served})

    async def score(self, http: "HttpRequest") -> "Response":
        """Answer a request of `wire`."""
        from starlette.responses import Response

        self._authorise(http)
        batcher = self._batchers.get(http.path_params["name"])
        if batcher is None:
            known = ", ".join(self._batchers)
            raise refusal(404, f"no reward {http.path_params['name']!r} here. Known: {known}.")
        size = self._length(http)
        try:
            with self._admission.held(size):
                request = Request.unpack(await self._body(http, size))
                answer = await asyncio.wrap_future(batcher.submit(request))
                _refuse_excess(http)
                return Response(answer.pack(), media_type=CONTENT_TYPE)
        except BlockingIOError as error:
            raise refusal(503, str(error), LATER) from error
        except WireError as error:
            raise refusal(400, str(error)) from error

    async def close(self) -> None:
        """End all threads; what has not begun to be scored is refused."""
        for batcher in self._batchers.values():
            await asyncio.to_thread(batcher.close)

    def _authorise(self, http: "HttpRequest") -> None:
        if self._token is None:
            return
        given = http.headers.get("authorization", "").encode("latin-1")  # the very bytes
        if not hmac.compare_digest(given, f"Bearer {self._token}".encode()):
            raise refusal(401, "the token is missing or wrong.", LAST)

    def _length(self, http: "HttpRequest") -> int:
        """The length of the body, before any of it is read."""
        text = http.headers.get("content-length", "")
        if not (text.isascii() and text.isdigit()):
            raise refusal(411, "the body has no length. Send Content-Length.", LAST)
        if int(text) > self._max_body:
            raise refusal(
                413,
                f"the body has {int(text) / MIB:.1f} MiB, more than {self._max_body / MIB:.1f}. "
                "Send fewer videos at once.",
                LAST,
            )
        return int(text)

    async def _body(self, http: "HttpRequest", size: int) -> bytearray:
        """The body, read straight into memory of its size."""
        from starlette.requests import ClientDisconnect

        body, filled = bytearray(size), 0
        try:
            async with asyncio.timeout(self._body_seconds):
                async for chunk in http.stream():
                    if filled + len(chunk) > size:  # under a server that does not count
                        raise _too_long()
                    body[filled : filled + len(chunk)] = chunk
                    filled += len(chunk)
        except TimeoutError as error:
            reason = f"the body did not come in {self._body_seconds:g} s."
            raise refusal(408, reason, LAST) from error
        except ClientDisconnect as error:
            raise refusal(400, "the body is cut short.", LAST) from error
        if filled < size:
            raise refusal(400, "the body is cut short.", LAST)
        _refuse_excess(http)
        return body


def _refuse_excess(http: "HttpRequest") -> None:
    if http.scope.get(EXCESS):
        raise _too_long()


def _too_long() -> "HTTPException":
    return refusal(
        400, "the body is longer than its Content-Length. Send as much as it says.", LAST
    )


def as_json(
    content: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> "Response":
    """Return a response in JSON."""
    from starlette.responses import JSONResponse

    return JSONResponse(content, status, headers)


def refusal(status: int, reason: str, headers: dict[str, str] | None = None) -> "HTTPException":
    """Return what to raise to refuse a request."""
    from starlette.exceptions import HTTPException

    return HTTPException(status, reason, headers)
