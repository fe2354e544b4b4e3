"""The manifest of a `SuiteFolder`: which samples it holds, and how they are made."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from astrolabe_eval.errors import DamageError
from astrolabe_eval.sealed import Content, read_sealed
from astrolabe_eval.suites import Suite

MANIFEST: Final = "manifest.json"
_ENTRIES: Final = {"suite", "fps", "prompts", "seeds", "videos", "protocol"}


def describe(
    suite: Suite,
    fps: float,
    names: Sequence[str],
    protocol: Mapping[str, Any],  # Any: what JSON holds
) -> dict[str, Any]:
    """Return the entries of a manifest, as they are read back."""
    content = {
        "suite": suite.name,
        "fps": fps,
        "prompts": suite.prompts,
        "seeds": suite.seeds,
        "videos": names,
        "protocol": protocol,
    }
    entries: dict[str, Any] = json.loads(json.dumps(content))
    return entries


def read_manifest(file: Path) -> Content:
    """Read a manifest.

    Raises:
        DamageError: If it is missing, or not what was written.
        OSError: If it is there and cannot be read.
    """
    content = read_sealed(file)
    if content.entries.keys() != _ENTRIES:
        raise DamageError("has entries that are none of its own, or lacks some")
    return content


def identity_of(manifest: Mapping[str, Any]) -> str:  # Any: what JSON holds
    """Return a digest of what a manifest says."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:  # Any: as above
    """Say in what two manifests differ first; None if they do not."""
    for name, value in wanted.items():
        if found[name] != value:
            return f"another {name}: {_short(found[name])}, now {_short(value)}"
    return None


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
