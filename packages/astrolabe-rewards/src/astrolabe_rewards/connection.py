"""One reward server as a client sees it: what it offers, and its answers, asked for patiently.

Nothing here knows of rewards or batches; see `client` for that.
"""

import logging
import re
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from astrolabe_rewards.needs import require
from astrolabe_rewards.scorer import Description
from astrolabe_rewards.wire import SCHEMA, Answer, Request, UnavailableError, WireError

if TYPE_CHECKING:
    import httpx

#: Bytes that are handed to the network at once.
PIECE: Final = 2**20
#: Seconds of the first pause after a failure; each further one is twice as long, up to the last.
FIRST_PAUSE: Final = 0.5
LAST_PAUSE: Final = 30.0
#: Seconds that a connection and the list of rewards may take.
CONNECT: Final = 10.0
#: Seconds an idle connection is used again; less than the server keeps it.
_KEEP: Final = 20.0

_log = logging.getLogger(__name__)


class Connection:
    """Connections to one server; any thread may use it.

    Args:
        url: Of the server.
        token: What to send as ``Authorization: Bearer``; empty sends none.
        timeout: Seconds that an answer may take.
        retries: How often a request is sent again after a failure.

    Raises:
        ModuleNotFoundError: If httpx is not installed.
        ValueError: If the address is none of HTTP.
    """

    def __init__(self, url: str, token: str, *, timeout: float, retries: int) -> None:
        require("serve", "a remote reward")
        import httpx

        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL:
            parsed = httpx.URL("")
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError(
                f"url is {without_secrets(url)!r}. Give one such as 'http://127.0.0.1:8000'."
            )
        self.url = without_secrets(url)
        self._timeout, self._retries = timeout, retries
        self._client = httpx.Client(
            base_url=parsed,
            headers={b"Authorization": f"Bearer {token}".encode()} if token else {},
            timeout=httpx.Timeout(timeout, connect=min(timeout, CONNECT)),
            limits=httpx.Limits(keepalive_expiry=_KEEP),
        )

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def offer(self, reward: str) -> tuple[Description, int]:
        """Return what the server says of a reward, and the largest body it takes.

        Raises:
            UnavailableError: If no server answers.
            ValueError: If it refuses the token, speaks another schema, or has no such reward.
        """
        import httpx

        try:
            response = self._client.get("/v1/rewards", timeout=CONNECT)
        except httpx.TransportError as error:
            raise UnavailableError(
                f"{self.url}: no reward server answers ({error}). Start one, "
                "RewardServer({name: reward}).run(), or correct the option 'url'."
            ) from error
        if response.status_code == 401:
            raise ValueError(
                f"{self.url}: {_reason(response)} Name the environment variable that holds the "
                "server's token with the option 'token_variable'."
            )
        offer = _parsed(response)
        schema, served, max_body = (offer.get(key) for key in ("schema", "rewards", "max_body"))
        if response.status_code != 200 or not isinstance(served, dict) or type(max_body) is not int:
            raise ValueError(f"{self.url}: this is no reward server. Correct the option 'url'.")
        if schema != SCHEMA:
            raise ValueError(
                f"{self.url}: the server speaks schema {schema!r} and this client {SCHEMA}. "
                "Install the same version of astrolabe-rewards on both."
            )
        if reward not in served:
            known = ", ".join(served)
            raise ValueError(f"{self.url}: there is no reward {reward!r}. Known: {known}.")
        return Description.read(served[reward]), max_body

    def ask(self, reward: str, request: Request) -> Answer:
        """Return the answer to a request, after as many tries as are allowed.

        Raises:
            UnavailableError: If there is none.
        """
        parts = request.pack()
        deadline, failures = time.monotonic() + self._timeout, 0
        while True:
            response = self._send(reward, parts)
            if isinstance(response, str):
                failures += 1
                if failures > self._retries:
                    raise UnavailableError(
                        f"{self.url}: {reward} did not answer in {failures} tries: {response}"
                    )
                pause = min(LAST_PAUSE, FIRST_PAUSE * 2 ** (failures - 1))
                _log.warning("%s: %s; trying again in %g s", self.url, response, pause)
            elif response.status_code == 503:
                pause = _retry_after(response)
                if time.monotonic() + pause > deadline:
                    raise UnavailableError(
                        f"{self.url}: the server was busy for {self._timeout:g} s. "
                        "Raise the option 'timeout', or serve from more machines."
                    )
            else:
                return self._answer(response, len(request))
            time.sleep(pause)

    def _send(self, reward: str, parts: Sequence[memoryview]) -> "httpx.Response | str":
        """The server's response, or what went wrong on the way."""
        import httpx

        headers = {
            "Content-Length": str(sum(part.nbytes for part in parts)),
            "Content-Type": "application/octet-stream",
        }
        path = f"/v1/score/{quote(reward, safe='')}"
        try:
            response = self._client.post(path, content=_pieces(parts), headers=headers)
        except httpx.TransportError as error:
            return f"{type(error).__name__}: {error}"
        if response.status_code >= 500 and response.status_code != 503:
            return f"status {response.status_code}"
        return response

    def _answer(self, response: "httpx.Response", count: int) -> Answer:
        if response.status_code != 200:
            raise UnavailableError(f"{self.url}: {_reason(response)}")
        try:
            return Answer.unpack(bytearray(response.content), count)
        except WireError as error:
            raise UnavailableError(f"{self.url}: the answer is damaged: {error}") from error


def without_secrets(url: str) -> str:
    """An address as messages and logs may have it: no user, no password, no values of a query.

    >>> without_secrets("https://me:pw@host:8000/a?token=abc&n=3")
    'https://***@host:8000/a?token=***&n=***'
    """
    url = re.sub(r"(//)[^/?#]*@", r"\1***@", url)
    head, mark, query = url.partition("?")
    return head + mark + re.sub(r"=[^&;#]*", "=***", query)


def _parsed(response: "httpx.Response") -> dict[str, Any]:  # Any: JSON
    """The JSON mapping of a response; empty if it is none."""
    try:
        content = response.json()
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _reason(response: "httpx.Response") -> str:
    """Why the server refused, in its own words."""
    return str(_parsed(response).get("error", f"status {response.status_code}"))


def _retry_after(response: "httpx.Response") -> float:
    """Seconds after which the server wants to be asked again."""
    text = response.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else 1.0


def _pieces(parts: Sequence[memoryview]) -> Iterator[bytes]:
    """The bytes of a request, a piece at a time: the network library copies what it is given."""
    for part in parts:
        for begin in range(0, part.nbytes, PIECE):
            yield bytes(part[begin : begin + PIECE])
