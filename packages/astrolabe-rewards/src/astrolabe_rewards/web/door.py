"""Which requests are let in: plainly framed, of the right type, and from where they may come."""

import re
from http import HTTPMethod
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from astrolabe_rewards.web import LAST
from astrolabe_rewards.web.bounds import is_loopback

_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:@/?#\\\[\]\s]+)(:[0-9]{1,5})?")


class Door:
    """ASGI: refuses, before anything of a body is read, what no honest client sends.

    - ``Transfer-Encoding``: the size of the body would not be known before it is read. Beside
      ``Content-Length`` it also makes proxies and servers see different requests.
    - A body of another type than is taken. A page of another site can send text, forms and what has
      no type without asking; for all other types a browser asks first, and is refused.
    - An ``Origin``, which browsers add, other than this server.
    - With ``local``, a ``Host`` that is not this machine: another site whose name points here.

    Args:
        app: What is behind.
        accepts: Content type of bodies; empty if there are none.
        local: Answer only requests that name this machine itself.
    """

    def __init__(self, app: ASGIApp, *, accepts: str, local: bool) -> None:
        self._app, self._accepts, self._local = app, accepts, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and (
            fault := self._fault(scope["method"], Headers(scope=scope))
        ):
            status, reason = fault
            await JSONResponse({"error": reason}, status, LAST)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _fault(self, method: str, headers: Headers) -> tuple[int, str] | None:
        hosts = headers.getlist("host")
        if self._local and (len(hosts) != 1 or not _names_this_machine(hosts[0])):
            return 400, (
                f"the host {', '.join(hosts)!r} is not this machine. Ask as localhost or 127.0.0.1."
            )
        here = hosts[0].lower() if hosts else ""
        for origin in headers.getlist("origin"):
            if origin.lower() not in (f"http://{here}", f"https://{here}"):
                return 403, f"a page of {origin!r} asks. Ask from a program, or a page from here."
        lengths = headers.getlist("content-length")
        if "transfer-encoding" in headers:
            if lengths:
                return 400, (
                    "the body has two lengths, Content-Length and Transfer-Encoding. Send only "
                    "Content-Length."
                )
            return 411, "the body has no length. Send Content-Length."
        with_body = any(length.strip("0") for length in lengths)
        if with_body and not self._accepts:
            return 400, "there is a body, and none is read here. Send none."
        if self._accepts and (with_body or method == HTTPMethod.POST):
            types = headers.getlist("content-type")
            if [each.partition(";")[0].strip().lower() for each in types] != [self._accepts]:
                return 415, (
                    f"the body is of the type {', '.join(types)!r}. Send 'Content-Type: "
                    f"{self._accepts}'."
                )
        return None


def _names_this_machine(host: str) -> bool:
    found = _HOST.fullmatch(host)
    return found is not None and is_loopback(found[1])
