"""Run VBench itself in an environment of its own, since its pins fit no other program.

What is called is VBench's Python interface. Its command line starts NCCL and so needs a CUDA device
for every dimension, also for those that run on a CPU.
"""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

from astrolabe_eval.errors import VBenchError
from astrolabe_eval.files import write_atomic
from astrolabe_eval.input_files import read_json
from astrolabe_eval.vbench import DIMENSIONS, RESULTS_SUFFIX, Results, read_results
from astrolabe_eval.vbench_actions import action_of, names_with_actions
from astrolabe_eval.vbench_environment import (
    VERSION,
    check_environment,
    interpreter,
    parameter,
    variables,
)
from astrolabe_eval.vbench_needs import NEEDS, absent_weights, describe
from astrolabe_eval.vbench_prompts import SAMPLES

_SAMPLE: Final = re.compile(r"-\d+$")
# Runs in the other environment, so it imports nothing of ours.
_DRIVER: Final = """
import json, sys
from pathlib import Path
import torch, vbench
job = json.loads(sys.argv[1])
device = job.pop("device") or ("cuda" if torch.cuda.is_available() else "cpu")
out = job.pop("out")
info = Path(vbench.__file__).with_name("VBench_full_info.json")
vbench.VBench(torch.device(device), str(info), out).evaluate(**job)
"""


@dataclass(frozen=True)
class VBenchRun:
    """What a run of VBench gave.

    Attributes:
        results: As from `read_results`.
        missing: Names of videos of the standard list that were not there. VBench leaves them out
            of the mean and only prints a warning.
        unscored: Dimension to the videos that VBench was given and has no score for, because it
            could not read them, for example.
    """

    results: Results
    missing: tuple[str, ...]
    unscored: Mapping[str, tuple[str, ...]]


def run_vbench(
    videos: str | Path,
    out: str | Path,
    dimensions: Sequence[str],
    *,
    mode: Literal["standard", "custom_input"] = "standard",
    prompts: Mapping[str, str] | None = None,
    python: str | Path | None = None,
    device: str | None = None,
    cache: str | Path | None = None,
    download: bool = False,
    name: str = "vbench",
    timeout: float | None = None,
    option: Callable[[str], str] = parameter,
) -> VBenchRun:
    """Run VBench over a folder of videos and read what it wrote.

    Args:
        videos: A folder of ``.mp4`` files; ``{prompt}-{sample}.mp4`` for ``"standard"``.
        out: Where VBench writes ``{name}_eval_results.json`` and ``{name}_full_info.json``.
        dimensions: Which; `vbench_needs.NEEDS` says what each reads. Those of object detection need
            ``detectron2`` in the environment, which only ``python`` can have.
        mode: ``"standard"`` for VBench's own prompts, ``"custom_input"`` for others. With these,
            ``human_action`` needs prompts that end in ``person is`` and a class of Kinetics-400;
            VBench is shown the videos under names that say it.
        prompts: File name to prompt, for custom input whose names do not say it.
        python: Interpreter of an environment with ``vbench``; None has ``uv`` make one (the first
            time it fetches packages that take 6 GB on disk).
        device: ``"cuda"`` or ``"cpu"``; None takes CUDA if there is.
        cache: VBench's folder of weights; by default ``$VBENCH_CACHE_DIR`` or ``~/.cache/vbench``.
        download: Let VBench download weights that are absent.
        name: First part of the names of the result files.
        timeout: Seconds after which the run is stopped; None: never.
        option: How messages call a parameter; a command line has names of its own.

    Raises:
        VBenchError: If the request cannot be run, which is found out before anything starts, or
            VBench failed; then with the end of what it printed.
    """
    videos, out = Path(videos), Path(out)
    files = _check_folder(videos, mode)
    cache = weights_folder(cache)
    texts = _check_request(dimensions, mode, prompts, files)
    if not download:
        _check_weights(dimensions, cache, option)
    command = interpreter(python, option)
    check_environment(command, dimensions, option, files if mode == "standard" else None)
    results = out / f"{name}{RESULTS_SUFFIX}"
    results.unlink(missing_ok=True)  # what is read below must be of this run
    info = out / f"{name}_full_info.json"
    with TemporaryDirectory(prefix="astrolabe-vbench-") as stage:
        shown = absolute = Path(os.path.realpath(videos))
        if mode != "standard" and "human_action" in dimensions:
            names = names_with_actions({file: texts[file] for file in sorted(files)})
            shown = Path(os.path.realpath(stage))
            for file, seen in names.items():
                (shown / seen).symlink_to(absolute / file)
            texts = {names[file]: text for file, text in texts.items() if file in names}
        job = {
            "device": device,
            "out": os.path.realpath(out),
            "videos_path": str(shown),
            "name": name,
            "dimension_list": list(dimensions),
            "prompt_list": texts,
            "local": True,
            "mode": "vbench_standard" if mode == "standard" else mode,
        }
        _run([*command, "-c", _DRIVER, json.dumps(job)], cache, timeout)
        if not results.is_file():
            raise VBenchError(f"VBench ended well but did not write {str(results)!r}.")
        if shown != absolute:
            real = {str(shown / seen): str(absolute / file) for file, seen in names.items()}
            for written in (results, info):
                content = _read(written)
                write_atomic(written, json.dumps(_renamed(content, real), indent=4).encode())
    return _collect(results, info, mode)


