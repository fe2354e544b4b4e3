"""Which rewards a command uses, and with which settings."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace

from astrolabe.config import RewardTerm
from astrolabe.errors import ConfigError
from astrolabe.load import Code, load
from astrolabe.registry import find

DEFAULT = ("sharpness_vq", "flow_mq")
#: Beginnings of the settings that concern a reward.
TABLES = ("rewards.", "evaluation.judges.")
#: What training asks of its rewards together is no matter here.
_ALONE = ("disagreement.mode=none", "guard.action=off")


def choose_terms(
    rewards: Sequence[str],
    recipes: Sequence[str] = (),
    overrides: Sequence[str] = (),
    *,
    allow_code: bool = False,
) -> dict[str, RewardTerm]:
    """Return the rewards to score with, as a recipe would describe them.

    Args:
        rewards: Names of parts or of rewards of the recipes, or ``module:attribute``, which is
            named by its attribute. None: all rewards and judges of the recipes, or `DEFAULT`.
        recipes: Recipes whose rewards and judges are known by their names, with their options.
        overrides: Settings of these rewards, such as ``rewards.flow_mq.options.X=VALUE``.
        allow_code: Whether the recipes may name code, and not only entry points.

    Raises:
        ConfigError: If a recipe or an override is wrong, or sets something that is not scored.
        LookupError: If a name cannot be that of a part.
    """
    for text in overrides:
        if not text.startswith(TABLES):
            raise ConfigError(
                f"--set {text}: only rewards.NAME.options.OPTION=VALUE can be set here; "
                "see astrolabe parts rewards NAME for the options of a reward."
            )
    known: set[str] = set()
    if recipes:
        run = load(recipes, _ALONE, code="any")  # what it names is looked at below
        known = run.rewards.keys() | run.evaluation.judges.keys()
    parts = {_key(name): name for name in rewards or sorted(known) or DEFAULT}
    added = [
        f"rewards.{key}.{setting}"
        for key, name in parts.items()
        if key not in known
        for setting in ("weight=1", *([f"name={json.dumps(name)}"] if key != name else []))
    ]
    code: Code = "any" if allow_code else "entry points"
    run = load(recipes, [*added, *_ALONE, *overrides], code=code)
    found = {**run.rewards, **run.evaluation.judges}
    for text in overrides:
        name = text.removeprefix(TABLES[0]).removeprefix(TABLES[1]).partition(".")[0]
        if name not in parts:
            raise ConfigError(
                f"--set {text}: {name!r} is not scored here. Add --reward {name}, or correct the "
                f"name. Scored: {', '.join(parts)}."
            )
    # A file is a whole video already; there is no window of it and no overview.
    return {key: replace(found[key], scope="window") for key in parts}


def _key(name: str) -> str:
    """The name of a reward's table: that of the part, or the attribute of ``module:attribute``."""
    key = name.rpartition(":")[2].replace(".", "_") if ":" in name else name
    if not re.fullmatch(r"[\w-]+", key):
        find("rewards", name, "--reward")  # says which names there are
    return key
