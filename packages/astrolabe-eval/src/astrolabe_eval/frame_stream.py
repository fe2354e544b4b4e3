"""The frames of a video file one after another, so that a minute of video needs memory for one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import av
from av.stream import Disposition

from astrolabe_eval.display import Display, Matrix
from astrolabe_eval.errors import VideoError
from astrolabe_eval.frames import Frames
from astrolabe_eval.mp4_boxes import check_complete

#: Streams of one picture: the cover of a piece of music, a tile of a larger picture (HEIC).
_PARTS: Final = Disposition.attached_pic | Disposition.dependent


class Shape(NamedTuple):
    """Frames per second and number of frames of a file."""

    fps: float
    num_frames: int


class Decoder:
    """The frames of one file as they are shown, and when.

    Only what an edit list shows is decoded.

    Args:
        path: The file.
        matrix: How colours are converted.

    Raises:
        VideoError: If the file is missing, cut short, or holds no video.
    """

    def __init__(self, path: str | Path, matrix: Matrix = "tagged") -> None:
        self.path, self._matrix = Path(path), matrix
        self._times: list[Fraction | None] = []
        self._declared: list[Fraction] = []
        self._tick = Fraction(0)

    def __iter__(self) -> Iterator[Frames]:
        """Yield ``uint8 [3, H, W]``, RGB."""
        for display, frame in self._decoded():
            yield display.show(frame)

    def count(self) -> int:
        """Decode the file and throw the frames away."""
        return sum(1 for _ in self._decoded())

    @property
    def fps(self) -> float:
        """The mean rate of the frames that were decoded, by the times at which they are shown.

        Raises:
            VideoError: If no time and no rate is known, or the times go backwards.
        """
        if not self._times:
            raise VideoError(f"{str(self.path)!r} holds no frames. Write it again.")
        times = [time for time in self._times if time is not None]
        late = next((i for i, pair in enumerate(pairwise(times)) if pair[0] > pair[1]), None)
        if late is not None:
            raise VideoError(
                f"The times of {str(self.path)!r} go backwards after frame {late}. "
                "Write it again: ffmpeg -i IN OUT"
            )
        known = len(times) == len(self._times) > 1 and times[-1] > times[0]
        # Where a bare stream of H.264 has no times, the guess is its rate, the average a default.
        for rate in self._declared if times else reversed(self._declared):
            if not known or _even(times, rate, self._tick):
                return float(rate)
        if not known:
            raise VideoError(f"{str(self.path)!r} does not say its frame rate. Write it again.")
        return float((len(times) - 1) / (times[-1] - times[0]))

    def _decoded(self) -> Iterator[tuple[Display, av.VideoFrame]]:
        self._times.clear()
        with _opened(self.path) as (container, stream):
            rates = (stream.average_rate, stream.guessed_rate)
            self._declared = [Fraction(rate) for rate in rates if rate]
            self._tick = Fraction(stream.time_base or 0)
            display = Display(self.path, stream, self._matrix)
            for frame in container.decode(stream):
                display.check(frame)
                at = None if frame.pts is None else frame.pts * Fraction(frame.time_base or 0)
                self._times.append(at)
                yield display, frame


def measure(path: str | Path) -> Shape:
    """Count the frames of a video file that are shown.

    They are decoded: packets, or what a container says of them, are not what an edit list shows.

    Raises:
        VideoError: If the file is missing, cut short, or holds no video.
    """
    decoder = Decoder(path)
    count = decoder.count()
    return Shape(decoder.fps, count)


def stream_frames(path: str | Path, *, matrix: Matrix = "tagged") -> Iterator[Frames]:
    """Decode a video file frame by frame.

    Args:
        path: The file.
        matrix: How colours are converted.

    Yields:
        ``uint8 [3, H, W]``, RGB, as they are to be shown, see `astrolabe_eval.display`.

    Raises:
        VideoError: If the file is missing, cut short, holds no video, breaks off, or cannot be
            shown as RGB of 8 bits.
    """
    yield from Decoder(path, matrix)


def _even(times: Sequence[Fraction], rate: Fraction, tick: Fraction) -> bool:
    """Whether frames come at this rate, but for times that are rounded to whole ticks."""
    rounding = tick if tick and (1 / rate / tick).denominator > 1 else Fraction(0)
    return all(abs(time - times[0] - index / rate) <= rounding for index, time in enumerate(times))


@contextmanager
def _opened(path: Path) -> Iterator[tuple["av.container.InputContainer", av.VideoStream]]:
    check_complete(path)
    try:
        with av.open(path) as container:
            stream = container.streams.best("video")
            if not isinstance(stream, av.VideoStream) or stream.disposition & _PARTS:
                raise VideoError(f"{str(path)!r} holds no video, only other streams.")
            yield container, stream
    except av.FFmpegError as error:
        with path.open("rb") as file:
            if b"WEBPVP8X" in (head := file.read(64)) and b"ANIM" in head:
                raise VideoError(
                    f"{str(path)!r} is an animated WebP, which is not read. Convert it to mp4."
                ) from error
        raise VideoError(
            f"{str(path)!r} cannot be read as a video ({error.strerror}). "
            "Copy it again, or play it to see whether it is one."
        ) from error
