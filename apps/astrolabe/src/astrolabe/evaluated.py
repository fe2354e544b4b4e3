"""What can be asked of the videos of an evaluation: people's votes, scores over time, VBench."""

import json
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from tensordict import TensorDict

from astrolabe.compose_rewards import build_judge
from astrolabe.config import RewardTerm
from astrolabe.errors import ConfigError
from astrolabe_eval import (
    Evaluation,
    SuiteError,
    SuiteFolder,
    VideoError,
    drift_curves,
    first_last_consistency,
    keep_shared,
    read_votes,
    run_vbench,
    score_intervals,
    totals,
    totals_latex,
    totals_markdown,
    write_votes,
)
from astrolabe_eval.files import write_atomic
from astrolabe_eval.suite_folder import SCORES
from astrolabe_eval.suite_manifest import MANIFEST
from astrolabe_eval.vbench import DIMENSIONS
from astrolabe_eval.vbench_environment import are_standard
from astrolabe_eval.vbench_run import unfit
from astrolabe_rollout.geometry import Geometry
from astrolabe_rollout.scenes import parse_scenes

Say = Callable[[str], None]
MAKE = "To make what is lacking: astrolabe eval RUN."


def models_in(folder: Path) -> dict[str, SuiteFolder]:
    """Return the models of an evaluation by name, the untrained one first.

    Args:
        folder: ``RUN/evaluation/PROMPTS-DIGEST``; or ``RUN``, if it holds one evaluation.

    Raises:
        ConfigError: If there is none, or several, or a manifest is damaged.
    """
    models = _models(folder, "*") or _models(folder, "evaluation/*/*")
    places = sorted({model.parent for model in models})
    if len(places) != 1:
        several = f"several: {', '.join(map(str, places))}. Name one of them."
        raise ConfigError(
            f"{str(folder)!r} holds {several}"
            if places
            else f"{str(folder)!r} holds no evaluation. Make one: astrolabe eval RUN."
        )
    try:
        return {path.name: SuiteFolder.open(path) for path in models}
    except SuiteError as error:
        raise ConfigError(f"{error} {MAKE}") from error


def _models(folder: Path, pattern: str) -> list[Path]:
    """The folders of models; one whose manifest is gone must not be overlooked."""
    marks = (MANIFEST, SCORES)
    return sorted({file.parent for mark in marks for file in folder.glob(f"{pattern}/{mark}")})


def finished(models: Mapping[str, SuiteFolder], say: Say) -> dict[str, Evaluation]:
    """Return what the models made, and say which videos are left out and why.

    Raises:
        ConfigError: If a model has made nothing.
        OSError: If a file cannot be read.
    """
    found = {}
    for label, made in models.items():
        try:
            found[label] = made.evaluation()
        except SuiteError as error:
            raise ConfigError(f"{str(made.path)!r} has no finished video. {MAKE}") from error
        left_out = Counter(found[label].missing.values())
        for why, count in left_out.items():
            say(f"{label}: {count} {'videos' if count > 1 else 'video'} left out: {why}. {MAKE}")
    return found


def ask_people(folder: Path, pairs: int, question: str, say: Say) -> None:
    """Write the blind page that compares the untrained model with the last checkpoint."""
    models = models_in(folder)
    if len(models) < 2:
        raise ConfigError(f"{str(folder)!r} holds one model. Votes compare two.")
    first, *_, last = models
    found = finished({name: models[name] for name in (first, last)}, say)
    if any(evaluation.missing for evaluation in found.values()):
        found = keep_shared(found)
    before, after = found.values()
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
            f"{tally['votes']} votes on {tally['prompts']} independent prompts"
        )


def over_time(folder: Path, terms: dict[str, RewardTerm], seconds: float, say: Say) -> None:
    """Score every interval of every video; write ``over-time.json`` beside the videos."""
    scorers = {name: build_judge(name, term, "reward", "invalid") for name, term in terms.items()}

    def scorer(batch: TensorDict) -> TensorDict:
        for score in scorers.values():
            score(batch)
        return batch

    models = models_in(folder)
    content: dict[str, Any] = {}  # Any: what JSON holds
    found_in = finished(models, say)
    for label, made in models.items():
        evaluation = found_in[label]
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
            means = "  ".join("n/a" if v is None else f"{v:.4f}" for v in curve["mean"])
            lost = _lost(found["intervals"], name)
            say(f"{label:<14} {name:<16} {means}{_last_minus_first(curve)}{lost}")
        content[label] = {**found, "drift": drift, "missing": dict(evaluation.missing)}
        content[label]["first_last_consistency"] = {
            name: _alike(path, min(2.0, seconds)) for name, path in paths.items()
        }
    file = next(iter(models.values())).path.parent / "over-time.json"
    write_atomic(file, json.dumps(content, indent=1, allow_nan=False).encode())
    say(f"Every interval: {file}")


