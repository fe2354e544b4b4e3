"""Parts by name: entry points, or ``module:attribute``.

The built-in parts use the same door as anybody's: a package that declares an entry point in one of
the groups below is found. Nothing is imported before it is asked for, and nothing is called that is
no part of the kind. The signature of a part's constructor is the schema of its options.
"""

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, get_args

from astrolabe.errors import ConfigError
from astrolabe.kinds import WANTED, is_of_kind
from astrolabe.limits import check_part_option
from astrolabe.masking import refuse_hidden

Kind = Literal["models", "rewards", "objectives", "suites"]
KINDS: tuple[Kind, ...] = get_args(Kind)

#: Modules that are not even imported for a part: those of Python, and the program that runs.
_NO_PARTS = sys.stdlib_module_names | {"__main__", "pip", "setuptools"}

#: A class or function that makes a part. Any: parts of one kind share a duty, not a type.
Maker = Callable[..., Any]


def names(kind: Kind) -> dict[str, str]:
    """Installed parts of a kind: name to ``module:attribute``, by name."""
    found = {entry.name: entry.value for entry in entry_points(group=f"astrolabe.{kind}")}
    return dict(sorted(found.items()))


def locate(kind: Kind, name: str, where: str) -> str:
    """Return the ``module:attribute`` of a part; nothing is imported.

    Args:
        kind: Its group.
        name: Its name there, or ``module:attribute``.
        where: The setting that names it, for the message.

    Raises:
        LookupError: If there is none of this name.
    """
    if ":" in name:
        if not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", name):
            raise LookupError(f"{where}: {name!r} is no part. Write module:attribute.")
        if name.partition(":")[0].partition(".")[0] in _NO_PARTS:
            raise LookupError(
                f"{where}: {name!r} is in a module of Python itself, which holds no parts. Write "
                "the module:attribute of your own."
            )
        return name
    known = names(kind)
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise LookupError(
            f"{where}: there is no {name!r} among the astrolabe.{kind}.{hint} "
            f"Known: {', '.join(known) or 'none'}; or write module:attribute."
        )
    return known[name]


def looks_like_path(source: str) -> bool:
    """Whether a list of prompts is meant as a file, rather than as a packaged one."""
    return any(mark in source for mark in "/\\.") or Path(source).exists()


def find(kind: Kind, name: str, where: str) -> Maker:
    """Import a part.

    Args:
        kind: Its group.
        name: Its name there, or ``module:attribute``.
        where: The setting that names it, for the message.

    Raises:
        LookupError: If there is none of this name, it cannot be imported, or it is no part of this
            kind.
    """
    target = locate(kind, name, where)
    maker = _import(target, where)
    if target not in names(kind).values() and not is_of_kind(kind, maker):
        raise LookupError(
            f"{where}: {name!r} is not called, as nothing says that it makes one of the "
            f"astrolabe.{kind}. Name {WANTED[kind]}."
        )
    return maker


def check(
    kind: Kind,
    name: str,
    options: Mapping[str, Any],  # Any: the constructor says what it takes
    *,
    provided: int = 0,
    where: str,
) -> Maker:
    """Import a part and compare its options with its signature; nothing is made.

    Args:
        kind: Its group.
        name: Its name there, or ``module:attribute``.
        options: Keyword arguments from the settings.
        provided: Positional arguments that the app provides and settings cannot.
        where: The table of settings that describes it, such as ``rewards.hpsv3``.

    Raises:
        LookupError: If there is no such part.
        ConfigError: If an option is unknown, missing, or of another type than is taken, if a
            number is not finite or beyond all use, or a secret is missing.
    """
    make = find(kind, name, where)
    refuse_hidden(options, f"{where}.options")
    known = options_of(make)
    allowed = list(known)[provided:]
    for option in options:
        if option not in allowed and not _takes_anything(make):
            close = get_close_matches(option, allowed, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"{where}.options: {name!r} has no option {option!r}.{hint} "
                f"It takes: {', '.join(allowed) or 'none'}."
            )
        if option in known:
            try:
                check_part_option(f"{where}.options.{option}", known[option], options[option])
            except ValueError as error:
                raise ConfigError(f"{error} ({name!r} takes {known[option]}.)") from error
    required = [option for option in allowed if known[option].default is inspect.Parameter.empty]
    missing = [option for option in required if option not in options]
    if missing:
        raise ConfigError(
            f"{where}.options: {name!r} needs the option {missing[0]!r}. "
            f"Give it with --set {where}.options.{missing[0]}=VALUE."
        )
    return make


def build(
    kind: Kind,
    name: str,
    options: Mapping[str, Any],  # Any: the constructor says what it takes
    *fixed: Any,  # Any: what the app itself hands in
    where: str,
) -> Any:  # Any: see Maker
    """Make a part from its options.

    Args:
        kind: Its group.
        name: Its name there, or ``module:attribute``.
        options: Keyword arguments from the settings, checked against the signature.
        fixed: Positional arguments that the app provides and settings cannot.
        where: The table of settings that describes it, such as ``rewards.hpsv3``.

    Raises:
        LookupError: If there is no such part.
        ConfigError: If an option is unknown, missing, or refused by the part.
    """
    make = check(kind, name, options, provided=len(fixed), where=where)
    try:
        inspect.signature(make).bind(*fixed, **options)
    except TypeError as error:
        raise ConfigError(
            f"{where}: {name!r} takes {inspect.signature(make)}, and is given {len(fixed)} "
            f"arguments by position and {list(options)} by name: {error}. Change its constructor."
        ) from error
    try:
        return make(*fixed, **options)
    except (TypeError, ValueError) as error:
        # Only a refusal of the options is the user's mistake; the same errors without any
        # option, or of a file that does not fit, come from elsewhere and keep their own type.
        if type(error) not in (TypeError, ValueError) or not options:
            raise
        raise ConfigError(f"{where}.options: {error}") from error


def options_of(make: Maker) -> dict[str, inspect.Parameter]:
    """Named parameters of a part's constructor, in order."""
    return {
        name: parameter
        for name, parameter in inspect.signature(make).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def _takes_anything(make: Maker) -> bool:
    parameters = inspect.signature(make).parameters.values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _import(target: str, where: str) -> Maker:
    module, _, attribute = target.partition(":")
    try:
        found: Any = import_module(module)  # Any: a module, then what is in it
        for part in attribute.split("."):
            found = getattr(found, part)
    # Whatever the code of a module may raise when it is run, its own exit included.
    except (Exception, SystemExit) as error:
        said = error if isinstance(error, (ImportError, AttributeError)) else repr(error)
        raise LookupError(
            f"{where}: {target!r} cannot be imported ({said}). "
            "Install the package that holds it, or correct the name."
        ) from error
    if not callable(found):
        raise LookupError(
            f"{where}: {target!r} is a {type(found).__name__}, which makes nothing. Name a class "
            "or a function."
        )
    maker: Maker = found
    return maker
