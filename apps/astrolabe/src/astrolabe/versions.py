"""What a process runs on: software and machine."""

import os
import platform
import re
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch

#: The packages of this project.
PACKAGES = (
    "astrolabe",
    "astrolabe_eval",
    "astrolabe_objectives",
    "astrolabe_rewards",
    "astrolabe_rollout",
)

#: The only parts of the environment that are kept, by name and by beginning.
VARIABLES = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"}
PREFIXES = ("NCCL_", "TORCH_")


def package_versions() -> dict[str, str]:
    """Versions of Python, of our packages and of all that they need."""
    found = {"python": platform.python_version()}
    waiting = ["astrolabe"]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        with suppress(PackageNotFoundError):  # for another system, or an extra that is not wanted
            found[name] = version(name)
            ours = name.startswith("astrolabe")  # whose extras are reward models
            waiting += [
                needed.group()
                for text in requires(name) or ()
                if (ours or "extra ==" not in text) and (needed := re.match(r"[\w.\-]+", text))
            ]
    # Its builds for one CUDA or another have one version in the lists of packages.
    return found | {"torch": torch.__version__}


def machine() -> dict[str, Any]:  # Any: numbers and texts
    """Python, processor, memory and GPUs; None for what this system does not tell."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cuda": torch.version.cuda,
        "driver": _after("/proc/driver/nvidia/version", "NVRM version"),
        "gpus": [],
        "cpu": _after("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "memory": _after("/proc/meminfo", "MemTotal"),
    }
    if torch.cuda.is_available():
        with suppress(RuntimeError):  # after some errors CUDA answers nothing any more
            count = range(torch.cuda.device_count())
            found["gpus"] = [torch.cuda.get_device_name(number) for number in count]
    return found


def environment() -> dict[str, str]:
    """The part of the environment that says how the processes were started."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name in VARIABLES or name.startswith(PREFIXES)
    }


def _after(file: str, name: str) -> str | None:
    """What stands behind a name in one of Linux's lists; None elsewhere."""
    with suppress(OSError):
        for line in Path(file).read_text("utf-8", "replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return None
