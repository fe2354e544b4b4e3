"""Code that settings name: parts as ``module:attribute``, and what a scoring worker runs.

Settings are data, and most of them come from other people. The line is drawn by who names the code:

* What is typed (``--set``, ``--reward``, ``--model``) is the user's own word.
* A recipe that `train` or `plan` is given is run as a whole and on purpose, so it may name parts
  that are installed here; what they are is looked at before they are called (`astrolabe.kinds`).
* A run folder, and a recipe from which `score` and others take rewards, are read for their data.
  They name entry points only.
* What fetches or names a program (a scoring worker's ``requirements``, ``python`` and ``target``)
  is taken from no file.

``--allow-code`` lifts all of this.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from astrolabe.config import RewardTerm, Run
from astrolabe.errors import ConfigError
from astrolabe.registry import Kind, looks_like_path, names

#: The part that starts a process of what its options say.
WORKER = "worker", "astrolabe_rewards.worker:ScoringWorker"
VARIABLE: Final = "ASTROLABE_ALLOW_CODE"
TYPED: Final = "--set"


@dataclass(frozen=True)
class Named:
    """A setting that names code."""

    setting: str
    value: str
    program: bool = False
    """Whether it is more than an installed part: it starts or installs something."""


def code_of(run: Run) -> list[Named]:
    """Settings of a run that name code other than installed entry points."""
    found = []
    if _is_code("models", run.model.name):
        found.append(Named("model.name", run.model.name))
    if _is_code("objectives", run.objective.name):
        found.append(Named("objective.name", run.objective.name))
    for table, terms in (("rewards", run.rewards), ("evaluation.judges", run.evaluation.judges)):
        for key, term in terms.items():
            found += _of_term(f"{table}.{key}", key, term)
    for where, source in (
        ("rollout.prompts", run.rollout.prompts),
        ("evaluation.prompts", run.evaluation.prompts),
    ):
        if not looks_like_path(source) and _is_code("suites", source):
            found.append(Named(where, source))
    return found


def refuse_code(
    run: Run,
    source: str,
    *,
    origins: Mapping[str, str] | None = None,
    parts: bool = False,
    known: Collection[Named] = (),
) -> None:
    """Refuse code that a file names.

    Args:
        run: What was read.
        source: Of what, for the message.
        origins: Of settings: where each came from; what was typed is allowed.
        parts: Whether installed parts are allowed, as ``module:attribute``.
        known: What is named by other means, and allowed.

    Raises:
        ConfigError: Names the setting, and the ways out.
    """
    for one in code_of(run):
        if one in known or (parts and not one.program) or _typed(one.setting, origins or {}):
            continue
        does = "starts or installs a program" if one.program else "is code"
        raise ConfigError(
            f"{source}: {one.setting} is {one.value!r}, which {does} that is run. If it is yours, "
            f"or you have read it and trust it, add --allow-code (or set {VARIABLE}=1)."
        )


def _of_term(where: str, key: str, term: RewardTerm) -> Iterator[Named]:
    name = term.name or key
    if _is_code("rewards", name):
        yield Named(f"{where}.name" if term.name else where, name)
    if name not in WORKER:
        return
    for option in ("target", "python", "requirements"):
        value = term.options.get(option)
        known = {*names("rewards").values()} - {WORKER[1]}  # a worker in a worker hides its own
        if value and not (option == "target" and value in known):
            yield Named(f"{where}.options.{option}", _text(value), program=True)


def _is_code(kind: Kind, name: str) -> bool:
    return ":" in name and name not in names(kind).values()


def _typed(setting: str, origins: Mapping[str, str]) -> bool:
    """Whether a setting was typed; a reward that is its own name, if all of its table was."""
    own = origins.get(setting)
    if own is not None:
        return own.startswith(TYPED)
    below = [origin for path, origin in origins.items() if path.startswith(f"{setting}.")]
    return bool(below) and all(origin.startswith(TYPED) for origin in below)


def _text(value: Any) -> str:  # Any: an option, as it was written
    return value if isinstance(value, str) else repr(value)