def _lost(intervals: Sequence[Mapping[str, Any]], name: str) -> str:
    """How many intervals of all videos lack a score; nothing if none does."""
    lost = sum(part["unscored"][name] for part in intervals)
    return f"   {lost} of {sum(part['videos'] for part in intervals)} intervals unscored" * bool(
        lost
    )


def _last_minus_first(curve: dict[str, Any]) -> str:
    """The change over time with its interval and what it rests on; nothing if there is none."""
    if curve["change"] is None:
        return ""
    ends = ", ".join(f"{end:+.4f}" for end in curve["change_interval"] or ())
    return (
        f"   last minus first {curve['change']:+.4f} [{ends or 'no interval'}] "
        f"({curve['change_prompts']} prompts)"
    )


def vbench(
    folder: Path,
    dimensions: Sequence[str],
    say: Say,
    *,
    python: Path | None = None,
    cache: Path | None = None,
    download: bool = False,
    device: str | None = None,
) -> None:
    """Run VBench over each model's videos; write ``vbench.json``, ``.md`` and ``.tex``.

    Args:
        folder: As in :func:`models_in`.
        dimensions: Names, or ``"all"`` for those that mean something for the prompts.
        say: Shows a line.
        python: As in :func:`run_vbench`, like all that follow.
        cache: Folder of weights.
        download: Let VBench fetch what is absent there.
        device: To compute on.
    """
    models = models_in(folder)
    parent = next(iter(models.values())).path.parent
    results = {}
    left_out: list[str] = []
    for label, made in models.items():
        _refuse_damage(made)
        standard = are_standard(made.names, python=python, option=_option)
        prompts = None if standard else dict(zip(made.names, made.suite.prompts, strict=True))
        chosen = _chosen(dimensions, prompts, say)
        say(f"VBench: {label}, {', '.join(chosen)} ...")
        found = run_vbench(
            made.path / "videos",
            parent / "vbench" / label,
            chosen,
            mode="standard" if standard else "custom_input",
            prompts=prompts,
            python=python,
            device=device,
            cache=cache,
            download=download,
            option=_option,
        )
        if found.missing:
            say(f"{label}: {len(found.missing)} videos missing, the first: {found.missing[0]}")
        lost = [
            f"{label}: {name}: {len(videos)} videos not scored and left out, the first: {videos[0]}"
            for name, videos in found.unscored.items()
        ]
        for line in lost:
            say(line)
        left_out += lost
        results[label] = found.results.scores
        for name, score in found.results.scores.items():
            say(f"{label:<14} {name:<24} {score:.4f}")
    table = {label: totals(scores) for label, scores in results.items()}
    write_atomic(parent / "vbench.json", json.dumps(results, indent=1).encode())
    notes = "".join(f"\n{line}.\n" for line in left_out)
    write_atomic(parent / "vbench.md", (totals_markdown(table) + notes).encode())
    write_atomic(parent / "vbench.tex", totals_latex(table).encode())
    say(totals_markdown(table).rstrip())


def _refuse_damage(made: SuiteFolder) -> None:
    """VBench reads all that lies in the folder of videos."""
    for path, why in made.damage().items():
        raise ConfigError(f"{str(path)!r} {why}. {MAKE}")


def _option(parameter: str) -> str:
    """How the command line calls a parameter."""
    return f"--{parameter}"


def _chosen(dimensions: Sequence[str], prompts: Mapping[str, str] | None, say: Say) -> list[str]:
    """The dimensions asked for; of all of them those that the prompts allow."""
    if "all" not in dimensions:
        return list(dict.fromkeys(dimensions))
    if prompts is None:
        return list(DIMENSIONS)
    reasons = {name: unfit(name, prompts.values()) for name in DIMENSIONS}
    for why in dict.fromkeys(reason for reason in reasons.values() if reason):
        say(f"Left out: {', '.join(name for name in reasons if reasons[name] == why)} ({why})")
    return [name for name, why in reasons.items() if why is None]


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
