"""The folder of one checkpoint: how it comes to be, and whether it is still what was saved.

It is written under another name, sealed by a manifest with the size and digest of each file, forced
to the disk and then renamed: under its own name it is whole, unless something damaged it later.
"""

import hashlib
import json
import math
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from astrolabe.state_files import TENSORS
from astrolabe_eval.files import write_atomic
from astrolabe_eval.input_files import check_file, read_json
from astrolabe_rollout.errors import CheckpointError
from astrolabe_rollout.files import force

MANIFEST = "manifest.json"
LORA = "lora"

#: By which the best checkpoints are known: the mean of the step's videos; larger is better.
REWARD = "reward/total"

#: Digest of the manifest's other entries.
SEAL = "sha256"

#: The settings that a checkpoint was trained with; earlier versions kept none.
SETTINGS = "settings"


def name_of(step: int) -> str:
    """Name of the folder of the checkpoint after ``step`` finished steps."""
    return f"step-{step:06d}"


def step_of(checkpoint: Path) -> int:
    """Steps that were finished when it was made."""
    return int(checkpoint.name.removeprefix("step-"))


def publish(
    part: Path, final: Path, reward: float | None, settings: dict[str, Any] | None = None
) -> None:
    """Turn a folder with all files of a checkpoint into a checkpoint.

    Args:
        part: The folder; gone afterwards.
        final: Its new name, beside it.
        reward: Mean reward of the videos of its step, if there is one.
        settings: Those that it was trained with, as JSON holds them. Any: they have many types.

    Raises:
        OSError: If the disk is full or fails; ``final`` is not there then.
    """
    manifest = {
        "astrolabe": version("astrolabe"),
        "step": step_of(final),
        REWARD: reward if reward is not None and math.isfinite(reward) else None,
        "files": _digests(part),
    }
    if settings is not None:
        manifest[SETTINGS] = settings
    manifest[SEAL] = _seal(manifest)
    write_atomic(part / MANIFEST, json.dumps(manifest, indent=2).encode())
    # Without it a crash of the machine may leave the new name on files that are not written yet.
    for path in (part, *part.rglob("*")):
        force(path)
    if final.exists():
        remove(final)
    part.rename(final)
    force(final.parent)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint; what a crash leaves of it does not count as one."""
    going = checkpoint.with_name(f".{checkpoint.name}.old")
    shutil.rmtree(going, ignore_errors=True)
    checkpoint.rename(going)
    shutil.rmtree(going, ignore_errors=True)


def damage(checkpoint: Path) -> str | None:
    """Return in what a checkpoint is not exactly what was saved; None if it is whole.

    Raises:
        CheckpointError: If that cannot be known, as it may not be read.
    """
    try:
        manifest = _manifest(checkpoint)
        files = manifest["files"].items()
        expected = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in files}
    except PermissionError as error:
        raise _forbidden(checkpoint, MANIFEST) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"it has no readable {MANIFEST}"
    seal = _seal(manifest)
    if manifest.get(SEAL, seal) != seal:  # earlier versions had none
        return f"{MANIFEST} does not hold what was saved"
    for path in (checkpoint / TENSORS).glob("*"):
        name = path.relative_to(checkpoint).as_posix()
        if name not in expected:  # it would be read with the others
            return f"{name} was put there later"
    for name, (size, digest) in expected.items():
        try:
            found = (checkpoint / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes and should have {size}"
            if _digest(checkpoint / name) != digest:
                return f"{name} does not hold what was saved"
        except FileNotFoundError:
            return f"{name} is missing"
        except PermissionError as error:
            raise _forbidden(checkpoint, name) from error
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def _forbidden(checkpoint: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {str(checkpoint)!r} may not be read: you have no permission for {name}. "
        f"Give it to yourself (chmod -R u+rwX {checkpoint}), or go on as who trained the run. "
        "Nothing was moved."
    )


def reward_of(checkpoint: Path) -> float | None:
    """Mean reward of the videos of its step, if it is known."""
    try:
        reward = _manifest(checkpoint).get(REWARD)
    except (OSError, ValueError, AttributeError):
        return None
    return reward if isinstance(reward, float) else None


def settings_of(checkpoint: Path) -> dict[str, Any] | None:
    """Settings that a checkpoint was trained with; None if its manifest has none or is damaged."""
    manifest = _sealed(checkpoint)
    settings = (manifest or {}).get(SETTINGS)
    return settings if isinstance(settings, dict) else None


def reseal(checkpoint: Path, settings: dict[str, Any]) -> None:
    """Note the settings that a run goes on with in a checkpoint that has some.

    Raises:
        OSError: If the manifest cannot be written.
    """
    manifest = _sealed(checkpoint)
    if manifest is None or manifest.get(SETTINGS) in (None, settings):
        return
    manifest[SETTINGS] = settings
    manifest[SEAL] = _seal(manifest)
    write_atomic(checkpoint / MANIFEST, json.dumps(manifest, indent=2).encode())


def digest_of(checkpoint: Path) -> str:
    """Return a digest of the adapter that a whole checkpoint publishes."""
    files = _manifest(checkpoint)["files"]
    parts = [entry["sha256"] for name, entry in sorted(files.items()) if name.startswith(LORA)]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _manifest(checkpoint: Path) -> dict[str, Any]:  # Any: names, numbers, and an entry per file
    content: dict[str, Any] = read_json(checkpoint / MANIFEST)
    return content


def _sealed(checkpoint: Path) -> dict[str, Any] | None:
    """The manifest, if it is what was written."""
    try:
        manifest = _manifest(checkpoint)
        return manifest if manifest.get(SEAL) == _seal(manifest) else None
    except (OSError, ValueError, AttributeError):
        return None


def _seal(manifest: dict[str, Any]) -> str:  # Any: see `_manifest`
    others = {name: value for name, value in manifest.items() if name != SEAL}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def _digests(folder: Path) -> dict[str, dict[str, int | str]]:
    """Size and SHA-256 of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _digest(path)}
        for path in files
    }


def _digest(path: Path) -> str:
    check_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
