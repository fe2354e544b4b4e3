"""What differs between the settings of a run and those it is to go on with, or is read with."""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from astrolabe.config import Run
from astrolabe.errors import ConfigError
from astrolabe.masking import hide

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
    """Return the settings that differ, by dotted name, with both values.

    Any: of many types. Another password is no other setting.
    """
    before, after = _flat(hide(asdict(old))), _flat(hide(asdict(new)))
    names = list(dict.fromkeys([*before, *after]))
    missing = "(not set)"
    pairs = {name: (before.get(name, missing), after.get(name, missing)) for name in names}
    found = {name: pair for name, pair in pairs.items() if not _equal(*pair)}
    if old.rewards.keys() == new.rewards.keys() and list(old.rewards) != list(new.rewards):
        # A sum in another order is rounded otherwise.
        found["rewards (order)"] = ", ".join(old.rewards), ", ".join(new.rewards)
    return found


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


def check_untouched(
    saved: Run, found: Run, typed: Collection[str], file: Path, checkpoint: str
) -> None:
    """Refuse settings that were changed in the file of a run since a checkpoint was saved.

    Args:
        saved: The settings that the checkpoint keeps.
        found: Those of the file.
        typed: Settings, or tables of them, that were given by other means; they may differ.
        file: Where ``found`` was read.
        checkpoint: Name of the checkpoint.

    Raises:
        ConfigError: Shows what differs, and what to do.
    """
    pairs = differences(saved, found)
    changed = {name: pair for name, pair in pairs.items() if not _within(name, typed)}
    if not changed:
        return
    shown = "; ".join(f"{name}: {was!r} -> {now!r}" for name, (was, now) in changed.items())
    unsafe = [name for name in changed if not _is_safe(name)]
    way_out = (
        f"with another {', '.join(unsafe)} it would be another run, which takes another --out"
        if unsafe
        else "to change them, repeat the changes on the command line: "
        f"astrolabe train --resume {file.parent} --set {next(iter(changed))}=VALUE --force"
    )
    raise ConfigError(
        f"{str(file)!r} was changed after {checkpoint} was saved ({shown}). Put back what was "
        f"saved; {way_out}."
    )


def check_judged(old: Run, new: Run) -> None:
    """Refuse changes with which an evaluation would not be that of what the run has trained.

    Args:
        old: The settings of the run.
        new: Those it is to be evaluated with.

    Raises:
        ConfigError: Names the settings.
    """
    held_out = [
        f"rewards.{name}.{item}"
        for name, term in old.rewards.items()
        if not term.weight
        for item in ("name", "options")
    ]
    found = differences(old, new)
    wrong = [name for name in found if not _within(name, ["evaluation", *held_out])]
    if wrong:
        raise ConfigError(
            f"astrolabe eval: with another {', '.join(wrong)} this would not be what the run has "
            "trained. Here --set and --unset change evaluation.*, and the name and the options of "
            "rewards of weight 0."
        )


def _equal(was: Any, now: Any) -> bool:  # Any: as `differences`
    """Whether two values are the same; true is not 1, and what is no number is itself."""
    return repr(was) == repr(now) or (was == now and isinstance(was, bool) == isinstance(now, bool))


def _within(name: str, tables: Collection[str]) -> bool:
    """Whether a setting is one of these, in one of these, or a table that one of these is in."""
    return any(
        name == table or name.startswith(f"{table}.") or table.startswith(f"{name}.")
        for table in tables
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
