"""Everything that a person reads of the program goes through `shown`: the screen and the logs.

Names, prompts and answers of servers come from others. On a terminal an escape in them could move
the cursor, rewrite what stands there or send keys; it is shown as it is written in Python. Secrets
in addresses and settings become ``***``.
"""

import logging
import re
import warnings
from typing import TYPE_CHECKING

import typer

from astrolabe.masking import mask_shown

if TYPE_CHECKING:
    from rich.console import Console

#: Control characters but for line feed and tab, marks that turn the direction of writing, line ends
#: of Unicode, and halves of characters, which no terminal can be sent.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def shown(text: str) -> str:
    r"""Return a text as a terminal or a log may have it.

    >>> shown("a\x1b[2Jcat http://me:hunter2@host/")
    'a\\x1b[2Jcat http://***@host/'
    """
    return _CONTROLS.sub(_written, mask_shown(text))


def one_line(name: object) -> str:
    r"""Return a name or a path without line feeds and tabs, which would look like more lines.

    >>> one_line("a\nerror: b")
    'a\\nerror: b'
    """
    return str(name).replace("\n", r"\n").replace("\t", r"\t")


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print a text, on the standard error stream if it is an ``err``."""
    typer.echo(shown(text), err=err, nl=nl)


def console(*, stderr: bool = False) -> "Console":
    """Return a console that takes no text for markup."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def guard() -> None:
    """Have warnings and logs that nobody else takes pass through `shown` too."""
    if logging.lastResort is not None and logging.lastResort.formatter is None:
        logging.lastResort.setFormatter(_Shown())
    if warnings.formatwarning is not _format_warning:
        warnings.formatwarning = _format_warning


class _Shown(logging.Formatter):
    """The message alone, as Python does."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


_format_as_before = warnings.formatwarning


def _format_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    return shown(_format_as_before(message, category, filename, lineno, line))


def _written(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
