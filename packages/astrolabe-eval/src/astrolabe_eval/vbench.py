"""VBench 1.0: its sixteen dimensions, its result files and its totals.

Huang et al. 2024, "VBench: Comprehensive Benchmark Suite for Video Generative Models" (arXiv
2311.17982). The bounds and weights are those of the public leaderboard (``scripts/constant.py`` of
Vchitect/VBench, Apache-2.0). Its script counts a dimension that is missing as 0, which becomes a
negative score after normalisation; here such a total is not given at all.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from astrolabe_eval.errors import VBenchError
from astrolabe_eval.input_files import read_json
from astrolabe_eval.rows import check_mapping
from astrolabe_eval.vbench_flat import shares_of

#: Cosines of a video and a text, far below 1. All other raw scores are at least 0.
_COSINES: Final = frozenset({"appearance_style", "temporal_style", "overall_consistency"})
_MOST_COSINE: Final = 0.5
#: Means of cosines in float32 may exceed 1 by that much, of a still video for example.
_ROUNDING: Final = 1e-4
#: How VBench ends the name of a file with results.
RESULTS_SUFFIX: Final = "_eval_results.json"
_QUALITY_WEIGHT, _SEMANTIC_WEIGHT = 4, 1


class Dimension(NamedTuple):
    """Raw scores ``low`` and ``high`` become 0 and 1; ``weight`` counts within the group."""

    low: float
    high: float
    weight: float = 1


#: The dimensions of the quality score, in the order of the leaderboard.
QUALITY: Final[Mapping[str, Dimension]] = MappingProxyType(
    {
        "subject_consistency": Dimension(0.1462, 1.0),
        "background_consistency": Dimension(0.2615, 1.0),
        "temporal_flickering": Dimension(0.6293, 1.0),
        "motion_smoothness": Dimension(0.706, 0.9975),
        "aesthetic_quality": Dimension(0.0, 1.0),
        "imaging_quality": Dimension(0.0, 1.0),
        "dynamic_degree": Dimension(0.0, 1.0, 0.5),
    }
)
#: The dimensions of the semantic score.
SEMANTIC: Final[Mapping[str, Dimension]] = MappingProxyType(
    {
        "object_class": Dimension(0.0, 1.0),
        "multiple_objects": Dimension(0.0, 1.0),
        "human_action": Dimension(0.0, 1.0),
        "color": Dimension(0.0, 1.0),
        "spatial_relationship": Dimension(0.0, 1.0),
        "scene": Dimension(0.0, 0.8222),
        "appearance_style": Dimension(0.0009, 0.2855),
        "temporal_style": Dimension(0.0, 0.364),
        "overall_consistency": Dimension(0.0, 0.364),
    }
)
#: All sixteen.
DIMENSIONS: Final[Mapping[str, Dimension]] = MappingProxyType({**QUALITY, **SEMANTIC})


@dataclass(frozen=True)
class Results:
    """What result files hold.

    Attributes:
        scores: Dimension to raw score, as VBench writes it.
        sources: Dimension to the file that gave it.
        notes: Dimension to what its file says about how it was computed, where it says so.
    """

    scores: Mapping[str, float]
    sources: Mapping[str, Path]
    notes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Totals:
    """Quality, semantic and total score, as shares; published tables show them in percent.

    Attributes:
        quality: None if one of its dimensions is missing.
        semantic: None if one of its dimensions is missing.
        total: ``(4 quality + semantic) / 5``; None if either is.
        normalised: Dimension to ``(raw - low) / (high - low)``, not clipped, without its weight.
        missing: Dimensions without a score, in the order of `DIMENSIONS`.
        quality_present: Weighted mean of the quality dimensions that are there, None if none is.
            Equal to ``quality`` if all are; else no figure of another model compares to it.
        semantic_present: The same of the semantic dimensions.
    """

    quality: float | None
    semantic: float | None
    total: float | None
    normalised: Mapping[str, float]
    missing: tuple[str, ...]
    quality_present: float | None
    semantic_present: float | None

    @property
    def partial(self) -> bool:
        """Whether a dimension is missing, so that there is no total."""
        return bool(self.missing)


def totals(scores: Mapping[str, float]) -> Totals:
    """Normalise and average, as the leaderboard does.

    Args:
        scores: Dimension to raw score, ``Results.scores`` for example; names with underscores.

    Raises:
        VBenchError: If a name is no dimension of VBench 1.0, or a score is not finite or none that
            VBench can give: above 1, as in percent, or below 0.

    Example:
        >>> scores = {name: bounds.high for name, bounds in DIMENSIONS.items()}
        >>> totals(scores).total
        1.0
        >>> del scores["scene"]
        >>> totals(scores).total, totals(scores).missing, totals(scores).semantic_present
        (None, ('scene',), 1.0)
    """
    check_mapping("scores", scores, "names of dimensions with numbers")
    for name, score in scores.items():
        if name not in DIMENSIONS:
            raise VBenchError(f"{name!r} is no dimension of VBench 1.0: {', '.join(DIMENSIONS)}.")
        if isinstance(score, bool) or not isinstance(score, Real):
            raise TypeError(f"The score of {name} is {score!r:.80}. Give a number.")
        if not math.isfinite(score):
            raise VBenchError(f"The score of {name} is {score}. Leave out what was not computed.")
        if score > 1 + _ROUNDING:
            raise VBenchError(
                f"The score of {name} is {score}, but raw scores do not exceed 1. If it is in "
                "percent, divide all scores by 100."
            )
        if score < (-_MOST_COSINE if name in _COSINES else 0):
            raise VBenchError(
                f"The score of {name} is {score}, which VBench does not give. Leave out what was "
                "not computed."
            )
    normalised = {
        name: (scores[name] - low) / (high - low)
        for name, (low, high, _) in DIMENSIONS.items()
        if name in scores
    }
    missing = tuple(name for name in DIMENSIONS if name not in scores)
    quality_present = _weighted_mean(normalised, QUALITY)
    semantic_present = _weighted_mean(normalised, SEMANTIC)
    quality = quality_present if QUALITY.keys() <= scores.keys() else None
    semantic = semantic_present if SEMANTIC.keys() <= scores.keys() else None
    total = None
    if quality is not None and semantic is not None:
        total = (quality * _QUALITY_WEIGHT + semantic * _SEMANTIC_WEIGHT) / (
            _QUALITY_WEIGHT + _SEMANTIC_WEIGHT
        )
    return Totals(quality, semantic, total, normalised, missing, quality_present, semantic_present)


def read_results(paths: str | Path | Sequence[str | Path]) -> Results:
    """Read result files of VBench, or a flat one of the leaderboard.

    A flat file is ``{"subject consistency": 0.96, ...}``: dimension to raw score, in any letters,
    with spaces or underscores. If all its numbers exceed 1, or are texts such as ``"96.1%"``, they
    are taken for percent. Its totals are passed over, since they follow from the rest.

    Args:
        paths: Files, or folders with ``*_eval_results.json`` in them or one folder down. What lies
            in two places must be equal: unlike VBench's script, no file overwrites another.

    Returns:
        Every dimension that was found, in the order of `DIMENSIONS`.

    Raises:
        VBenchError: If there is no result file, one is damaged or of another version, two files
            have different results of one dimension, or a flat one mixes shares and percent. The
            message names the file.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    found: dict[str, tuple[Path, list[Any]]] = {}
    for path in dict.fromkeys(file for item in given for file in _result_files(Path(item))):
        for name, entry in _read(path).items():
            if name in found and found[name][1] != entry:
                raise VBenchError(
                    f"{str(found[name][0])!r} and {str(path)!r} have different results of {name}. "
                    "Name only the files of one evaluation."
                )
            found.setdefault(name, (path, entry))
    ordered = {name: found[name] for name in DIMENSIONS if name in found}
    return Results(
        scores={name: float(entry[0]) for name, (_, entry) in ordered.items()},
        sources={name: path for name, (path, _) in ordered.items()},
        notes={
            name: entry[2]
            for name, (_, entry) in ordered.items()
            if len(entry) > 2 and isinstance(entry[2], dict)
        },
    )


