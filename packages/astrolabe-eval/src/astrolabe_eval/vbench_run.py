"""Run VBench itself in an environment of its own, since its pins fit no other program.

What is called is VBench's Python interface. Its command line starts NCCL and so needs a CUDA device
for every dimension, also for those that run on a CPU.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

from astrolabe_eval.errors import VBenchError
from astrolabe_eval.vbench import DIMENSIONS, RESULTS_SUFFIX, Results, read_results
from astrolabe_eval.vbench_prompts import SAMPLES

VERSION: Final = "0.1.5"
#: The newest Python for which what VBench 0.1.5 pins (tokenizers 0.13) comes as a wheel.
PYTHON: Final = "3.11"

_GRIT = ("grit_model/grit_b_densecap_objectdet.pth",)
_VICLIP = ("ViCLIP/ViClip-InternVid-10M-FLT.pth",)
#: Dimension to the files it needs in VBench's cache folder.
WEIGHTS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "subject_consistency": (
            "dino_model/facebookresearch_dino_main/hubconf.py",
            "dino_model/dino_vitbase16_pretrain.pth",
        ),
        "background_consistency": ("clip_model/ViT-B-32.pt",),
        "temporal_flickering": (),
        "motion_smoothness": ("amt_model/amt-s.pth",),
        "dynamic_degree": ("raft_model/models/raft-things.pth",),
        "aesthetic_quality": (
            "clip_model/ViT-L-14.pt",
            "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",
        ),
        "imaging_quality": ("pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",),
        "object_class": _GRIT,
        "multiple_objects": _GRIT,
        "human_action": ("umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth",),
        "color": _GRIT,
        "spatial_relationship": _GRIT,
        "scene": ("caption_model/tag2text_swin_14m.pth",),
        "appearance_style": ("clip_model/ViT-B-32.pt",),
        "temporal_style": _VICLIP,
        "overall_consistency": _VICLIP,
    }
)
#: Dimensions that need what VBench's list knows about each prompt.
_STANDARD_ONLY: Final = frozenset(
    {
        "object_class",
        "multiple_objects",
        "scene",
        "appearance_style",
        "color",
        "spatial_relationship",
    }
)
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
) -> VBenchRun:
    """Run VBench over a folder of videos and read what it wrote.

    Args:
        videos: A folder of ``.mp4`` files; ``{prompt}-{sample}.mp4`` for ``"standard"``.
        out: Where VBench writes ``{name}_eval_results.json`` and ``{name}_full_info.json``.
        dimensions: Which; those of object detection also need ``detectron2`` in the environment,
            which only ``python`` can have.
        mode: ``"standard"`` for VBench's own prompts, ``"custom_input"`` for others.
        prompts: File name to prompt, for custom input whose names do not say it.
        python: Interpreter of an environment with ``vbench``; None has ``uv`` make one (the first
            time it fetches packages that take 6 GB on disk).
        device: ``"cuda"`` or ``"cpu"``; None takes CUDA if there is.
        cache: VBench's folder of weights; by default ``$VBENCH_CACHE_DIR`` or ``~/.cache/vbench``.
        download: Let VBench download weights that are absent.
        name: First part of the names of the result files.
        timeout: Seconds after which the run is stopped; None: never.

    Raises:
        VBenchError: If the request cannot be run, which is found out before anything starts, or
            VBench failed; then with the end of what it printed.
    """
    files = _check_folder(Path(videos), mode)
    cache = Path(cache or os.environ.get("VBENCH_CACHE_DIR") or Path.home() / ".cache" / "vbench")
    _check_request(dimensions, mode, prompts, files)
    if not download:
        _check_weights(dimensions, cache)
    job = {
        "device": device,
        "out": str(Path(out).resolve()),
        "videos_path": str(Path(videos).resolve()),
        "name": name,
        "dimension_list": list(dimensions),
        "prompt_list": dict(prompts or {}),
        "local": True,
        "mode": "vbench_standard" if mode == "standard" else mode,
    }
    results = Path(out) / f"{name}{RESULTS_SUFFIX}"
    results.unlink(missing_ok=True)  # what is read below must be of this run
    _run([*_interpreter(python), "-c", _DRIVER, json.dumps(job)], cache, timeout)
    if not results.is_file():
        raise VBenchError(f"VBench ended well but did not write {str(results)!r}.")
    return _collect(results, Path(out) / f"{name}_full_info.json", mode)


def _check_folder(videos: Path, mode: str) -> set[str]:
    """The names of the videos."""
    if not videos.is_dir():
        raise VBenchError(f"There is no folder {str(videos)!r}. Name the one with the videos.")
    names = {path.name for path in videos.iterdir()}
    files = {name for name in names if name.endswith(".mp4")}
    if not files:
        raise VBenchError(f"The folder {str(videos)!r} has no .mp4 files.")
    if mode == "standard" and (others := sorted(names - files)):
        raise VBenchError(
            f"The folder {str(videos)!r} also has {others[0]!r}. VBench takes the ending of "
            "whatever it finds first for that of all videos. Keep only videos there."
        )
    return files


def _check_request(
    dimensions: Sequence[str], mode: str, prompts: Mapping[str, str] | None, files: set[str]
) -> None:
    if isinstance(dimensions, str) or not dimensions:
        raise VBenchError(f"dimensions is {dimensions!r}. Give a list of names.")
    for name in dimensions:
        if name not in DIMENSIONS:
            raise VBenchError(f"{name!r} is no dimension of VBench 1.0: {', '.join(DIMENSIONS)}.")
    if mode == "standard":
        if prompts:
            raise VBenchError("VBench's own prompts are fixed. Use mode 'custom_input' for others.")
        return
    if mode != "custom_input":
        raise VBenchError(f"mode is {mode!r}. Use 'standard' or 'custom_input'.")
    if refused := sorted(_STANDARD_ONLY.intersection(dimensions)):
        raise VBenchError(
            f"VBench judges {', '.join(refused)} on its own prompts only. Leave them out."
        )
    if prompts and (without := sorted(files - prompts.keys())):
        raise VBenchError(f"There is no prompt for {without[0]!r}. Give one for every video.")


def _check_weights(dimensions: Sequence[str], cache: Path) -> None:
    absent = {
        name: [file for file in WEIGHTS[name] if not (cache / file).exists()] for name in dimensions
    }
    lines = [f"{name} needs {', '.join(rest)}" for name, rest in absent.items() if rest]
    if lines:
        raise VBenchError(
            f"VBench's weights are not in {str(cache)!r}: {'; '.join(lines)}. Put them there, name "
            "the folder that has them (cache=), or let VBench fetch them (download=True). "
            "temporal_flickering needs none."
        )


def _interpreter(python: str | Path | None) -> list[str]:
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
            f"vbench=={VERSION} (python=)."
        )
    environment = ["--isolated", "--no-project", "--python", PYTHON, "--with", f"vbench=={VERSION}"]
    return [uv, "run", *environment, "python"]


def _run(command: list[str], cache: Path, timeout: float | None) -> None:
    environment = {**os.environ, "VBENCH_CACHE_DIR": str(cache)}
    # Of this process's environment and of no use in the other one.
    for name in ("VIRTUAL_ENV", "PYTHONHOME"):
        environment.pop(name, None)
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
    scores = json.loads(results.read_text(encoding="utf-8"))
    plan: list[dict[str, Any]] = json.loads(info.read_text(encoding="utf-8"))
    missing = []
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
    return VBenchRun(found, tuple(dict.fromkeys(missing)), unscored)