def weights_folder(cache: str | Path | None = None) -> Path:
    """VBench's folder of weights: the one given, ``$VBENCH_CACHE_DIR`` or ``~/.cache/vbench``."""
    return Path(cache or os.environ.get("VBENCH_CACHE_DIR") or Path.home() / ".cache" / "vbench")


def unfit(dimension: str, prompts: Iterable[str]) -> str | None:
    """Why a dimension means nothing for prompts of your own; None if it does mean something.

    >>> unfit("imaging_quality", ["a cat"]), unfit("human_action", ["a person is marching"])
    (None, None)
    """
    if NEEDS[dimension].own:
        return NEEDS[dimension].own
    if NEEDS[dimension].reads == "action":
        try:
            for prompt in prompts:
                action_of(prompt)
        except VBenchError as error:
            return str(error)
    return None


def _check_folder(videos: Path, mode: str) -> set[str]:
    """The names of the videos."""
    if not videos.is_dir():
        raise VBenchError(f"There is no folder {str(videos)!r}. Name the one with the videos.")
    names = {path.name for path in videos.iterdir()}
    files = {name for name in names if name.endswith(".mp4")}
    if not files:
        raise VBenchError(f"The folder {str(videos)!r} has no .mp4 files.")
    if others := sorted(name for name in names - files if name.lower().endswith((".mp4", ".gif"))):
        raise VBenchError(
            f"The folder {str(videos)!r} also has {others[0]!r}, which VBench takes for a video "
            "and cannot read beside .mp4. Rename it, or take it out."
        )
    if mode == "standard" and (others := sorted(names - files)):
        raise VBenchError(
            f"The folder {str(videos)!r} also has {others[0]!r}. VBench takes the ending of "
            "whatever it finds first for that of all videos. Keep only videos there."
        )
    return files


def _check_request(
    dimensions: Sequence[str], mode: str, prompts: Mapping[str, str] | None, files: set[str]
) -> dict[str, str]:
    """Refuse what means nothing; return the prompt of each file where VBench must be told it."""
    if isinstance(dimensions, str) or not dimensions:
        raise VBenchError(f"dimensions is {dimensions!r}. Give a list of names.")
    for name in dimensions:
        if name not in DIMENSIONS:
            raise VBenchError(f"{name!r} is no dimension of VBench 1.0: {', '.join(DIMENSIONS)}.")
    if mode == "standard":
        if prompts:
            raise VBenchError("VBench's own prompts are fixed. Use mode 'custom_input' for others.")
        return {}
    if mode != "custom_input":
        raise VBenchError(f"mode is {mode!r}. Use 'standard' or 'custom_input'.")
    if prompts and (without := sorted(files - prompts.keys())):
        raise VBenchError(f"There is no prompt for {without[0]!r}. Give one for every video.")
    refused = {name: why for name in sorted(dimensions) if (why := NEEDS[name].own)}
    if refused:
        reasons = "; ".join(
            f"{', '.join(name for name in refused if refused[name] == why)}: {why}"
            for why in dict.fromkeys(refused.values())
        )
        raise VBenchError(
            f"VBench judges {', '.join(refused)} on its own prompts only ({reasons}). "
            "Leave them out."
        )
    reading = [name for name in dimensions if NEEDS[name].reads != "frames"]
    texts = dict(prompts or {name: _prompt_in(name) for name in files if reading})
    for name in sorted(files) if reading else ():
        if not texts[name].strip():
            raise VBenchError(
                f"{', '.join(reading)} reads the prompt, and {name!r} has none: its name says no "
                "words. Give the prompts of all videos (prompts of run_vbench)."
            )
    if "human_action" in dimensions and (no_action := unfit("human_action", texts.values())):
        raise VBenchError(no_action)
    return texts


