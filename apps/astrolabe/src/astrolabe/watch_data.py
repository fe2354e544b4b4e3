"""What a run folder tells to whoever watches it: read only, and never trusted to be whole.

Paths are those of `astrolabe.run_folder`, which is not imported as it takes seconds to load torch.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from astrolabe.errors import ConfigError
from astrolabe.watch_metrics import last_entry, number
from astrolabe_eval.input_files import read_json

#: A parsed JSON object. Any: what is in it is only known after the check.
Table = dict[str, Any]

CONFIG = "config.json"
METRICS = "metrics.jsonl"
REPORT = "report.html"
_DEPTH = 3  # folders below the given one in which runs are looked for


def find_runs(path: Path) -> dict[str, Path]:
    """Find the runs in a folder, which may be one itself.

    Returns:
        Name to folder, by name; none if nothing is in the folder yet.

    Raises:
        ConfigError: If there is no such folder, or something is in it but no run.
    """
    if not path.is_dir():
        raise ConfigError(f"there is no folder {str(path)!r}. {_WAY_OUT}")
    root = Path(os.path.realpath(path))
    if (root / CONFIG).is_file():
        read_settings(root)
        return {root.name: root}
    runs = {folder.relative_to(root).as_posix(): folder for folder in _runs_below(root)}
    if not runs and any(not child.name.startswith(".") for child in root.iterdir()):
        raise ConfigError(f"{str(path)!r} is no run folder and holds none. {_WAY_OUT}")
    return dict(sorted(runs.items()))


def read_settings(folder: Path) -> Table:
    """Read the settings of a run, also those that another version of this program wrote.

    Raises:
        ConfigError: If they cannot be read, or are no settings of a run.
    """
    settings = _read_table(folder, CONFIG)
    if not (isinstance(settings.get("train"), dict) and isinstance(settings.get("model"), dict)):
        raise ConfigError(f"{str(folder / CONFIG)!r} holds no settings of a run. {_WAY_OUT}")
    return settings


def summarise(folder: Path) -> Table:
    """Say how far a run is, without reading all of its metrics.

    Returns:
        ``step`` (finished) of ``planned``, ``total`` (the last total reward), and ``age`` (seconds
        since the last step); None where it is not known.
    """
    path = inside(folder, METRICS)
    last = last_entry(path) if path else {}
    return {
        "step": last.get("step", 0),
        "planned": number(read_settings(folder)["train"].get("steps")),
        "total": last.get("reward/total"),
        "age": max(time.time() - path.stat().st_mtime, 0.0) if path and last else None,
    }


def describe(folder: Path) -> Table:
    """Say what there is to see of a run beside its metrics.

    Returns:
        ``settings``: pairs of a name and a text; ``config``: all settings as text; ``held_out``:
        metrics of rewards that are only watched; ``samples``: steps that have some; ``skipped``:
        names of batches that were kept; ``report``: whether there is one.
    """
    settings = read_settings(folder)
    weights = _weights(settings)
    places = _children(folder / "samples", "step-*")
    steps = [place.name.removeprefix("step-") for place in places if _children(place, "*.mp4")]
    return {
        "settings": list(_headlines(settings, weights)),
        "held_out": [f"reward/{name}" for name, weight in weights.items() if not weight],
        "config": json.dumps(settings, indent=2, ensure_ascii=False),
        "samples": [int(step) for step in steps if step.isdecimal()],
        "skipped": [path.name for path in _children(folder / "skipped", "step-*.safetensors")],
        "report": inside(folder, REPORT) is not None,
    }


def read_samples(folder: Path, step: int) -> list[Table]:
    """Describe the sample videos of a step.

    Returns:
        For each its ``path`` in the run folder and a ``version`` that changes with it; and as far
        as ``index.json`` tells, else None: ``prompt``, ``group``, ``reward``, ``scores``, and its
        ``rank`` among the ``of`` videos of its group.
    """
    place = Path("samples", f"step-{step:06d}")
    known = _index(folder, place)
    videos = sorted(
        _children(folder / place, "*.mp4"), key=lambda path: (len(path.stem), path.stem)
    )
    return [_video(folder, path, known.get(path.name, {})) for path in videos]


def inside(folder: Path, name: str) -> Path | None:
    """The file ``name`` of a run, if it is there and lies in its folder when links are followed."""
    try:
        # Path.resolve has errors of its own for a loop of links.
        path = Path(os.path.realpath(folder / name, strict=True))
    except (OSError, ValueError):  # missing, a loop of links, or a zero byte in the name
        return None
    return path if path.is_file() and path.is_relative_to(os.path.realpath(folder)) else None


_WAY_OUT = "Give the folder that `astrolabe train` wrote, or one that holds several, such as runs."


def _runs_below(root: Path) -> Iterator[Path]:
    """Folders of runs. Links are not followed, and nothing inside a run is looked at."""
    for place, folders, names in os.walk(root):
        folder = Path(place)
        deep = len(folder.relative_to(root).parts) >= _DEPTH
        if deep or CONFIG in names:
            folders.clear()
        folders[:] = [name for name in folders if name.isprintable() and name[0] != "."]
        if CONFIG in names:
            try:
                read_settings(folder)
            except ConfigError:
                continue  # the folder of a model has such a file too
            yield folder


def _children(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def _read_table(folder: Path, name: str) -> Table:
    """Read a JSON object; what is another value counts as an empty one."""
    path = inside(folder, name)
    try:
        if path is None:
            raise FileNotFoundError("it is no file of this folder")
        table = read_json(path, whole=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{str(folder / name)!r} cannot be read ({error}). Take it from a backup."
        ) from error
    return table if isinstance(table, dict) else {}


def _index(folder: Path, place: Path) -> dict[str, Table]:
    """What is known of each video by the name of its file; nothing if it cannot be read."""
    try:
        videos = _read_table(folder, f"{place}/index.json").get("videos")
    except ConfigError:
        return {}
    entries = videos if isinstance(videos, list) else []
    return {str(entry.get("file")): entry for entry in entries if isinstance(entry, dict)}


def _video(folder: Path, path: Path, entry: Table) -> Table:
    scores = entry.get("scores")
    return {
        "path": path.relative_to(folder).as_posix(),
        "version": path.stat().st_mtime_ns // 10**6,
        "prompt": str(entry["prompt"]) if entry.get("prompt") else None,
        "scores": {str(key): number(score) for key, score in scores.items()}
        if isinstance(scores, dict)
        else {},
        **{name: number(entry.get(name)) for name in ("group", "reward", "rank", "of")},
    }


def _weights(settings: Table) -> dict[str, float]:
    """Rewards and their weights, 0 for those that are only watched."""
    rewards = settings.get("rewards")
    terms = rewards.items() if isinstance(rewards, dict) else ()
    return {name: number(term.get("weight")) or 0 for name, term in terms if isinstance(term, dict)}


def _headlines(settings: Table, weights: dict[str, float]) -> Iterator[tuple[str, str]]:
    """The settings that one asks for first, in words."""

    def of(table: str, key: str) -> str:
        section = settings.get(table)
        return str(section.get(key, "?")) if isinstance(section, dict) else "?"

    yield "model", of("model", "name")
    yield "objective", of("objective", "name")
    yield "rewards", " + ".join(f"{weight} {name}" for name, weight in weights.items() if weight)
    yield "held out", ", ".join(name for name, weight in weights.items() if not weight) or "none"
    yield "prompts", of("rollout", "prompts")
    yield (
        "a step",
        f"{of('rollout', 'num_prompts')} prompts, {of('rollout', 'group_size')} videos of each, "
        f"windows of {of('rollout', 'num_frames')} latent frames, {of('train', 'updates')} updates",
    )
    yield "adapter", f"LoRA of rank {of('lora', 'rank')}, alpha {of('lora', 'alpha')}"
    yield "learning rate", of("train", "lr")
    yield "seed", of("train", "seed")
    yield "at an alarm", of("guard", "action")
