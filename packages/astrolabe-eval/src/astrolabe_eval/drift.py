"""How a long video changes from its beginning to its end."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from astrolabe_eval.frames import Frames, as_frames
from astrolabe_eval.grouping import independent
from astrolabe_eval.intervals import SAMPLE_FPS, Interval, VideoSource, sampled_frames, shape_of
from astrolabe_eval.rows import check_mapping
from astrolabe_eval.statistics import bootstrap_interval
from astrolabe_eval.torch_extra import require_torch

#: Takes ``uint8 [n, 3, H, W]``, gives one row of numbers for each frame.
Embedder: TypeAlias = Callable[[Frames], NDArray[np.floating[Any]]]

_THUMBNAIL = 16


def drift_curves(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each score along the clips of the videos, and its change from the first to the last.

    Args:
        result: From `score_intervals`; with ``length=2`` its intervals are VBench-Long's clips
            but for the last one, which overlaps there.

    Returns:
        For each score: ``index`` of the clips, ``mean`` over the videos that reach it and have the
        score (None: none has), their number ``videos``, the 95 % ``interval`` of the mean (None for
        fewer than six independent prompts); ``change``, the mean over videos of two scored clips or
        more of last clip minus first, ``change_interval``, its own interval in pairs, and
        ``change_prompts``, how many independent prompts it rests on. Videos whose scenes show the
        same prompts count together.
    """
    check_mapping("result", result, "what score_intervals returned")
    rows = [row["intervals"] for row in result["videos"].values()]
    scripts = [" | ".join(dict.fromkeys(part["prompt"] for part in row)) for row in rows]
    return {name: _curve(name, rows, scripts) for name in result["overall"]}


def _curve(
    name: str, rows: Sequence[Sequence[Mapping[str, Any]]], scripts: Sequence[str]
) -> dict[str, Any]:
    values = [[_score(part["scores"][name]) for part in row] for row in rows]
    length = max(map(len, values))
    columns = [
        np.array([row[index] if len(row) > index else math.nan for row in values])
        for index in range(length)
    ]
    known = [[value for value in row if math.isfinite(value)] for row in values]
    moved = np.array([row[-1] - row[0] if len(row) > 1 else math.nan for row in known])
    change, interval, prompts = _estimate(moved, scripts)
    estimates = [_estimate(column, scripts) for column in columns]
    return {
        "index": list(range(length)),
        "videos": [int(np.isfinite(column).sum()) for column in columns],
        "prompts": [estimate[2] for estimate in estimates],
        "mean": [estimate[0] for estimate in estimates],
        "interval": [estimate[1] for estimate in estimates],
        "change": change,
        "change_interval": interval,
        "change_prompts": prompts,
    }


def _score(value: float | None) -> float:
    return math.nan if value is None else value


def _estimate(
    values: NDArray[np.float64], scripts: Sequence[str]
) -> tuple[float | None, list[float] | None, int]:
    """Mean of what is known, its interval, and how many independent prompts they rest on."""
    known = np.isfinite(values)
    kept = [script for script, there in zip(scripts, known, strict=True) if there]
    if not kept:
        return None, None, 0
    worth = independent(kept)
    mean = float(values[known].mean())
    if len(kept) < 2:
        return mean, None, worth
    ends = bootstrap_interval(values[known], prompts=kept)
    return mean, list(ends) if np.isfinite(ends).all() else None, worth


def thumbnails(frames: Frames) -> NDArray[np.float32]:
    """Frames of 16 by 16 pixels around mid-grey as rows of numbers, ``float32 [n, 768]``.

    They hold layout and colour and nothing else: a subject that is exchanged for a like one goes
    unnoticed. Give features of DINO or CLIP to judge what is shown.
    """
    require_torch("first_last_consistency without an embed of its own")
    import torch

    pixels = torch.from_numpy(as_frames(frames)).float() / 127.5 - 1
    small = torch.nn.functional.adaptive_avg_pool2d(pixels, _THUMBNAIL)
    rows: NDArray[np.float32] = small.flatten(1).numpy()
    return rows


def first_last_consistency(
    video: VideoSource,
    *,
    fps: float | None = None,
    seconds: float = 2.0,
    sample_fps: float = SAMPLE_FPS,
    embed: Embedder = thumbnails,
) -> float:
    """How alike the first and the last clip of a video are.

    Args:
        video: Pixels ``uint8 [F, 3, H, W]`` or a file.
        fps: Of pixels; a file has its own.
        seconds: Of a clip; the two must not overlap.
        sample_fps: Frames looked at per second.
        embed: Gives a row of numbers for each frame.

    Returns:
        Mean cosine of all pairs of a frame of the first and one of the last clip, -1 to 1.

    Raises:
        ValueError: If the video is too short for two clips, or an embedding is 0 or not finite.
        VideoError: If a file cannot be read.

    Example:
        >>> video = np.full((64, 3, 32, 32), 200, dtype=np.uint8)
        >>> round(first_last_consistency(video, fps=16), 3)
        1.0
    """
    rate, count = shape_of(video, fps)
    end = count / rate
    if not 0 < 2 * seconds <= end:
        raise ValueError(f"A video of {end:g} s has no two clips of {seconds:g} s.")
    clips = (Interval(0, seconds, ""), Interval(end - seconds, end, ""))
    first, last = (clip.frame_indices(rate, count, sample_fps) for clip in clips)
    rows = np.asarray(embed(sampled_frames(video, [*first, *last])), dtype=np.float64)
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    if rows.ndim != 2 or len(rows) != len(first) + len(last) or not np.isfinite(rows).all():
        raise ValueError(f"embed gave {rows.shape} for {len(first) + len(last)} frames.")
    if not lengths.all():
        raise ValueError("embed gave a row of zeros, which has no direction to compare.")
    unit = rows / lengths
    return float((unit[: len(first)] @ unit[len(first) :].T).mean())