def _prompt_in(name: str) -> str:
    """The words in a file's name as VBench reads them; empty for a number or a slug."""
    text = _SAMPLE.sub("", Path(name).stem)
    slug = " " not in text and ("_" in text or "-" in text)
    return text if any(map(str.isalpha, text)) and not slug else ""


def _renamed(content: Any, names: Mapping[str, str]) -> Any:  # Any: what JSON holds
    """The same with some texts exchanged, wherever they stand."""
    if isinstance(content, dict):
        return {key: _renamed(value, names) for key, value in content.items()}
    if isinstance(content, list):
        return [_renamed(value, names) for value in content]
    return names.get(content, content) if isinstance(content, str) else content


def _check_weights(dimensions: Sequence[str], cache: Path, option: Callable[[str], str]) -> None:
    absent = absent_weights(dimensions, cache)
    lines = [f"{name} needs {', '.join(map(describe, files))}" for name, files in absent.items()]
    if lines:
        raise VBenchError(
            f"VBench's weights are not in {str(cache)!r}: {'; '.join(lines)}. Put them there, name "
            f"the folder that has them ({option('cache')}), or let VBench fetch them into it "
            f"({option('download')}). temporal_flickering needs none."
        )


def _run(command: list[str], cache: Path, timeout: float | None) -> None:
    environment = {**variables(), "VBENCH_CACHE_DIR": str(cache)}
    try:
        done = subprocess.run(
            command,
            env=environment,
            timeout=timeout,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise VBenchError(f"VBench was stopped after {timeout:g} s. Allow it more.") from None
    if done.returncode:
        tail = "\n".join(done.stdout.strip().splitlines()[-8:])
        raise VBenchError(
            f"VBench ended with code {done.returncode}. The end of its words:\n{tail}"
        )


def _collect(results: Path, info: Path, mode: str) -> VBenchRun:
    """Read the results and compare them with the videos that VBench had planned to read."""
    found = read_results(results)
    scores, plan = _read(results), _read(info)
    try:
        return VBenchRun(found, *_compared(scores, plan, mode))
    except (KeyError, TypeError, AttributeError) as error:
        raise VBenchError(
            f"{str(info)!r} and {str(results)!r} are not what VBench {VERSION} writes ({error!r}). "
            "Run it again."
        ) from error


def _read(path: Path) -> Any:  # Any: whatever JSON holds
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise VBenchError(
            f"{str(path)!r}, which VBench wrote, cannot be read ({error}). Run it again."
        ) from error


def _compared(
    scores: Mapping[str, Any], plan: Sequence[Mapping[str, Any]], mode: str
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Videos that are not there, and by dimension those without a score."""
    missing: list[str] = []
    planned: dict[str, list[str]] = {name: [] for name in scores}
    for entry in plan:
        paths = [Path(path).name for path in entry.get("video_list", ())]
        for name in scores:
            if name in entry["dimension"]:
                planned[name] += paths
        if mode == "standard":
            expected = [f"{entry['prompt_en']}-{index}.mp4" for index in range(SAMPLES)]
            missing += [video for video in expected if video not in paths]
    unscored = {}
    for name, names in planned.items():
        scored = {Path(item["video_path"]).name for item in scores[name][1]}
        if rest := tuple(sorted(set(names) - scored)):
            unscored[name] = rest
    return tuple(dict.fromkeys(missing)), unscored
