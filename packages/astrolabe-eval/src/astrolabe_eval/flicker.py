"""VBench's temporal flickering, the one dimension that needs no network.

Left out on purpose: VBench's static filter, which first drops videos that move. It needs the
weights of RAFT; without it a video that moves counts as one that flickers. Figures of the
leaderboard are filtered, and so every result written here is marked ``"static_filter": false``.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from astrolabe_eval.errors import VBenchError
from astrolabe_eval.files import write_atomic
from astrolabe_eval.frame_stream import stream_frames
from astrolabe_eval.frames import Frames, as_frames
from astrolabe_eval.vbench import RESULTS_SUFFIX

DIMENSION: Final = "temporal_flickering"


@dataclass(frozen=True)
class Flickering:
    """Scores of many videos.

    Attributes:
        score: Mean over the videos that could be read, 1 for no flicker.
        videos: Path to score, in the order they were given.
        unreadable: Path to why the video was left out.
    """

    score: float
    videos: Mapping[Path, float]
    unreadable: Mapping[Path, str]


def temporal_flickering(video: ArrayLike) -> float:
    """Score one video: ``(255 - d) / 255``, d the mean absolute difference of successive frames.

    Args:
        video: ``uint8 [F, 3, H, W]``, at least 2 frames.

    Returns:
        0 to 1, 1 for a video that stands still. VBench averages in float32; this is exact and
        differs from it by less than 1e-7.

    Raises:
        TypeError: If the pixels are not ``uint8``.
        ValueError: If the shape is not that of a video with 2 frames or more.

    Example:
        >>> video = np.zeros((3, 3, 8, 8), dtype=np.uint8)
        >>> video[1] = 51
        >>> temporal_flickering(video)
        0.8
    """
    return _score(as_frames(video))


def score_flickering(videos: Iterable[str | Path]) -> Flickering:
    """Score video files one after another, a frame at a time in memory.

    Colours are decoded as in VBench 0.1.5, whose pins allow OpenCV 4.11 at most: by BT.601 whatever
    the file says. By the file's own tag, as OpenCV 5 does it, scores differ by about 1e-3.

    Args:
        videos: The files.

    Returns:
        The scores, and what could not be read.

    Raises:
        VBenchError: If there is no video or none can be read.
    """
    scores: dict[Path, float] = {}
    unreadable: dict[Path, str] = {}
    for path in map(Path, videos):
        try:
            scores[path] = _score(stream_frames(path, matrix="bt601"))
        except ValueError as error:
            unreadable[path] = str(error)
    if not scores:
        first = next(iter(unreadable.values()), "Name at least one video.")
        raise VBenchError(f"There is no video to score. {first}")
    return Flickering(float(np.mean(list(scores.values()))), scores, unreadable)


def write_flickering(folder: str | Path, result: Flickering, *, name: str = DIMENSION) -> Path:
    """Write a result file of VBench's shape, ``{name}_eval_results.json``.

    After the score and the videos comes a third part that says that no static filter was used and
    which videos were left out; VBench's own scripts read the first two parts alone.

    Args:
        folder: Where to; made if missing.
        result: From `score_flickering`.
        name: First part of the file's name.

    Returns:
        The file.

    Raises:
        OSError: If the folder cannot be written.
    """
    entry = [
        result.score,
        [
            {"video_path": str(path), "video_results": score}
            for path, score in result.videos.items()
        ],
        {
            "computed_by": "astrolabe-eval",
            "static_filter": False,
            "unreadable": {str(path): why for path, why in result.unreadable.items()},
        },
    ]
    path = Path(folder) / f"{name}{RESULTS_SUFFIX}"
    write_atomic(path, json.dumps({DIMENSION: entry}, indent=4).encode())
    return path


def _score(frames: Iterable[Frames]) -> float:
    """Score frames ``[3, H, W]`` that come one after another."""
    differences: list[float] = []
    before: Frames | None = None
    for frame in frames:
        if before is not None:
            # Whole numbers: the larger minus the smaller stays within uint8.
            difference = np.maximum(frame, before) - np.minimum(frame, before)
            differences.append(float(difference.mean(dtype=np.float64)))
        before = frame
    if not differences:
        raise ValueError("Flickering needs at least 2 frames, and the video has 1.")
    return (255 - float(np.mean(differences))) / 255