def _weighted_mean(normalised: Mapping[str, float], group: Mapping[str, Dimension]) -> float | None:
    weights = {name: group[name].weight for name in group if name in normalised}
    if not weights:
        return None
    return sum(normalised[name] * weights[name] for name in weights) / sum(weights.values())


def _result_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    pattern = f"*{RESULTS_SUFFIX}"
    files = sorted(path.glob(pattern)) + sorted(path.glob(f"*/{pattern}"))
    if not files:
        raise VBenchError(
            f"The folder {str(path)!r} has no *{RESULTS_SUFFIX}, nor has a folder in it. "
            "Name the folder that VBench wrote to."
        )
    return files


def _read(path: Path) -> dict[str, list[Any]]:
    """The entries of one file, each ``[raw score, per video, ...]``."""
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise VBenchError(f"There is no result file {str(path)!r}. Check the path.") from None
    except OSError as error:
        raise VBenchError(
            f"{str(path)!r} cannot be read ({error.strerror}). Name a result file."
        ) from error
    except ValueError as error:
        raise VBenchError(
            f"{str(path)!r} is damaged: it is not JSON ({error}). Run the evaluation again."
        ) from error
    if not isinstance(content, dict) or not content:
        raise VBenchError(
            f"{str(path)!r} is no result file of VBench 1.0: it has no dimensions. "
            f"Name the files that end in {RESULTS_SUFFIX}."
        )
    if not any(isinstance(entry, list) for entry in content.values()):
        shares = shares_of(path, content, DIMENSIONS)
        for name in _COSINES & shares.keys():
            if shares[name] > _MOST_COSINE:
                raise VBenchError(
                    f"{str(path)!r}: {name} is {shares[name]}, but raw scores of it lie below "
                    f"{DIMENSIONS[name].high}. If it is normalised already, write the raw score."
                )
        return {name: [share, []] for name, share in shares.items()}
    for name, entry in content.items():
        _check_entry(path, name, entry)
    return content


def _check_entry(path: Path, name: str, entry: object) -> None:
    if name not in DIMENSIONS:
        raise VBenchError(
            f"{str(path)!r} has {name!r}, which is no dimension of VBench 1.0. Files of VBench-2.0 "
            "or VBench-I2V cannot be totalled here."
        )
    if not isinstance(entry, list) or len(entry) < 2 or not isinstance(entry[1], list):
        raise VBenchError(
            f"{str(path)!r}: {name} is not [score, [one entry for each video]]. It is damaged or "
            "of another version. Run VBench 0.1.5 again."
        )
    score = entry[0]
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise VBenchError(
            f"{str(path)!r}: the score of {name} is {score!r}. Perhaps no video was found or read; "
            "see what VBench printed."
        )
    if abs(score) > 1:
        raise VBenchError(
            f"{str(path)!r}: the score of {name} is {score}, but raw scores do not exceed 1. "
            "It is of another version or in percent."
        )
