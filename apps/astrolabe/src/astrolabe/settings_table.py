"""Tables of settings: laid over one another, changed by ``--set``, taken out of by ``--unset``."""

import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from astrolabe.errors import ConfigError
from astrolabe_eval.input_files import check_depth

#: A parsed TOML table. Any: what is in it is only known after the check.
Table = dict[str, Any]


def _override(text: str) -> Table:
    """``a.b=value`` as nested tables."""
    path, equals, value = text.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        raise ConfigError(
            f"--set {text}: this is no assignment. Write it as key=value, such as train.lr=2e-5."
        )
    parsed: Any = value.strip()  # Any: whatever TOML holds
    try:
        document = tomllib.loads(f"value = {value}")
        if list(document) == ["value"]:
            parsed = document["value"]
    except (ValueError, RecursionError):
        pass  # a bare text, such as a path
    for key in reversed(keys):
        parsed = {key: parsed}
    try:
        check_depth(parsed)
    except ValueError as error:
        raise ConfigError(f"--set {text[:60]}...: {error}. Settings lie less deep.") from error
    table: Table = parsed
    return table


def apply(
    table: Table, overrides: Sequence[str], unset: Sequence[str], origins: dict[str, str]
) -> None:
    """Take out what is unset, then lay the overrides over a table.

    Args:
        table: The settings; they are changed.
        overrides: As `astrolabe.load.load`.
        unset: See there.
        origins: Where each setting was written; it is kept up to date.

    Raises:
        ConfigError: If an override is no assignment, or what is unset is not there.
    """
    for text in unset:
        _take_out(table, text, origins)
    for text in overrides:
        merge(table, _override(text), f"--set {text}", origins)


def _take_out(table: Table, text: str, origins: dict[str, str]) -> None:
    *parents, last = keys = [key.strip() for key in text.split(".")]
    if "=" in text or not all(keys):
        raise ConfigError(
            f"--unset {text}: this names no setting. Write its name without a value, such as "
            "evaluation.judges.NAME."
        )
    place: Any = table  # Any: whatever a table holds
    for key in parents:
        place = place.get(key) if isinstance(place, dict) else None
    if not isinstance(place, dict) or last not in place:
        known = list(place) if isinstance(place, dict) else []
        close = get_close_matches(last, known, n=1)
        hint = f" Did you mean {'.'.join([*parents, close[0]])}?" if close else ""
        where = ".".join(parents) or "a run"
        raise ConfigError(
            f"--unset {text}: there is no such entry.{hint} In {where} there are: "
            f"{', '.join(known) or 'none'}."
        )
    del place[last]
    path = ".".join(keys)
    for name in [name for name in origins if name == path or name.startswith(f"{path}.")]:
        del origins[name]
    origins[path] = f"--unset {text}"


def merge(
    into: Table, table: Table, origin: str, origins: dict[str, str], prefix: str = ""
) -> None:
    """Lay ``table`` over ``into`` and note where each key came from."""
    if "options" in into and table.get("name", into.get("name")) != into.get("name"):
        into["options"] = {}  # they belong to the part that is replaced
    for key, value in table.items():
        path = f"{prefix}{key}"
        origins[path] = origin
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value, origin, origins, f"{path}.")
        elif isinstance(value, dict):
            into[key] = {}
            merge(into[key], value, origin, origins, f"{path}.")
        else:
            into[key] = value
