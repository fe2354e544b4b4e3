"""The frames of a video file one after another, so that a minute of video needs memory for one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import av
import numpy as np

from astrolabe_eval.errors import VideoError
from astrolabe_eval.frames import Frames
from astrolabe_eval.video_io import check_complete

#: ``"tagged"``: the colours that the file was made of. ``"bt601"``: what OpenCV 4.11 makes of any
#: file; it ignores the tag (OpenCV 5 does not), so that numbers of tools built on it need the same.
Matrix = Literal["tagged", "bt601"]


class Shape(NamedTuple):
    """Frames per second and number of frames of a file."""

    fps: float
    num_frames: int


def measure(path: str | Path) -> Shape:
    """Count the frames of a video file without decoding them.

    Raises:
        VideoError: If the file is missing, cut short, or holds no video.
    """
    with _opened(Path(path)) as container:
        stream = container.streams.video[0]
        # The packets are counted where a container does not say how many frames it has.
        count = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
        fps = float(stream.average_rate or 0)
    if not count or fps <= 0:
        raise VideoError(f"{str(path)!r} holds no frames. Write it again.")
    return Shape(fps, count)


def stream_frames(path: str | Path, *, matrix: Matrix = "tagged") -> Iterator[Frames]:
    """Decode a video file frame by frame.

    Args:
        path: The file.
        matrix: How colours are converted.

    Yields:
        ``uint8 [3, H, W]``, RGB.

    Raises:
        VideoError: If the file is missing, cut short, holds no video or breaks off.
    """
    path = Path(path)
    colours = "itu601" if matrix == "bt601" else None  # None: by the tag of the frame
    with _opened(path) as container:
        try:
            for frame in container.decode(container.streams.video[0]):
                picture = frame.reformat(
                    format="rgb24", src_colorspace=colours, dst_colorspace=colours
                ).to_ndarray()
                yield np.ascontiguousarray(picture.transpose(2, 0, 1))
        except av.FFmpegError as error:
            raise _unreadable(path, error) from error


def _opened(path: Path) -> "av.container.InputContainer":
    if not path.is_file():
        raise VideoError(f"There is no video file {str(path)!r}. Check the path.")
    check_complete(path)
    try:
        container = av.open(path)
    except av.FFmpegError as error:
        raise _unreadable(path, error) from error
    if not container.streams.video:
        container.close()
        raise VideoError(f"{str(path)!r} holds no video, only other streams.")
    return container


def _unreadable(path: Path, error: av.FFmpegError) -> VideoError:
    return VideoError(
        f"{str(path)!r} cannot be read as a video ({error.strerror}). "
        "Copy it again, or play it to see whether it is one."
    )
