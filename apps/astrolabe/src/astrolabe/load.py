"""Recipes and ``--set`` to a checked `Run`; every mistake is named with its place and its key.

The only file that knows pydantic. A recipe is a TOML file that holds what differs from the defaults
in `astrolabe.config`. Left out on purpose: recipes do not include one another; several are given
instead, and a later one wins. An overlay holds what it changes of a recipe that is given before it.
"""

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from astrolabe.code_in_data import code_of, refuse_code
from astrolabe.config import Run
from astrolabe.errors import ConfigError
from astrolabe.masking import hide, reveal
from astrolabe.settings_table import Table, apply, merge
from astrolabe_eval.input_files import check_depth, read_json, read_text

#: What code a file of settings may name: any, parts that are installed, entry points only.
Code = Literal["any", "parts", "entry points"]

_BACKUP = (
    'Take it from a backup, or from "settings" in the manifest.json of a checkpoint of the run.'
)

_WANTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "bool_type": "true or false",
    "dataclass_type": "a table",
    "dict_type": "a table",
    "tuple_type": "a list",
}


def recipe_names() -> list[str]:
    """Names of the packaged recipes, each of which is a run by itself."""
    return list(_packaged("recipes"))


def overlay_names() -> list[str]:
    """Names of the packaged overlays, which change a recipe that is given before them."""
    return list(_packaged("recipes/overlays"))


def _packaged(folder: str) -> dict[str, Path]:
    """The files of a packaged folder by name."""
    found = Path(str(files("astrolabe"))) / folder
    return {path.stem: path for path in sorted(found.glob("*.toml"))}


def load(
    recipes: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    unset: Sequence[str] = (),
    code: Code = "parts",
) -> Run:
    """Combine recipes and overrides into one checked run.

    Args:
        recipes: Names of packaged recipes and overlays, or paths of ``.toml`` files; a later one
            wins. The first is no overlay.
        overrides: ``"a.b=value"`` each, applied last. The value is TOML; what is no TOML is a text.
        unset: ``"a.b"`` each, taken out of what the recipes say before the overrides are applied:
            an entry of a table is gone, anything else is as by default.
        code: What code recipes may name; see `astrolabe.code_in_data`. Overrides may name any.

    Returns:
        The run, with every default filled in.

    Raises:
        ConfigError: If a recipe cannot be read or names code that it may not, or a setting is
            unknown, of the wrong type, out of range, or does not go with another one.

    Example:
        >>> load(["tiny"], ["train.steps=2"]).train.steps
        2
    """
    if recipes and recipes[0] in overlay_names():
        base = next((name for name in recipes if name not in overlay_names()), "self_forcing_multi")
        ordered = [base, *(name for name in recipes if name != base)]
        raise ConfigError(
            f"{recipes[0]!r} is an overlay: it changes a recipe that is given before it, and is no "
            f"run by itself. Give the recipe first, as in: astrolabe train {' '.join(ordered)}."
        )
    table = _defaults()
    origins: dict[str, str] = {}
    for recipe in recipes:
        origin = f"recipe {recipe!r}"
        merge(table, _read(recipe), origin, origins)
    apply(table, overrides, unset, origins)
    source = " + ".join(f"{recipe!r}" for recipe in recipes) or "defaults"
    run = _check(table, origins, source)
    if code != "any":
        refuse_code(run, f"recipe {source}", origins=origins, parts=code == "parts")
    return run


def changed(run: Run, overrides: Sequence[str], unset: Sequence[str] = ()) -> Run:
    """Return a run with some settings changed, each as ``"a.b=value"``, or taken out, as `load`.

    Raises:
        ConfigError: As `load`.
    """
    table = asdict(run)
    origins: dict[str, str] = {}
    apply(table, overrides, unset, origins)
    return _check(table, origins, "the run")


def names_in(overrides: Sequence[str], unset: Sequence[str] = ()) -> list[str]:
    """The settings that overrides change, and those that are taken out."""
    return [text.partition("=")[0].strip() for text in [*overrides, *unset]]


def read_recipe(name: str) -> str:
    """Return the text of a packaged recipe or overlay, or of a ``.toml`` file.

    Raises:
        ConfigError: If there is none, or it cannot be read, or is not UTF-8 text.
    """
    packaged = _packaged("recipes") | _packaged("recipes/overlays")
    source = Path(name) if name.endswith(".toml") else packaged.get(name)
    if source is None or not os.path.lexists(source):
        close = get_close_matches(name.removesuffix(".toml"), packaged, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"there is no recipe {name!r}.{hint} Known: {', '.join(recipe_names())}; overlays: "
            f"{', '.join(overlay_names())}; or give the path of a .toml file."
        )
    try:
        return read_text(source)
    except OSError as error:
        raise ConfigError(
            f"recipe {name!r} cannot be read ({error.strerror}). Name a file that you may read."
        ) from error
    except ValueError as error:
        raise ConfigError(f"recipe {name!r}: {error}. Save it as UTF-8.") from error


def to_json(run: Run) -> str:
    """Write a run as JSON, which `from_json` reads back to an equal run, but for its secrets."""
    return json.dumps(hide(asdict(run)), indent=2) + "\n"


