"""What differs between the settings of a run and those it is to go on with."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from astrolabe.config import Run
from astrolabe.errors import ConfigError

#: Settings, and tables of them, that a run may go on with: no finished step would have been another
#: one, but for the rounding that comes with another size of batches.
SAFE = (
    "train.steps",
    "train.micro_batch",
    "train.gradient_checkpointing",
    "rollout.batch_size",
    "rollout.overlap",
    "distributed",
    "guard",
    "evaluation",
    "logging",
)


def differences(old: Run, new: Run) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ, by dotted name, with both values (Any: of many types)."""
    before, after = _flat(asdict(old)), _flat(asdict(new))
    names = list(dict.fromkeys([*before, *after]))
    missing = "(not set)"
    pairs = {name: (before.get(name, missing), after.get(name, missing)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def check_changes(old: Run, new: Run, *, force: bool) -> None:
    """Refuse to go on with other settings, but for safe ones where the user insists.

    Args:
        old: What the run was started with.
        new: What it is to go on with.
        force: Whether to change settings that are safe to change.

    Raises:
        ConfigError: Shows what differs, and what to do.
    """
    found = differences(old, new)
    unsafe = [name for name in found if not _is_safe(name)]
    if not found or (force and not unsafe):
        return
    shown = "; ".join(f"{name}: {was!r} -> {now!r}" for name, (was, now) in found.items())
    if unsafe:
        raise ConfigError(
            f"the run was started with other settings ({shown}). With another "
            f"{', '.join(unsafe)} it would be another run: start a new one with another --out, or "
            "leave these settings as they were."
        )
    raise ConfigError(
        f"the run was started with other settings ({shown}). They may change on the way: repeat "
        "the command with --force to go on with the new ones."
    )


def _is_safe(name: str) -> bool:
    return any(name == safe or name.startswith(f"{safe}.") for safe in SAFE)


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat
