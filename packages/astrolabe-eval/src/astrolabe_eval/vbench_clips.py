"""VBench-Long's short clips: how a long video is cut, and what its clips are called.

The clips of ``X-0.mp4`` lie in ``split_clip/X-0/`` beside it as ``X-0_000.mp4`` and so on. VBench-
Long uses them if there is a folder for every video, else it cuts anew. It may first cut at scene
borders that it detects (``use_semantic_splitting``); that is left out here.
"""

import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np

from astrolabe_eval.errors import VBenchError, VideoError
from astrolabe_eval.frame_stream import measure, stream_frames
from astrolabe_eval.frames import Frames
from astrolabe_eval.vbench import DIMENSIONS
from astrolabe_eval.vbench_prompts import VBenchPrompt
from astrolabe_eval.video_io import write_mp4

#: Seconds of a clip for videos that VBench has no prompt of.
CUSTOM_SECONDS: Final = 2
#: Dimension to seconds of a clip (``clip_length_mix.yaml`` of VBench-Long).
CLIP_SECONDS: Final[Mapping[str, int]] = MappingProxyType(
    {
        name: 10 if name in {"human_action", "temporal_style", "overall_consistency"} else 2
        for name in DIMENSIONS
    }
)
_CLIP_ENDING = re.compile(r"(-Scene-\d+|-\d+)_\d+$")
_SAMPLE_ENDING = re.compile(r"-\d+$")


@dataclass(frozen=True)
class Split:
    """What cutting a folder gave: each video with its clips, and each left out with the reason."""

    clips: Mapping[Path, tuple[Path, ...]]
    unreadable: Mapping[Path, str]


def clip_seconds(dimensions: Iterable[str]) -> int:
    """Length of the clips of a video that is judged on these dimensions: the longest of theirs.

    >>> clip_seconds(["overall_consistency", "imaging_quality"])
    10
    """
    return max(CLIP_SECONDS[name] for name in dimensions)


def clip_spans(num_frames: int, fps: float, seconds: int) -> list[tuple[int, int]]:
    """First frame of each clip and the one after its last.

    Args:
        num_frames: Of the video.
        fps: Its rate; VBench-Long drops the decimals.
        seconds: Of a clip.

    Returns:
        Clips of ``int(fps) * seconds`` frames. If some frames remain, one more clip has the last so
        many frames of the video and overlaps the one before. A shorter video is one clip.

    Example:
        >>> clip_spans(81, fps=16, seconds=2)
        [(0, 32), (32, 64), (49, 81)]
    """
    length = _clip_length(fps, seconds)
    if num_frames < length:
        return [(0, num_frames)]
    spans = [(start, start + length) for start in range(0, num_frames - length + 1, length)]
    if num_frames % length:
        spans.append((num_frames - length, num_frames))
    return spans


def clip_name(video: str, index: int | None) -> str:
    """Name of a clip; ``index`` None for a video that is too short to be cut.

    >>> clip_name("a cat-0", 3), clip_name("a cat-0", None)
    ('a cat-0_003.mp4', 'a cat-0_full.mp4')
    """
    return f"{video}_full.mp4" if index is None else f"{video}_{index:03d}.mp4"


def prompt_of(name: str) -> str:
    """The prompt in the name of a video or a clip.

    >>> prompt_of("a cat-0_003.mp4"), prompt_of("a cat-Scene-2_011.mp4"), prompt_of("a cat.mp4")
    ('a cat', 'a cat', 'a cat')
    """
    stem = _CLIP_ENDING.sub("", Path(name).stem)
    return _SAMPLE_ENDING.sub("", stem)


def split_video(
    video: str | Path, folder: str | Path, *, seconds: int, crf: int = 23
) -> list[Path]:
    """Cut one video into clips, with no more than one clip in memory.

    Args:
        video: The file.
        folder: The clips come into a folder with the video's name in this one.
        seconds: Of a clip.
        crf: As in `write_mp4`; 23 is what VBench-Long's own cutting has.

    Returns:
        The clips, in order.

    Raises:
        OSError: If the folder cannot be written.
        VideoError: If the video cannot be read.
    """
    video = Path(video)
    fps, num_frames = measure(video)
    spans = clip_spans(num_frames, fps, seconds)
    whole = num_frames < _clip_length(fps, seconds)
    recent: deque[Frames] = deque(maxlen=max(end - start for start, end in spans))
    ends = {end: index for index, (_, end) in enumerate(spans)}
    clips: list[Path] = []
    count = 0
    try:
        for count, frame in enumerate(stream_frames(video), start=1):
            recent.append(frame)
            if count in ends:
                name = clip_name(video.stem, None if whole else ends[count])
                clips.append(Path(folder) / video.stem / name)
                write_mp4(clips[-1], np.stack(recent), int(fps), crf=crf)
        if count != num_frames:
            raise VideoError(
                f"{str(video)!r} announces {num_frames} frames and holds {count}. Write it again."
            )
    except VideoError:
        # VBench-Long would take a part of the clips for the whole video.
        for clip in clips:
            clip.unlink(missing_ok=True)
        raise
    return clips


def split_folder(folder: str | Path, prompts: Sequence[VBenchPrompt] | None = None) -> Split:
    """Cut every ``.mp4`` of a folder into ``folder/split_clip``.

    Args:
        folder: With videos named ``{prompt}-{sample}.mp4``.
        prompts: VBench's list, by which the length of the clips is chosen for each video; None for
            prompts of your own, whose clips have `CUSTOM_SECONDS`.

    Returns:
        What was cut and what could not be read.

    Raises:
        VBenchError: If there is no video, or one has a prompt that is not in ``prompts``; found out
            before anything is written.
    """
    videos = sorted(path for path in Path(folder).glob("*.mp4") if not path.name.startswith("."))
    if not videos:
        raise VBenchError(f"The folder {str(folder)!r} has no .mp4 files to cut.")
    seconds = {video: _seconds_of(video, prompts) for video in videos}
    clips: dict[Path, tuple[Path, ...]] = {}
    unreadable: dict[Path, str] = {}
    for video in videos:
        try:
            made = split_video(video, Path(folder) / "split_clip", seconds=seconds[video])
            clips[video] = tuple(made)
        except VideoError as error:
            unreadable[video] = str(error)
    return Split(clips, unreadable)


def _seconds_of(video: Path, prompts: Sequence[VBenchPrompt] | None) -> int:
    if prompts is None:
        return CUSTOM_SECONDS
    text = prompt_of(video.name)
    judged = [name for prompt in prompts if prompt.text == text for name in prompt.dimensions]
    if not judged:
        raise VBenchError(
            f"{video.name!r} shows {text!r}, which is no prompt of VBench. Take the file out, or "
            "cut it as a prompt of your own (prompts=None)."
        )
    return clip_seconds(judged)


def _clip_length(fps: float, seconds: int) -> int:
    """Frames of a clip."""
    length = int(fps) * seconds
    if length < 1:
        raise VideoError(f"{fps} frames per second are too few for clips of {seconds} s.")
    return length
