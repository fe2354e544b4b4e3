"""Any score over the time of a video: interval by interval, each against its own scene's prompt.

Long-video papers report a CLIP score for each 10 s (LongLive, arXiv 2509.22622) without publishing
the scorer, so that the choices made here are written into the result: 2 frames per second inside
``[10 k, 10 k + 10)`` by time, one score for each interval, then the mean over videos.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from astrolabe_eval.frames import Frames
from astrolabe_eval.generation import Step
from astrolabe_eval.intervals import (
    INTERVAL_SECONDS,
    SAMPLE_FPS,
    Interval,
    VideoSource,
    fixed_intervals,
    sampled_frames,
    scene_intervals,
    shape_of,
)
from astrolabe_eval.keys import FPS, INDEX, PIXELS, TEXT
from astrolabe_eval.rows import check_mapping
from astrolabe_eval.scoring import score_suite
from astrolabe_eval.torch_extra import require_torch

if TYPE_CHECKING:
    from tensordict import TensorDict

#: Scores by name; None where the scorer wrote NaN, as it could not score.
_Scores: TypeAlias = dict[str, float | None]

#: A scorer that reads only the first part of a long prompt may write here which ones it cut:
#: ``bool [*B]``.
TRUNCATED: Final = ("prompt", "truncated")


def score_intervals(
    videos: Mapping[str, VideoSource],
    scorer: Step,
    prompts: Mapping[str, Sequence[str]],
    *,
    model: str,
    fps: float | None = None,
    length: float = INTERVAL_SECONDS,
    borders: Mapping[str, Sequence[int]] | None = None,
    sample_fps: float = SAMPLE_FPS,
) -> dict[str, Any]:
    """Score every interval of every video.

    Args:
        videos: Name to video.
        scorer: Reads ``("prompt","text")``, ``("video","pixels")``, ``("video","fps")`` (of the
            frames it is shown) and ``("window","index")`` (of the interval) of a batch ``[n]``;
            writes ``("score", name)``. It may tell by `TRUNCATED` which prompts it cut.
        prompts: For each video one prompt, or one for each of its scenes.
        model: What the scorer is, with its weights; recorded.
        fps: Of videos given as pixels; files have their own.
        length: Seconds of an interval.
        borders: For each video first frames of its scenes, as in `scene_intervals`; None cuts every
            ``length`` seconds.
        sample_fps: Frames per second that are shown to the scorer.

    Returns:
        What `write_atomic` can store as JSON: ``protocol``; ``videos``, for each its ``intervals``
        (start, end, prompt, number of frames, scores), ``overall`` scores and the seconds that lie
        in no interval; ``intervals``, the mean of each over the videos; ``overall``, the mean over
        the videos, each a mean over its frames. A score that the scorer could not give is None; it
        is left out of means, and of each mean over videos ``unscored`` counts by name what was.

    Raises:
        ModuleNotFoundError: Without torch and tensordict, the extra ``torch``.
        ValueError: If a video has no prompt, an interval no frame, or an option or score is wrong.
        VideoError: If a file cannot be read.
    """
    require_torch("score_intervals")
    for name, given in (("videos", videos), ("prompts", prompts), ("borders", borders)):
        if given is not None:
            check_mapping(name, given, "one entry for each video, by its name")
    if not videos:
        raise ValueError("There are no videos to score.")
    if not sample_fps > 0:
        raise ValueError(f"sample_fps is {sample_fps}. Use more than 0 frames per second.")
    for kind, given in (("prompt", prompts), ("border", borders)):
        if given is not None and (without := sorted(videos.keys() - given.keys())):
            raise ValueError(f"Video {without[0]!r} has no {kind}. Give one for every video.")
    rows: dict[str, dict[str, Any]] = {}
    truncated: dict[str, bool] | None = {}
    for name, source in videos.items():
        rate, count = shape_of(source, fps)
        if borders is None:
            parts = fixed_intervals(count / rate, prompts[name], length=length)
        else:
            parts = scene_intervals(count, rate, prompts[name], borders[name])
        rows[name], cut = _score_video(name, source, parts, rate, count, sample_fps, scorer)
        truncated = None if truncated is None or cut is None else truncated | cut
    return {
        "protocol": {
            "model": model,
            "sample_fps": sample_fps,
            "borders": "fixed" if borders is None else "scenes",
            "interval_seconds": length if borders is None else None,
            "videos": len(videos),
            "truncated_prompts": None if truncated is None else sum(truncated.values()),
            "prompts": len({part["prompt"] for row in rows.values() for part in row["intervals"]}),
        },
        "overall": _mean([row["overall"] for row in rows.values()]),
        "unscored": _unscored([row["overall"] for row in rows.values()]),
        "intervals": _by_index(rows.values()),
        "videos": rows,
    }


def _score_video(
    name: str,
    source: VideoSource,
    parts: Sequence[Interval],
    fps: float,
    num_frames: int,
    sample_fps: float,
    scorer: Step,
) -> tuple[dict[str, Any], dict[str, bool] | None]:
    """The row of one video, and which of its prompts the scorer cut if it tells."""
    import torch

    picks = [part.frame_indices(fps, num_frames, sample_fps) for part in parts]
    for part, pick in zip(parts, picks, strict=True):
        if not pick:
            raise ValueError(
                f"Video {name!r} has no frame in {part.start:g} to {part.end:g} s. "
                "Give longer intervals."
            )
    # One pass over the file; intervals may not share frames, so positions follow one another.
    frames = sampled_frames(source, [index for pick in picks for index in pick])
    scores: list[_Scores] = []
    truncated: dict[str, bool] | None = {}
    for batch in _batches(parts, picks, frames, sample_fps):
        with torch.no_grad():
            seen = scorer(batch)
        columns = score_suite([seen], lambda scored: scored)
        scores += [
            {key: _known(column[row]) for key, column in columns.items()}
            for row in range(len(batch))
        ]
        if truncated is None or TRUNCATED not in seen.keys(include_nested=True):
            truncated = None
        else:
            flags = seen[TRUNCATED].reshape(-1).tolist()
            truncated |= dict(zip(batch[TEXT], flags, strict=True))
    counts = [len(pick) for pick in picks]
    row = {
        "overall": _mean(scores, counts),
        "seconds_outside": max(0.0, num_frames / fps - parts[-1].end),
        "intervals": [
            {
                "start": part.start,
                "end": part.end,
                "prompt": part.prompt,
                "frames": count,
                "scores": score,
            }
            for part, count, score in zip(parts, counts, scores, strict=True)
        ],
    }
    return row, truncated


def _batches(
    parts: Sequence[Interval], picks: Sequence[Sequence[int]], frames: Frames, sample_fps: float
) -> "Iterator[TensorDict]":
    """Intervals with equally many frames, next to one another, as one batch."""
    import torch
    from tensordict import TensorDict

    taken = 0
    for size, group in groupby(range(len(parts)), key=lambda index: len(picks[index])):
        members = list(group)
        pixels = torch.from_numpy(frames[taken : taken + size * len(members)])
        taken += size * len(members)
        batch = TensorDict(batch_size=[len(members)])
        batch[TEXT] = [parts[index].prompt for index in members]
        batch[INDEX] = torch.tensor(members)
        batch[FPS] = torch.full([len(members)], sample_fps)
        batch[PIXELS] = pixels.reshape(len(members), size, *pixels.shape[1:])
        yield batch


def _known(score: float) -> float | None:
    return None if math.isnan(score) else float(score)


def _mean(rows: Sequence[_Scores], weights: Sequence[int] | None = None) -> _Scores:
    """Means of what is known; None where nothing is."""
    names = rows[0].keys()
    if any(row.keys() != names for row in rows):
        raise ValueError("The scorer wrote other names for some intervals. Write the same always.")
    means: _Scores = {}
    for name in names:
        pairs = [
            (row[name], weight)
            for row, weight in zip(rows, weights or [1] * len(rows), strict=True)
            if row[name] is not None
        ]
        values, shares = zip(*pairs, strict=True) if pairs else ((), ())
        means[name] = float(np.average(values, weights=shares)) if pairs else None
    return means


def _unscored(rows: Sequence[_Scores]) -> dict[str, int]:
    """How many rows lack each score."""
    return {name: sum(row[name] is None for row in rows) for name in rows[0]}


def _by_index(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each position in time the mean over the videos that reach it."""
    columns: dict[int, list[_Scores]] = {}
    for row in rows:
        for index, part in enumerate(row["intervals"]):
            columns.setdefault(index, []).append(part["scores"])
    return [
        {
            "index": index,
            "videos": len(scores),
            "unscored": _unscored(scores),
            "scores": _mean(scores),
        }
        for index, scores in sorted(columns.items())
    ]
