"""Takes secrets out of what may be shown to others: settings, tracebacks, logs.

What is masked: values under names such as ``api_key``, ``HF_TOKEN`` or ``password``, the same
values wherever else they stand, credentials in URLs, bearer tokens, tokens that are known by their
beginning, and private keys. It rather masks too much. The home directory becomes ``~``.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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
_PASSWORD = re.compile(r"""[A-Za-z][\w+.\-]{0,32}://[^\s/:"']*:([^\s/"']+)@""")

#: What JSON can hold; Any, as it nests.
Value = Any


def is_secret(name: str, value: Value) -> bool:
    """Whether a value is a secret by its name; a number of tokens or keys is none.

    >>> [is_secret(name, "x") for name in ("HF_TOKEN", "apiKey", "tokenizer", "keyframe")]
    [True, True, False, False]
    >>> is_secret("max_tokens", 512)
    False
    """
    number = isinstance(value, (int, float))
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
    for secret in known:
        text = text.replace(secret, MASK)
    for pattern, left in _PATTERNS:
        text = pattern.sub(left, text)
    home = str(Path.home())
    return re.sub(rf"{re.escape(home)}(?![\w.\-])", "~", text) if len(home) > 1 else text


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
