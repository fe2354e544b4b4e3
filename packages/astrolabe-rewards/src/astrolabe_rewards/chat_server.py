"""Questions with pictures to a model behind an OpenAI-compatible server, several at a time.

Two kinds of failure are told apart. What concerns the server (it is not there, refuses the key,
does not know the model, stays overloaded, does not speak the protocol) would befall every question:
``ConnectionError``, and nothing more is asked. What concerns one question (the server refuses it,
the answer is empty or cut short) is an ``AnswerError`` in the place of that answer.
"""

import base64
import io
import json
import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from torch import Tensor

from astrolabe_rewards.frames import channels_last
from astrolabe_rewards.needs import require

if TYPE_CHECKING:
    import httpx

#: Content of a user's message, as the protocol has it; ``Any``: its parts are nested.
Content = list[dict[str, Any]]

_OVERLOADED: Final = (408, 429, 500, 502, 503, 504)  # worth another try
_REFUSED: Final = (400, 413, 422)
_LONGEST_WAIT = 60.0  # seconds, whatever the server asks for
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


class AnswerError(ValueError):
    """One question got no usable answer; others may.

    Attributes:
        refused: Whether the server would not take the question.
    """

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


def message(frames: Tensor, text: str) -> Content:
    """Return pictures, then a text, as the content of a message.

    Args:
        frames: uint8 ``[F, 3, H, W]``; sent as PNG, so without loss.
        text: Any text. Lone surrogates, which no UTF-8 has, become question marks.
    """
    from PIL import Image

    content: Content = []
    for frame in channels_last(frames):
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "PNG")
        data = base64.b64encode(file.getvalue()).decode("ascii")
        content.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
    clean = text.encode("utf-8", "replace").decode("utf-8")
    return [*content, {"type": "text", "text": clean}]


