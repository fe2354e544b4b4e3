"""VBench-Long: from the scores of clips to those of long videos and of a dimension.

The rules are those of ``vbench2_beta_long`` in the wheel of vbench 0.1.5 (Apache-2.0); the two
mapping tables are its configuration files.
"""

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from astrolabe_eval.errors import VBenchError

#: One clip or video as VBench writes it: ``{"video_path": ..., "video_results": score}``.
Entry: TypeAlias = Mapping[str, Any]
#: In-clip and clip-to-clip weight with which VBench-Long runs unless told otherwise.
DEFAULT_WEIGHTS: Final = (1.0, 0.0)
#: The weights with ``--dev_flag``, for clip-to-clip scores of DINOv2 or DreamSim features.
DEV_WEIGHTS: Final = (0.5, 0.5)


class LongScore(NamedTuple):
    """An entry of a VBench-Long result file.

    Attributes:
        score: Of the dimension.
        clips: Of each clip, as they came in.
        videos: Of each long video.
    """

    score: float
    clips: list[Entry]
    videos: list[Entry]


class FusedScore(NamedTuple):
    """A consistency dimension: its score, and for each video the parts of it."""

    score: float
    videos: list[Entry]


def fuse_clips(
    clips: Sequence[Entry],
    dimension: str | None = None,
    *,
    grouping: Literal["public", "video"] = "public",
) -> LongScore:
    """Average clips over their long video, and the long videos over the dimension.

    Args:
        clips: Path and score of each.
        dimension: ``"imaging_quality"`` divides the score by 100; ``"temporal_flickering"`` adds
            the number of videos to their list, as VBench does.
        grouping: ``"video"``: clips in one folder belong together. ``"public"``: what VBench 0.1.5
            does. There each clip in ``split_clip`` counts as a long video of its own, so that the
            score is the mean over clips; only clips in ``filtered_clips`` (what the static filter
            writes) are joined, by their name up to the first ``_``, which also joins prompts that
            differ after a ``_``. The two scores agree if all videos have equally many clips.

    Raises:
        VBenchError: If there are no clips.

    Example:
        >>> clips = [("a-0/a-0_000", 1.0), ("a-0/a-0_001", 0.5), ("b-0/b-0_full", 0.0)]
        >>> entries = [{"video_path": f"{p}.mp4", "video_results": s} for p, s in clips]
        >>> fuse_clips(entries).score, fuse_clips(entries, grouping="video").score
        (0.5, 0.375)
    """
    if not clips:
        raise VBenchError(
            "There are no clips to average. Cut the videos and score the clips first."
        )
    name = _public_video if grouping == "public" else _video
    scores: dict[str, list[float]] = {}
    for clip in clips:
        scores.setdefault(name(str(clip["video_path"])), []).append(clip["video_results"])
    videos: list[Entry] = [
        {"video_path": video, "video_results": sum(row) / len(row)} for video, row in scores.items()
    ]
    score = sum(video["video_results"] for video in videos) / len(videos)
    if dimension == "temporal_flickering":
        videos.append({"long_video_cnt": len(scores)})
    if dimension == "imaging_quality":
        score /= 100
    return LongScore(score, list(clips), videos)


def fuse_consistency(
    dimension: str,
    in_clip: Sequence[Entry],
    clip_to_clip: Sequence[Entry],
    *,
    weights: tuple[float, float] = DEFAULT_WEIGHTS,
) -> FusedScore:
    """Join the consistency inside clips with that between the first frames of a video's clips.

    The second is first brought to the scale of the first by `map_quantile`. A video without it, or
    with 0, keeps the first alone.

    Args:
        dimension: ``"subject_consistency"`` or ``"background_consistency"``.
        in_clip: Path and score of each long video.
        clip_to_clip: The same of the first frames; matched by file name.
        weights: Of the two. VBench-Long's default ignores the second, and with it whether a video
            stays the same from one clip to the next; `DEV_WEIGHTS` does not.

    Raises:
        VBenchError: If there are no videos or the dimension is another one.
    """
    if not in_clip:
        raise VBenchError("There are no videos to average. Score their clips first.")
    between = {Path(item["video_path"]).name: item["video_results"] for item in clip_to_clip}
    videos: list[Entry] = []
    for item in in_clip:
        inside = item["video_results"]
        raw = between.get(Path(item["video_path"]).name, 0)
        mapped = map_quantile(dimension, raw)
        fused = inside if mapped == 0 else inside * weights[0] + mapped * weights[1]
        videos.append(
            {
                "video_path": item["video_path"],
                "inclip_score": inside,
                "clip2clip_score": raw,
                "mapped_clip2clip_score": mapped,
                "video_results": fused,
            }
        )
    return FusedScore(sum(video["video_results"] for video in videos) / len(videos), videos)


def map_quantile(dimension: str, score: float) -> float:
    """The in-clip score that as many reference videos reach as this clip-to-clip score.

    Args:
        dimension: As in `fuse_consistency`.
        score: Looked up in a table of steps of 0.01 with straight lines between; beyond its ends
            the end counts.

    Raises:
        VBenchError: If VBench-Long has no table for the dimension.

    Example:
        >>> map_quantile("subject_consistency", 0.0), map_quantile("subject_consistency", 1.2)
        (0.0, 1.0)
    """
    tables = _tables()
    if dimension not in tables:
        raise VBenchError(f"There is no mapping for {dimension!r}, only for {', '.join(tables)}.")
    keys, values = tables[dimension]
    place = bisect_left(keys, score)
    if place == 0:
        return values[0]
    if place == len(keys):
        return values[-1]
    low, high = keys[place - 1], keys[place]
    return values[place - 1] + (values[place] - values[place - 1]) * (score - low) / (high - low)


def _public_video(path: str) -> str:
    folder = path.split("filtered_clips")[0]
    return str(Path(folder) / Path(path).name.split("_")[0]) + ".mp4"


def _video(path: str) -> str:
    """The long video of ``split_clip/X-0/X-0_003.mp4``: ``X-0.mp4`` beside ``split_clip``."""
    folder = Path(path).parent
    return str(folder.parent.parent / f"{folder.name}.mp4")


@cache
def _tables() -> dict[str, tuple[list[float], list[float]]]:
    """For each dimension clip-to-clip scores, rising, and what they map to."""
    text = files("astrolabe_eval").joinpath("vbench_long_mapping.json").read_text(encoding="utf-8")
    return {
        name: ([float(key) for key in table], list(table.values()))
        for name, table in json.loads(text).items()
    }
