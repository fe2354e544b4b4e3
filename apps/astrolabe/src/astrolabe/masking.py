"""Takes secrets out of what may be shown to others: settings, tracebacks, logs.

What is masked: values under names such as ``api_key``, ``HF_TOKEN`` or ``password``, the same
values wherever else they stand, credentials in URLs, bearer tokens, tokens that are known by their
beginning, and private keys. It rather masks too much. The home directory becomes ``~``.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from astrolabe.errors import ConfigError

MASK = "***"

#: A shorter secret is masked under its name alone, as elsewhere it would hide other words.
SHORTEST = 6

#: The end of a name whose value is a secret.
_SECRET = (
    r"(?:(?i:password|passwd|passphrase|secret|credential|api[_-]?key)\w{0,32}"
    r"|(?i:token)s?\d*"
    r"|(?<=[_\-])(?i:pwd)"  # PWD itself is a folder
    r"|(?:(?<![A-Za-z])(?i:key|auth|authorization|signature|sig)|(?<=[a-z])Key)s?\d*)"
)
_NAME = re.compile(rf"[\w.\-]*?{_SECRET}$")
_NAMED = re.compile(
    rf"""(?P<name>(?<![\w.\-])[\w.\-]{{0,200}}?{_SECRET}
        (?:\\?["']?\]?\s*[:=]\s*(?:(?i:bearer|basic)\s+)?))
        (?:\\?"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|["']?[^\s"'&]+)""",
    re.VERBOSE,
)
#: A pattern for what is masked, and what is left of it.
_PATTERNS = (
    (re.compile(r"-----BEGIN [\w ]*PRIVATE KEY-----.*?(?:-----END|\Z)", re.DOTALL), MASK),
    (re.compile(r"""([A-Za-z][\w+.\-]{0,32}://)[^\s/"']+@"""), rf"\1{MASK}@"),
    (_NAMED, rf"\g<name>{MASK}"),
    (re.compile(rf"(--[\w\-]{{0,200}}?{_SECRET}\s+)\S+"), rf"\1{MASK}"),
    (re.compile(r"(?i)\b(bearer\s+)[\w.~+/=\-]+"), rf"\1{MASK}"),
    (re.compile(r"\b(?:hf_|sk-|gh[opsu]_|github_pat_|glpat-|xox[abp]-)[\w\-]{8,}"), MASK),
    (re.compile(r"\bAKIA[0-9A-Z]{16}\b"), MASK),
)
#: Of these, what is a secret by itself, whatever stands around it.
_ALONE = (_PATTERNS[0], *_PATTERNS[4:])
_CREDENTIALS = _PATTERNS[1]
_QUERY = re.compile(rf"([?&;][\w.\-]{{0,200}}?{_SECRET}=)[^&;#\s\"']+")
_URL = re.compile(r"""[A-Za-z][\w+.\-]{0,32}://[^\s"'<>]+""")
#: What `hide` leaves of a secret.
_HIDDEN = re.compile(
    rf"^{re.escape(MASK)}$|://{re.escape(MASK)}@|[?&;][\w.\-]{{1,200}}={re.escape(MASK)}(?:[&;#]|$)"
)
_PASSWORD = re.compile(r"""[A-Za-z][\w+.\-]{0,32}://[^\s/:"']*:([^\s/"']+)@""")

#: What JSON can hold; Any, as it nests.
Value = Any


def is_secret(name: str, value: Value) -> bool:
    """Whether a value is a secret by its name; a number of tokens or keys is none.

    >>> [is_secret(name, "x") for name in ("HF_TOKEN", "apiKey", "tokenizer", "keyframe")]
    [True, True, False, False]
    >>> is_secret("max_tokens", 512) or is_secret("api_key_variable", "JUDGE_KEY")
    False
    """
    number = isinstance(value, (int, float))
    if name.endswith("_variable"):  # the name of what holds it
        return False
    return _NAME.match(name) is not None and not (number and name.endswith("s"))


def known_secrets(*sources: Mapping[str, Value]) -> list[str]:
    """Collect the secrets that stand under their name in settings or an environment.

    Longest first, so that one that is a part of another does not leave the rest of it.
    """
    found = {text for source in sources for text in _secrets(source, named=False)}
    return sorted((text for text in found if len(text) >= SHORTEST), key=len, reverse=True)


def mask(text: str, known: list[str]) -> str:
    """Return a text without secrets.

    Args:
        text: Anything that a person reads: a log, a traceback, a list of settings.
        known: From `known_secrets`.

    >>> mask("GET http://me:hunter2@host/v1?token=abc&n=3 with api_key='x y'", [])
    'GET http://***@host/v1?token=***&n=3 with api_key=***'
    """
    text = mask_secrets(text, known)
    home = str(Path.home())
    return re.sub(rf"{re.escape(home)}(?![\w.\-])", "~", text) if len(home) > 1 else text


def mask_secrets(text: str, known: Sequence[str]) -> str:
    """As `mask`, but with paths as they are."""
    for secret in known:
        text = text.replace(secret, MASK)
    for pattern, left in _PATTERNS:
        text = pattern.sub(left, text)
    return text


def mask_settings(value: Value, known: list[str]) -> Value:
    """Return settings without secrets: the same tables and lists, as JSON has them."""
    if isinstance(value, Mapping):
        return {
            mask(str(name), known): MASK
            if is_secret(str(name), one) and one not in (None, "")
            else mask_settings(one, known)
            for name, one in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [mask_settings(one, known) for one in value]
    return mask(value, known) if isinstance(value, str) else value


def mask_shown(text: str) -> str:
    """Return a text without what is surely a secret; paths and all other words stay.

    >>> mask_shown("tokens: 512 from http://host/?api_key=abc&n=3 and hf_0123456789")
    'tokens: 512 from http://host/?api_key=***&n=3 and ***'
    """
    text = _CREDENTIALS[0].sub(_CREDENTIALS[1], text)
    text = _URL.sub(lambda url: _QUERY.sub(rf"\g<1>{MASK}", url[0]), text)
    for pattern, left in _ALONE:
        text = pattern.sub(left, text)
    return text


def hide(value: Value) -> Value:
    """Return settings as they are kept in a file: without secrets, and else unchanged.

    >>> hide({"url": "http://me:pw@host/v1", "options": {"headers": {"X-Api-Key": "abc"}}})
    {'url': 'http://***@host/v1', 'options': {'headers': {'X-Api-Key': '***'}}}
    """
    if isinstance(value, Mapping):
        return {
            name: _all(one) if is_secret(str(name), one) else hide(one)
            for name, one in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [hide(one) for one in value]
    if not isinstance(value, str):
        return value
    masked = mask_shown(value)
    return masked if masked == value or "://" in value else MASK


def _all(value: Value) -> Value:
    """What is under the name of a secret, all of it hidden."""
    if isinstance(value, Mapping):
        return {name: _all(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_all(one) for one in value]
    return value if value in (None, "") or isinstance(value, bool) else MASK


def hidden(value: Value, where: str = "") -> Iterator[str]:
    """Yield the dotted paths of settings of which `hide` took something.

    >>> list(hidden({"rewards": {"r": {"url": "http://***@host", "question": "*** yes"}}}))
    ['rewards.r.url']
    """
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from hidden(one, f"{where}.{name}" if where else str(name))
    elif isinstance(value, (list, tuple)):
        for number, one in enumerate(value):
            yield from hidden(one, f"{where}.{number}")
    elif isinstance(value, str) and _HIDDEN.search(value):
        yield where


def variable_of(path: str) -> str:
    """Return the environment variable that gives a setting whose secret is not kept.

    >>> variable_of("rewards.remote.options.url")
    'ASTROLABE_REWARDS_REMOTE_OPTIONS_URL'
    """
    return f"ASTROLABE_{re.sub(r'[^A-Za-z0-9]', '_', path).upper()}"


def reveal(value: Value, known: Value, environment: Mapping[str, str], where: str = "") -> Value:
    """Give settings that `hide` took secrets from what it took, where that is known.

    Args:
        value: The settings.
        known: The same with secrets, or others; None: there are none.
        environment: With what `variable_of` names.
        where: Path of ``value``.

    Returns:
        The settings; what nothing is known of is left hidden.
    """
    if isinstance(value, Mapping):
        others = known if isinstance(known, Mapping) else {}
        return {
            name: reveal(one, others.get(name), environment, f"{where}.{name}".lstrip("."))
            for name, one in value.items()
        }
    if isinstance(value, (list, tuple)):
        listed = [*known] if isinstance(known, (list, tuple)) else []
        listed += [None] * len(value)
        return [
            reveal(one, listed[number], environment, f"{where}.{number}")
            for number, one in enumerate(value)
        ]
    if not list(hidden(value)):
        return value
    if known is not None and (hide(known) == value or value == MASK):
        return known
    return environment.get(variable_of(where)) or value


def refuse_hidden(options: Value, where: str) -> None:
    """Refuse options of which a secret was not kept and was not given again.

    Raises:
        ConfigError: Names the setting and both ways to give it.
    """
    for path in hidden(options, where):
        raise ConfigError(
            f"{path} is without its secret, which is kept in no file. Give the whole value again "
            f"with the environment variable {variable_of(path)}, or with --set {path}=VALUE where "
            "the command takes it."
        )


def _secrets(value: Value, *, named: bool) -> Iterator[str]:
    """Secrets among settings; all of them if they are ``named`` one."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _secrets(one, named=named or is_secret(str(name), one))
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _secrets(one, named=named)
    elif isinstance(value, str):
        yield from [value] if named else _PASSWORD.findall(value)
    elif named:
        yield str(value)
