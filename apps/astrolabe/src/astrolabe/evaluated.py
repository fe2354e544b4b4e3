"""What can be asked of the videos of an evaluation: people's votes, scores over time, VBench."""

import json
import secrets
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from tensordict import TensorDict

from astrolabe.compose_rewards import build_term
from astrolabe.config import RewardTerm
from astrolabe.errors import ConfigError
from astrolabe_eval import (
    Evaluation,
    SuiteFolder,
    VideoError,
    drift_curves,
    first_last_consistency,
    read_votes,
    run_vbench,
    score_intervals,
    totals,
    totals_latex,
    totals_markdown,
    write_votes,
)
from astrolabe_eval.files import write_atomic
from astrolabe_eval.suite_folder import MANIFEST
from astrolabe_rollout.geometry import Geometry
from astrolabe_rollout.scenes import parse_scenes

Say = Callable[[str], None]


def models_in(folder: Path) -> dict[str, SuiteFolder]:
    """Return the models of an evaluation by name, the untrained one first.

    Args:
        folder: ``RUN/evaluation/PROMPTS-DIGEST``; or ``RUN``, if it holds one evaluation.

    Raises:
        ConfigError: If there is none, or several.
        SuiteError: If a manifest is damaged.
    """
    places = sorted({file.parent.parent for file in folder.glob(f"*/{MANIFEST}")})
    places = places or sorted({f.parent.parent for f in folder.glob(f"evaluation/*/*/{MANIFEST}")})
    if len(places) != 1:
        several = f"several: {', '.join(map(str, places))}. Name one of them."
        raise ConfigError(
            f"{str(folder)!r} holds {several}"
            if places
            else f"{str(folder)!r} holds no evaluation. Make one: astrolabe eval RUN."
        )
    found = sorted(file.parent for file in places[0].glob(f"*/{MANIFEST}"))
    return {path.name: SuiteFolder.open(path) for path in found}


def ask_people(folder: Path, pairs: int, question: str, say: Say) -> None:
    """Write the blind page that compares the untrained model with the last checkpoint."""
    models = models_in(folder)
    if len(models) < 2:
        raise ConfigError(f"{str(folder)!r} holds one model. Votes compare two.")
    first, *_, last = models
    before, after = models[first].evaluation(), models[last].evaluation()
    pairs = min(pairs, len(before.suite))
    # Whoever knows the seed can tell the sides.
    page, key = write_votes(
        models[first].path.parent,
        before,
        after,
        labels=(first, last),
        pairs=pairs,
        question=question,
        seed=secrets.randbits(63),
    )
    say(f"Send to raters: {page}")
    say(f"Keep to yourself: {key}")


def count_votes(votes: Path, key: Path, say: Say) -> None:
    """Say how often the tuned model won."""
    result = read_votes(votes, key)
    first, second = result["labels"]
    for name, tally in (("all raters", result["pooled"]), *result["raters"].items()):
        low, high = tally["interval"]
        say(
            f"{name:<16} {second} over {first}: {tally['rate']:.0%} [{low:.0%}, {high:.0%}] of "
            f"{tally['votes']} votes"
        )


def over_time(folder: Path, terms: dict[str, RewardTerm], seconds: float, say: Say) -> None:
    """Score every interval of every video; write ``over-time.json`` beside the videos."""
    scorers = {name: build_term(name, term, "reward") for name, term in terms.items()}

    def scorer(batch: TensorDict) -> TensorDict:
        for score in scorers.values():
            score(batch)
        return batch

    models = models_in(folder)
    content: dict[str, Any] = {}  # Any: what JSON holds
    for label, made in models.items():
        evaluation = made.evaluation()
        paths = {path.name: path for path in _paths(evaluation)}
        prompts, borders = _scenes(made, list(paths), evaluation.suite.prompts)
        found = score_intervals(
            paths,
            scorer,
            prompts,
            model=", ".join(scorers),
            length=seconds,
            borders=borders or None,
        )
        drift = drift_curves(found)
        for name, curve in drift.items():
            means = "  ".join(f"{value:.4f}" for value in curve["mean"])
            change = curve["change"]
            end = "" if change is None else f"   last minus first {change:+.4f}"
            say(f"{label:<14} {name:<16} {means}{end}")
        content[label] = {**found, "drift": drift, "missing": dict(evaluation.missing)}
        content[label]["first_last_consistency"] = {
            name: _alike(path, min(2.0, seconds)) for name, path in paths.items()
        }
    file = next(iter(models.values())).path.parent / "over-time.json"
    write_atomic(file, json.dumps(content, indent=1).encode())
    say(f"Every interval: {file}")


def vbench(folder: Path, dimensions: Sequence[str], python: Path | None, say: Say) -> None:
    """Run VBench over each model's videos; write ``vbench.json``, ``.md`` and ``.tex``."""
    models = models_in(folder)
    parent = next(iter(models.values())).path.parent
    results = {}
    for label, made in models.items():
        own = made.suite.name == "vbench"
        say(f"VBench: {label}, {', '.join(dimensions)} ...")
        found = run_vbench(
            made.path / "videos",
            parent / "vbench" / label,
            dimensions,
            mode="standard" if own else "custom_input",
            prompts=None if own else dict(zip(made.names, made.suite.prompts, strict=True)),
            python=python,
        )
        for name, left_out in (("missing", found.missing), ("not scored", found.unscored)):
            if left_out:
                say(f"{label}: {len(left_out)} videos {name}, the first: {next(iter(left_out))}")
        results[label] = found.results.scores
        for name, score in found.results.scores.items():
            say(f"{label:<14} {name:<24} {score:.4f}")
    table = {label: totals(scores) for label, scores in results.items()}
    write_atomic(parent / "vbench.json", json.dumps(results, indent=1).encode())
    write_atomic(parent / "vbench.md", totals_markdown(table).encode())
    write_atomic(parent / "vbench.tex", totals_latex(table).encode())
    say(totals_markdown(table).rstrip())


def _scenes(
    made: SuiteFolder, names: Sequence[str], scripts: Sequence[str]
) -> tuple[dict[str, list[str]], dict[str, list[int]]]:
    """What each video shows, scene by scene, and the first frame of each scene but the first."""
    given = made.protocol
    if not given.get("scenes"):
        return {name: [text] for name, text in zip(names, scripts, strict=True)}, {}
    # Sizes do not matter for lengths.
    geometry = Geometry(16, 16, temporal=given["temporal"], chunk=given["chunk"])
    default = given["latent_frames"] // given["chunk"]
    prompts, borders = {}, {}
    for name, script in zip(names, scripts, strict=True):
        scenes = parse_scenes(script)
        lengths = [scene.chunks(geometry, made.fps, default) for scene in scenes]
        ends = accumulate(length * given["chunk"] for length in lengths[:-1])
        prompts[name] = [scene.prompt for scene in scenes]
        # The first latent frame is one pixel frame, each other `temporal` of them.
        borders[name] = [1 + (end - 1) * given["temporal"] for end in ends]
    return prompts, borders


def _paths(evaluation: Evaluation) -> tuple[Path, ...]:
    """The files of an evaluation that was read from a folder."""
    paths: tuple[Path, ...] = getattr(evaluation.videos, "paths", ())
    return paths


def _alike(path: Path, seconds: float) -> float | None:
    """How alike a video's first and last clip are; None if it is too short for two."""
    try:
        return first_last_consistency(path, seconds=seconds)
    except VideoError:
        raise
    except ValueError:
        return None
