"""Intervals of a video: where they begin and end, what they should show, which frames to look at.

All by time: an interval holds the seconds ``[start, end)``, whatever the rate of the video.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np

from astrolabe_eval.errors import VideoError
from astrolabe_eval.frame_stream import Shape, measure, stream_frames
from astrolabe_eval.frames import Frames, as_frames

#: Seconds of an interval and frames looked at per second, unless told otherwise.
INTERVAL_SECONDS: Final = 10.0
SAMPLE_FPS: Final = 2.0

#: Pixels ``uint8 [F, 3, H, W]``, or a file, of which only the frames that are looked at are held.
VideoSource: TypeAlias = Frames | str | Path


@dataclass(frozen=True)
class Interval:
    """Seconds ``[start, end)`` of a video, which should show ``prompt``."""

    start: float
    end: float
    prompt: str

    def frame_indices(self, fps: float, num_frames: int, sample_fps: float) -> list[int]:
        """The first frame at or after each of the times ``start + j / sample_fps`` before ``end``.

        Args:
            fps: Of the video; frame ``i`` begins at ``i / fps``.
            num_frames: Of the video.
            sample_fps: How many to take from a second; no frame is taken twice.

        Example:
            >>> Interval(10, 11.5, "a cat").frame_indices(fps=16, num_frames=480, sample_fps=2)
            [160, 168, 176]
        """
        # Less a little, since 0.3 s times 10 frames per second is not quite 3.
        steps = math.ceil((self.end - self.start) * sample_fps - 1e-6)
        times = (self.start + step / sample_fps for step in range(steps))
        indices = dict.fromkeys(math.ceil(time * fps - 1e-6) for time in times)
        after = min(num_frames, math.ceil(self.end * fps - 1e-6))
        return [index for index in indices if index < after]


def fixed_intervals(
    seconds: float, prompts: Sequence[str], *, length: float = INTERVAL_SECONDS
) -> tuple[Interval, ...]:
    """Cut a video into intervals of equal length.

    Args:
        seconds: Of the video.
        prompts: One for the whole video, or one for each interval in order.
        length: Seconds of an interval.

    Returns:
        With one prompt, as many as fit; a rest of half an interval or more is one too, and a video
        shorter than that is a single interval. With several prompts one for each; the last may be
        cut short by the end of the video.

    Raises:
        ValueError: If the video ends before the interval of a prompt begins, or an option is wrong.

    Example:
        >>> [(part.start, part.end) for part in fixed_intervals(30.06, ["a cat"])]
        [(0.0, 10.0), (10.0, 20.0), (20.0, 30.0)]
    """
    if not length > 0 or not seconds > 0:
        raise ValueError(f"seconds={seconds} and length={length}: both must be above 0.")
    texts = _texts(prompts)
    if len(texts) == 1:
        texts *= max(1, math.floor(seconds / length + 0.5))
    if (len(texts) - 1) * length >= seconds:
        raise ValueError(
            f"A video of {seconds:g} s ends before scene {len(texts)} begins, at "
            f"{(len(texts) - 1) * length:g} s. Give the scenes' own borders, or fewer prompts."
        )
    return tuple(
        Interval(index * length, min((index + 1) * length, seconds), text)
        for index, text in enumerate(texts)
    )


def scene_intervals(
    num_frames: int, fps: float, prompts: Sequence[str], borders: Sequence[int]
) -> tuple[Interval, ...]:
    """One interval for each scene, where a generator's scenes do not begin on the second.

    Args:
        num_frames: Of the video.
        fps: Of the video.
        prompts: One for each scene.
        borders: First frame of each scene after the first, rising.

    Raises:
        ValueError: If the borders do not rise inside the video or do not fit the prompts.

    Example:
        >>> scene_intervals(81, 16, ["a cat", "a dog"], [33])[1]
        Interval(start=2.0625, end=5.0625, prompt='a dog')
    """
    ends = [0, *borders, num_frames]
    if any(end <= start for start, end in pairwise(ends)):
        raise ValueError(
            f"The borders {list(borders)} do not rise inside a video of {num_frames} frames."
        )
    texts = _texts(prompts)
    if len(texts) != len(ends) - 1:
        raise ValueError(
            f"{len(borders)} borders make {len(ends) - 1} scenes, but there are {len(texts)} "
            "prompts. Give the first frame of each scene after the first."
        )
    return tuple(
        Interval(start / fps, end / fps, text)
        for (start, end), text in zip(pairwise(ends), texts, strict=True)
    )


def shape_of(source: VideoSource, fps: float | None) -> Shape:
    """Rate and number of frames of a video.

    Args:
        source: Pixels or a file.
        fps: Of pixels; a file has its own.

    Raises:
        ValueError: If pixels come without a rate above 0.
        VideoError: If a file cannot be read.
    """
    if isinstance(source, str | Path):
        return measure(source)
    if fps is None or not fps > 0:
        raise ValueError(f"fps is {fps}. Pixels have no rate of their own: give it, above 0.")
    return Shape(fps, len(as_frames(source)))


def sampled_frames(source: VideoSource, indices: Sequence[int]) -> Frames:
    """Some frames of a video.

    Args:
        source: Pixels or a file; a file is decoded up to the last frame that is wanted.
        indices: Which, rising.

    Returns:
        ``uint8 [n, 3, H, W]``.

    Raises:
        VideoError: If a file cannot be read or has fewer frames than it announces.
    """
    if not isinstance(source, str | Path):
        return as_frames(source)[list(indices)]
    wanted, last = set(indices), indices[-1]
    found = []
    for index, frame in enumerate(stream_frames(source)):
        if index in wanted:
            found.append(frame)
        if index == last:
            return np.stack(found)
    raise VideoError(f"{str(source)!r} ends before its frame {last}. Write it again.")


def _texts(prompts: Sequence[str]) -> list[str]:
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts or not all(text.strip() for text in texts):
        raise ValueError(f"The prompts are {texts}. Give one for the video or one for each scene.")
    return texts