def to_table(run: Run) -> Table:
    """Return a run as `to_json` would be read again by any program."""
    table: Table = json.loads(to_json(run))
    return table


def from_json(path: Path, *, allow_code: bool = False, known: Run | None = None) -> Run:
    """Read the configuration of a run folder.

    Secrets are not in it. They are taken from ``known``, or from the environment variables that
    `variable_of` names; without, their settings stay hidden, and whoever uses one refuses it.

    Args:
        path: The file.
        allow_code: Whether it may name code other than entry points.
        known: Settings that were given by other means; the code that they name is allowed.

    Raises:
        ConfigError: If the file is missing, no JSON, names code that it may not, or holds what
            `load` would refuse.
    """
    try:
        table = read_json(path)
    except FileNotFoundError:
        raise ConfigError(
            f"{str(path.parent)!r} has no {path.name}, so it is no run folder. "
            "Give the folder that `astrolabe train` wrote."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{str(path)!r} cannot be read ({error.strerror}). Give a folder that you may read."
        ) from error
    except ValueError as error:  # no JSON, or no UTF-8
        raise ConfigError(f"{str(path)!r} cannot be read ({error}). {_BACKUP}") from error
    if not isinstance(table, dict):
        raise ConfigError(f"{str(path)!r} holds no table of settings. {_BACKUP}")
    return from_table(table, repr(str(path)), allow_code=allow_code, known=known)


def from_table(
    table: Table, source: str, *, allow_code: bool = False, known: Run | None = None
) -> Run:
    """Return the run that `to_table` returned.

    Args:
        table: The settings.
        source: Where they come from, for messages.
        allow_code: As `from_json`, like the next one.
        known: See there.

    Raises:
        ConfigError: As `from_json`.
    """
    given = None if known is None else json.loads(json.dumps(asdict(known)))
    run = _check(reveal(table, given, os.environ), {}, source)
    if not allow_code:
        refuse_code(run, source, known=code_of(known) if known else ())
    return run


def _defaults() -> Table:
    """Every default as a table, so that a recipe may change one entry of a part."""
    table: Table = {}
    for item in fields(Run):
        default: Any = item.default_factory  # Any: typeshed's mark for "none" has no call
        value = default()
        table[item.name] = value if isinstance(value, dict) else asdict(value)
    return table


def _read(recipe: str) -> Table:
    text = read_recipe(recipe)
    try:
        table = tomllib.loads(text)
        check_depth(table)
    # Also a number of more digits than Python reads, and tables too deep.
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"recipe {recipe!r} is no TOML: {error}. Mend that line.") from error
    return table


@cache
def _schema() -> TypeAdapter[Run]:
    return TypeAdapter(Run)


def _check(table: Table, origins: Mapping[str, str], source: str) -> Run:
    _refuse_unknown(table, Run, origins, source)
    try:
        return _schema().validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"] if isinstance(part, (str, int)))
    if problem["type"] == "value_error":
        message = str(problem["ctx"]["error"])
        path = f"{where}.{message.split(' ', 1)[0]}" if where else message.split(" ", 1)[0]
        message = f"{where}.{message}" if where else message
        raise ConfigError(f"{_origin(path, origins, source)}: {message}")
    wanted = _WANTED.get(problem["type"], "")
    if problem["type"] == "literal_error":
        wanted = f"one of {problem['ctx']['expected']}"
    if problem["type"] == "missing":
        raise ConfigError(
            f"{_origin(where, origins, source)}: {where} is not set and has no default. "
            f"Add --set {where}=VALUE."
        )
    must = f"It must be {wanted}." if wanted else f"{problem['msg']}."
    raise ConfigError(f"{_origin(where, origins, source)}: {where} is {problem['input']!r}. {must}")


def _origin(path: str, origins: Mapping[str, str], source: str) -> str:
    """Where a setting was written: the longest known beginning of its path."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        if found := origins.get(".".join(parts[:end])):
            return found
    return source


def _refuse_unknown(
    table: Table, kind: Any, origins: Mapping[str, str], source: str, prefix: str = ""
) -> None:
    """Refuse keys that the dataclass ``kind`` (Any: typeshed cannot say so) does not have."""
    hints = get_type_hints(kind)
    known = [item.name for item in fields(kind)]
    for key, value in table.items():
        path = f"{prefix}{key}"
        if key not in known:
            close = get_close_matches(key, known, n=1)
            hint = f" Did you mean {prefix}{close[0]}?" if close else ""
            raise ConfigError(
                f"{_origin(path, origins, source)}: there is no setting {path}.{hint} "
                f"{prefix.rstrip('.') or 'A run'} has: {', '.join(known)}."
            )
        if not isinstance(value, dict):
            continue
        if is_dataclass(hints[key]):
            _refuse_unknown(value, hints[key], origins, source, f"{path}.")
        elif get_origin(hints[key]) is dict and is_dataclass(term := get_args(hints[key])[1]):
            for name, entry in value.items():
                if isinstance(entry, dict):
                    _refuse_unknown(entry, term, origins, source, f"{path}.{name}.")