@dataclass(frozen=True)
class ChatServer:
    """A server's ``POST {url}/chat/completions``, asked at temperature 0.

    Args:
        url: Up to and with ``/v1``.
        model: As the server calls it.
        max_tokens: Longest answer.
        timeout: Seconds without a byte from the server after which a request has failed.
        retries: How many times a request is made again when the server is not reached in time or
            answers that it is overloaded or broken.
        backoff: Seconds before the first of them, twice as many before each next; a server's
            ``Retry-After`` counts if it is longer. Never more than a minute.
        concurrency: Requests at a time.
        key_variable: Name of the environment variable that holds the API key; None for no key. The
            key itself is kept nowhere.

    Raises:
        ModuleNotFoundError: If httpx or Pillow is not installed.
        ValueError: If an option is out of its range, or the variable holds no key.
    """

    url: str
    model: str
    max_tokens: int
    timeout: float
    retries: int
    backoff: float
    concurrency: int
    key_variable: str | None

    def __post_init__(self) -> None:
        require("judge", "a judge behind a server")
        _check_url(self.url)
        if not self.model:
            raise ValueError(
                f"model is {self.model!r}. Give the name that GET {self.url}/models lists."
            )
        for name, least in (("max_tokens", 1), ("retries", 0), ("concurrency", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}. Give a whole number of at least {least}.")
        if not (0 < self.timeout < math.inf and 0 <= self.backoff < math.inf):
            raise ValueError(
                f"timeout is {self.timeout!r} s and backoff {self.backoff!r} s. Give seconds such "
                "as 120.0 and 1.0."
            )
        self._headers()

    def ask(self, questions: Sequence[Callable[[], Content]]) -> list[str | AnswerError]:
        """Put questions to the model.

        Args:
            questions: Each makes the content of one message, when its turn comes.

        Returns:
            The answers, in the order of the questions.

        Raises:
            ConnectionError: If the server cannot be used.
        """
        import httpx

        stop = threading.Event()
        # A proxy of the environment cannot know what is behind this machine's own address.
        outside = urlsplit(self.url).hostname not in _LOOPBACK
        with (
            httpx.Client(
                timeout=self.timeout, trust_env=outside, headers=self._headers()
            ) as client,
            ThreadPoolExecutor(min(self.concurrency, max(1, len(questions)))) as pool,
        ):
            futures = [pool.submit(self._answer, client, make, stop) for make in questions]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [future.result() for future in futures]

    def _answer(
        self, client: "httpx.Client", make: Callable[[], Content], stop: threading.Event
    ) -> str | AnswerError:
        """The answer to one question, or why there is none."""
        request = {
            "model": self.model,
            "messages": [{"role": "user", "content": make()}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
        }
        try:
            return self._read(self._post(client, json.dumps(request).encode(), stop))
        except AnswerError as reason:
            return reason

    def _post(self, client: "httpx.Client", body: bytes, stop: threading.Event) -> "httpx.Response":
        """The server's response to one request, tried again while it is out of breath."""
        import httpx

        fault, asked_for = "", 0.0
        for attempt in range(self.retries + 1):
            delay = max(asked_for, self.backoff * 2 ** (attempt - 1)) if attempt else 0.0
            if stop.wait(min(delay, _LONGEST_WAIT)):
                break
            try:
                response = client.post(
                    f"{self.url.rstrip('/')}/chat/completions",
                    content=body,
                    headers={"Content-Type": "application/json"},
                )
            except httpx.TimeoutException:
                fault, asked_for = f"gave no answer within {self.timeout:g} s", 0.0
            except httpx.RequestError as error:
                fault, asked_for = f"cannot be reached ({_short(str(error))})", 0.0
            else:
                if response.status_code not in _OVERLOADED:
                    return response
                fault = f"answers {response.status_code} ({self._words(response)})"
                asked_for = _seconds(response.headers.get("Retry-After", ""))
        raise ConnectionError(
            f"the server at {self.url} {fault}; attempts: {self.retries + 1}. See that it runs and "
            "serves there; if it is only slow, raise timeout or retries, or lower concurrency."
        )

    def _read(self, response: "httpx.Response") -> str:
        """The answer in a response.

        Raises:
            ConnectionError: If it shows that the server cannot be used.
            AnswerError: If there is no usable answer to this one question.
        """
        status = response.status_code
        if status in (401, 403):  # the server's words may repeat the key
            way_out = (
                f"it refuses the key. Correct what ${self.key_variable} holds."
                if self.key_variable
                else "it wants a key. Name the environment variable that holds it by key_variable."
            )
            raise ConnectionError(f"the server at {self.url} answers {status}: {way_out}")
        if status in _REFUSED:
            raise AnswerError(
                f"the server at {self.url} refuses the question, {status} "
                f"({self._words(response)}). See whether {self.model!r} reads as many pictures and "
                "as long a prompt; fewer num_frames or a smaller side may do.",
                refused=True,
            )
        if status != 200:
            raise ConnectionError(
                f"the server at {self.url} answers {status} ({self._words(response)}). See whether "
                f"url ends as the server wants it (/v1) and GET {self.url}/models lists "
                f"{self.model!r}."
            )
        try:
            choice = response.json()["choices"][0]
            text, reason = choice["message"].get("content"), choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ConnectionError(
                f"the server at {self.url} answers with something else than a chat completion "
                f"({self._words(response)}). See whether url is that of an OpenAI-compatible API."
            ) from error
        if reason == "length":
            raise AnswerError(f"the answer was cut at max_tokens={self.max_tokens}")
        if not isinstance(text, str) or not text.strip():
            raise AnswerError("the answer is empty")
        return text

    def _headers(self) -> dict[str, str]:
        """The header that carries the key, if there is one."""
        if self.key_variable is None:
            return {}
        if not self.key_variable.isidentifier():  # perhaps the key itself: not to be repeated
            raise ValueError(
                "key_variable is no name of an environment variable. Export the key under a name "
                "such as JUDGE_KEY, and give that name."
            )
        key = os.environ.get(self.key_variable, "").strip()
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError(
                f"the environment variable {self.key_variable!r} (key_variable) "
                f"{'holds something that is no key' if key else 'is not set'}. Export it, "
                "or leave key_variable out for a server that asks for no key."
            )
        return {"Authorization": f"Bearer {key}"}

    def _words(self, response: "httpx.Response") -> str:
        """What the server says, in short, without the key."""
        key = os.environ.get(self.key_variable or "", "").strip()
        return _short(response.text.replace(key, "[key]") if key else response.text)


def _check_url(url: str) -> None:
    """Refuse an address that no request can be made to, or that holds a secret."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if it is no number
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        good = False
    if not good or any(letter.isspace() or not letter.isprintable() for letter in url):
        raise ValueError(f"url is {url!r}, no address. Give one such as http://127.0.0.1:8000/v1.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "url holds more than an address: a user, a password, a query or a fragment. Give "
            "http(s)://HOST:PORT/v1, and a key by key_variable."
        )


def _seconds(text: str) -> float:
    """A ``Retry-After`` in seconds; 0 for a date or nothing."""
    return float(text) if text.isdecimal() and text.isascii() else 0.0


def _short(text: str) -> str:
    """The first words of a text, in one line."""
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:200]}..."
