"""What this machine has, and what would keep a run from starting."""

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from astrolabe.errors import ConfigError
from astrolabe.load import load, overlay_names, recipe_names
from astrolabe.registry import KINDS, Kind, find, names

GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    name: str
    good: bool
    detail: str


def examine(folder: Path) -> Iterator[Finding]:
    """Look at the machine, the installation and the disk of ``folder``, cheapest first."""
    yield Finding("python", True, f"{platform.python_version()} on {platform.platform()}")
    packages = ("astrolabe", "torch", "torchrl", "tensordict", "diffusers", "peft", "transformers")
    yield Finding("packages", True, ", ".join(f"{name} {version(name)}" for name in packages))
    free = shutil.disk_usage(folder).free
    yield Finding("disk", free > GIB, f"{free / GIB:.1f} GiB free (1 GiB is plenty for tiny)")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    enough = memory > 4 * GIB
    yield Finding(
        "memory", enough, f"{memory / GIB:.1f} GiB, {os.cpu_count()} cores (tiny needs 4 GiB)"
    )
    yield Finding("accelerator", True, _accelerator())
    yield _try("recipes", _load_recipes)
    yield _try("overlays", _load_overlays)
    for kind in KINDS:
        yield _try(kind, partial(_import_parts, kind))
    yield _try("video", _encode)


def _accelerator() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none; the processor is used"
    device = torch.cuda.get_device_properties(0)
    return f"{device.name}, {device.total_memory / GIB:.0f} GiB"


def _load_recipes() -> str:
    for name in recipe_names():
        load([name])
    return ", ".join(recipe_names())


def _load_overlays() -> str:
    for name in overlay_names():
        load(["self_forcing_multi", name])
    return ", ".join(overlay_names())


def _import_parts(kind: Kind) -> str:
    for name in names(kind):
        find(kind, name, "doctor")
    return ", ".join(names(kind)) or "none installed"


def _encode() -> str:
    import numpy as np

    from astrolabe_eval import encode_mp4

    size = len(encode_mp4(np.zeros((5, 3, 48, 48), dtype=np.uint8), fps=8))
    return f"H.264 works ({size} bytes for five black frames)"


def _try(name: str, check: Callable[[], str]) -> Finding:
    """A finding that is bad if the check raises what a mistake of the installation raises."""
    try:
        return Finding(name, True, check())
    except (ConfigError, LookupError, ImportError, OSError, ValueError) as error:
        return Finding(name, False, str(error))
