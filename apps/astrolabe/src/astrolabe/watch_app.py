"""The page that follows a training, and what it asks for, as an ASGI app.

Nothing is written, and of a run no more is given out than the page shows: its settings, metrics,
names of skipped batches, sample videos and report.
"""

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from astrolabe.errors import ConfigError
from astrolabe.watch_data import (
    METRICS,
    REPORT,
    describe,
    find_runs,
    inside,
    read_samples,
    summarise,
)
from astrolabe.watch_metrics import read_piece
from astrolabe_rewards.web.door import Door

_PAGES = {
    "watch.html": "text/html",
    "watch.js": "text/javascript",
    "curves.js": "text/javascript",
    "watch.css": "text/css",
}
_VIDEO = re.compile(r"samples/step-\d+/[^/.][^/]*\.mp4")
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; media-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}
#: A report is one file with all in it; its script gets an origin that can ask this server nothing.
_REPORT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "media-src data:; base-uri 'none'; form-action 'none'; sandbox allow-scripts"
)


def make_app(path: Path, *, local: bool = True) -> Starlette:
    """Make the server of the page.

    Args:
        path: Folder of a run, or of several; looked at anew with each request.
        local: Answer only requests that name this machine itself, so that no foreign web site can
            have its name point here and read what there is.
    """
    app = Starlette(
        routes=[
            Route("/", _page),
            Route("/{name}", _page),
            Route("/api/runs", _runs),
            Route("/api/run", _run),
            Route("/api/samples", _samples),
            Route("/api/metrics", _metrics),
            Route("/api/file", _file),
        ],
        middleware=[
            Middleware(_SafeHeaders),
            Middleware(Door, accepts="", local=local),
        ],
        exception_handlers={ConfigError: _gone, FileNotFoundError: _gone},
    )
    app.state.path = path
    return app


class _SafeHeaders:
    """Adds `_HEADERS` to every answer that does not bring its own."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_safely)


# The handlers are plain functions as they wait for a disk: starlette runs such in threads.


def _page(request: Request) -> Response:
    name = request.path_params.get("name", "watch.html")
    if name not in _PAGES:
        return _refusal(f"there is no page {name!r}")
    return Response((files("astrolabe") / "pages" / name).read_bytes(), media_type=_PAGES[name])


def _runs(request: Request) -> Response:
    runs = find_runs(request.app.state.path)
    return _json([{"name": name, **summarise(folder)} for name, folder in runs.items()])


def _run(request: Request) -> Response:
    return _json(describe(_folder(request)))


def _samples(request: Request) -> Response:
    return _json(read_samples(_folder(request), _whole(request, "step")))


def _metrics(request: Request) -> Response:
    path = inside(_folder(request), METRICS)
    mark = request.query_params.get("mark", "")
    return _json(read_piece(path, _whole(request, "offset"), mark))


def _file(request: Request) -> Response:
    folder, name = _folder(request), request.query_params.get("path", "")
    path = inside(folder, name) if name == REPORT or _VIDEO.fullmatch(name) else None
    if path is None:
        return _refusal(f"there is no file {name!r}, or it is not for show")
    own = {"content-security-policy": _REPORT_POLICY} if name == REPORT else {}
    return FileResponse(path, headers=own)


def _folder(request: Request) -> Path:
    name = request.query_params.get("run", "")
    folder = find_runs(request.app.state.path).get(name)
    if folder is None:
        raise ConfigError(f"there is no run {name!r}")
    return folder


def _whole(request: Request, name: str) -> int:
    text = request.query_params.get(name, "")
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else 0


def _json(content: Any, status: int = 200) -> Response:  # Any: what json takes
    # Escaped to ASCII: a prompt may hold half a character, for which UTF-8 has no bytes.
    text = json.dumps(content, allow_nan=False)
    return Response(text, status, media_type="application/json")


def _gone(request: Request, error: Exception) -> Response:
    """A run, or something of it, went away while it was looked at."""
    return _refusal(str(error))


def _refusal(reason: str) -> Response:
    return _json({"error": reason}, status=404)
