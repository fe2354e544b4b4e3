"""A server whose connections are bounded in number and in time, and whose log is.

uvicorn's own limit answers 503 only once a request has come, and waits without end for what a
client does not send or read. Its protocol and h11, which it requires itself, do the rest.
"""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from socket import socket
from typing import Any, ClassVar, Final

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from astrolabe_rewards.web import EXCESS
from astrolabe_rewards.web.bounds import Bounds

_NONE_LEFT: Final = "503 Service Unavailable\r\nRetry-After: 1"
#: Connections that the system holds until they are accepted.
_QUEUE: Final = 128
_TOO_SLOW: Final = "408 Request Timeout"


class BoundedServer(uvicorn.Server):
    """uvicorn with `Bounds`; HTTP/1.1 alone.

    Args:
        app: ASGI application.
        bounds: What connections may take.
        **settings: Of ``uvicorn.Config``.
    """

    def __init__(self, app: Any, bounds: Bounds, **settings: Any) -> None:  # Any: uvicorn's
        places, backlog = bounds.places()

        class Protocol(_BoundedProtocol):
            """The protocol with the bounds of this server."""

        Protocol.bounds, Protocol.places = bounds, places
        config = uvicorn.Config(
            app,
            http=Protocol,
            ws="none",
            loop="asyncio",
            proxy_headers=False,
            log_config=None,
            access_log=False,
            backlog=backlog,
            **settings,
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Begin to serve."""
        await super().startup(sockets)
        for each in sockets or ():  # asyncio has one number for both, and clients may well queue
            each.listen(_QUEUE)

    def run(self, sockets: list[socket] | None = None) -> None:
        """Serve until it is told to end."""
        with _sparing_log():
            super().run(sockets=sockets)


class _BoundedProtocol(H11Protocol):
    """One connection."""

    bounds: ClassVar[Bounds]
    places: ClassVar[int]
    _deadline: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _awaited: object = None
    _since: float = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = self.loop.time()
        self._await_more()
        others = [
            each
            for each in self.connections
            if isinstance(each, _BoundedProtocol)
            and each is not self
            and not each.transport.is_closing()
        ]
        if len(others) < self.places:
            return
        idle = [each for each in others if each.can_go()]
        if idle:
            min(idle, key=_BoundedProtocol.worth).transport.abort()
        else:
            self._end(_NONE_LEFT)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._deadline, self._stalled):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._is_busy() and not self.cycle.more_body and self.conn.trailing_data[0]:
            self.scope[EXCESS] = True  # type: ignore[typeddict-unknown-key]
        self._await_more()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._since = self.loop.time()
        self._await_more()
        self._await_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def can_go(self) -> bool:
        """Tell if nothing is lost but time when the connection is closed now."""
        return not self._is_busy() or self.flow.write_paused

    def worth(self) -> tuple[bool, float]:
        """Order connections that can go; first those that never asked, the oldest before."""
        return self.cycle is not None, self._since

    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_more(self) -> None:
        """Set the deadline of what must come; a body that is wanted has one where it is read."""
        state = self.conn.their_state
        awaited: object = None
        if state is h11.IDLE and (self.cycle is None or self.conn.trailing_data[0]):
            awaited, seconds = h11.IDLE, self.bounds.head_seconds
        elif state is h11.SEND_BODY and not self._is_busy():
            awaited, seconds = self.cycle, self.bounds.body_seconds
        if awaited is self._awaited:
            return
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._awaited = awaited
        if awaited is not None:
            self._deadline = self.loop.call_later(seconds, self._end, _TOO_SLOW)

    def _await_reader(self) -> None:
        if self._stalled is None and self.transport.get_write_buffer_size():
            self._stalled = self.loop.call_later(self.bounds.stall_seconds, self._give_up)

    def _give_up(self) -> None:
        self._stalled = None
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def _end(self, status: str) -> None:
        """Close the connection, with a word to who has not had one."""
        if not self._awaited_body():
            head = f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            self.transport.write(head.encode())
        self.transport.close()
        self.loop.call_later(1, self.transport.abort)

    def _awaited_body(self) -> bool:
        return self._awaited is not None and self._awaited is not h11.IDLE


class _Sparing(logging.Filter):
    """Lets one line of a kind through in some seconds, and says how many it kept back."""

    def __init__(self, seconds: float = 10.0) -> None:
        super().__init__()
        self._seconds, self._seen = seconds, dict[str, tuple[float, int]]()

    def filter(self, record: logging.LogRecord) -> bool:
        kind, now = str(record.msg).partition("\n")[0], time.monotonic()
        last, held = self._seen.get(kind, (-self._seconds, 0))
        if now - last < self._seconds:
            self._seen[kind] = last, held + 1
            return False
        self._seen[kind] = now, 0
        if held:
            record.msg = f"{record.msg} (and {held} more before, not logged)"
        return True


@contextmanager
def _sparing_log() -> Iterator[None]:
    """Bound what clients can have written to the log within the block."""
    spare = _Sparing()
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "asyncio")]
    for each in loggers:
        each.addFilter(spare)
    try:
        yield
    finally:
        for each in loggers:
            each.removeFilter(spare)
