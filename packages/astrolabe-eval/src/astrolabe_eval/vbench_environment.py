"""The environment that VBench runs in: its own, since its pins fit no other program.

What it has is asked of it; nothing of it is imported here.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from astrolabe_eval.errors import VBenchError
from astrolabe_eval.input_files import read_json
from astrolabe_eval.vbench_needs import NEEDS
from astrolabe_eval.vbench_prompts import FULL_INFO, SAMPLES, video_name

VERSION: Final = "0.1.5"
#: The newest Python for which what VBench 0.1.5 pins (tokenizers 0.13) comes as a wheel.
PYTHON: Final = "3.11"

_STANDARD_NAME: Final = re.compile(r"-\d\.mp4$")
# Asks the other environment what it has, without importing any of it.
_PROBE: Final = """
import importlib.util, json
found = importlib.util.find_spec("vbench")
folders = list(found.submodule_search_locations or ()) if found else []
print(json.dumps([folders, importlib.util.find_spec("detectron2") is not None]))
"""


def parameter(name: str) -> str:
    """How messages of this module call one of its parameters: ``name=``."""
    return f"{name}="


def are_standard(
    names: Iterable[str],
    *,
    python: str | Path | None = None,
    option: Callable[[str], str] = parameter,
) -> bool:
    """Whether videos are those that VBench looks for: of its own prompts, under its own names.

    Args:
        names: Of the files.
        python: As in :func:`run_vbench`; the list of the VBench there counts.
        option: As in :func:`run_vbench`.

    Raises:
        VBenchError: If that environment has no VBench.
    """
    given = set(names)
    # Nothing is asked of the other environment if the form of the names already tells.
    if not given or not all(_STANDARD_NAME.search(name) for name in given):
        return False
    folders, _ = _environment(interpreter(python, option), option)
    return given <= _full_info(folders).keys()


def _full_info(folders: Sequence[Path]) -> dict[str, set[str]]:
    """Name of each video that VBench looks for, to the dimensions that it is judged on."""
    found: dict[str, set[str]] = {}
    try:
        for entry in read_json(folders[0] / FULL_INFO):
            for index in range(SAMPLES):
                name = video_name(entry["prompt_en"], index)
                found.setdefault(name, set()).update(entry["dimension"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VBenchError(
            f"The VBench in {str(folders[0])!r} has no list of its prompts ({error!r}). "
            f"Install vbench=={VERSION} again."
        ) from error
    return found


def _check_list(
    full_info: Mapping[str, set[str]], dimensions: Sequence[str], names: Collection[str]
) -> None:
    if others := sorted(name for name in names if name not in full_info):
        raise VBenchError(
            f"{others[0]!r} is no video of VBench's own prompts, which are named "
            "{prompt}-{0 to 4}.mp4. Take it out, or use mode 'custom_input' for other prompts."
        )
    judged = {dimension for name in names for dimension in full_info[name]}
    if without := [name for name in dimensions if name not in judged]:
        raise VBenchError(
            f"None of the {len(names)} videos is of a prompt that VBench judges "
            f"{', '.join(without)} on. Generate more of its list, or leave them out."
        )


def check_environment(
    command: list[str],
    dimensions: Sequence[str],
    option: Callable[[str], str],
    listed: Collection[str] | None = None,
) -> None:
    """Refuse an environment without VBench, or without what a dimension needs beside it.

    Args:
        command: Starts Python there.
        dimensions: Which are asked for.
        option: How messages call a parameter.
        listed: Names of videos that must be those of VBench's list, some for each dimension; None:
            they are of other prompts.
    """
    folders, has_detectron2 = _environment(command, option)
    if listed is not None:
        _check_list(_full_info(folders), dimensions, listed)
    if not has_detectron2 and (those := [name for name in dimensions if NEEDS[name].detectron2]):
        raise VBenchError(
            f"{', '.join(those)} need detectron2, which no package index has. Make an environment "
            f"with vbench=={VERSION}, then pip install --no-build-isolation "
            "'git+https://github.com/facebookresearch/detectron2.git' in it, and name its Python "
            f"({option('python')}); or leave them out."
        )


def _environment(command: list[str], option: Callable[[str], str]) -> tuple[list[Path], bool]:
    """Where an interpreter has vbench, and whether it has detectron2."""
    done = subprocess.run(
        [*command, "-c", _PROBE], env=variables(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        tail = "\n".join(done.stderr.strip().splitlines()[-8:])
        raise VBenchError(
            f"{command[0]!r} cannot be asked for vbench. The end of its words:\n{tail}"
        )
    folders, has_detectron2 = json.loads(done.stdout.strip().splitlines()[-1])
    if not folders:
        raise VBenchError(
            f"{command[0]!r} has no vbench. Install vbench=={VERSION} there, or name another "
            f"Python ({option('python')})."
        )
    return [Path(folder) for folder in folders], bool(has_detectron2)


def interpreter(python: str | Path | None, option: Callable[[str], str]) -> list[str]:
    """The command that starts Python there: the one given, or one that uv makes."""
    if python is not None:
        found = shutil.which(str(python))
        if found is None:
            raise VBenchError(f"There is no Python {str(python)!r}. Name that of the environment.")
        return [found]
    uv = shutil.which("uv")
    if uv is None:
        raise VBenchError(
            "VBench runs in an environment of its own, which uv would make, but there is no uv. "
            "Install it (https://docs.astral.sh/uv), or name the Python of an environment with "
            f"vbench=={VERSION} ({option('python')})."
        )
    environment = ["--isolated", "--no-project", "--python", PYTHON, "--with", f"vbench=={VERSION}"]
    return [uv, "run", *environment, "python"]


def variables() -> dict[str, str]:
    """This process's environment without what is of no use in the other one."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("VIRTUAL_ENV", "PYTHONHOME")
    }
