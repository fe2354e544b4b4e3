"""mp4 files and ``uint8 [F, 3, H, W]`` arrays, through PyAV.

H.264 in yuv420p with the index at the front: what every browser plays. No sound is written or read.
"""

import tempfile
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import av
import numpy as np
from numpy.typing import ArrayLike

from astrolabe_eval.files import replacing
from astrolabe_eval.frame_stream import Decoder
from astrolabe_eval.frames import Frames, as_frames, upscale

# ITU-T H.273: 1 is BT.709 for primaries, transfer and matrix. Players guess the matrix of untagged
# files from the picture size, which shifts reds and greens.
_BT709 = 1
_LIMITED_RANGE = 1


class Video(NamedTuple):
    """A decoded video: ``frames`` is ``uint8 [F, 3, H, W]``, ``fps`` frames per second."""

    frames: Frames
    fps: float


def encode_mp4(
    frames: ArrayLike,
    fps: float,
    *,
    min_side: int = 0,
    max_side: int | None = None,
    crf: int = 18,
) -> bytes:
    """Encode one video as the bytes of an mp4 file.

    Args:
        frames: ``uint8 [F, 3, H, W]``. Odd sizes grow by one repeated row or column: yuv420p stores
            colour for blocks of 2 by 2 pixels.
        fps: Frames per second, above 0.
        min_side: Enlarge by a whole factor, pixels repeated, until the shorter side has this many
            pixels (48 becomes 192 with ``min_side=192``).
        max_side: Shrink until the longer side has at most this many pixels.
        crf: x264's constant rate factor, 0 (lossless) to 51; 18 looks like the original.

    Returns:
        A complete file: H.264, yuv420p, BT.709, index at the front.

    Raises:
        TypeError: If the pixels are not ``uint8``.
        ValueError: If the shape is not that of one video, or ``fps`` is not above 0.

    Example:
        >>> import numpy as np
        >>> grey = np.full((5, 3, 48, 48), 128, dtype=np.uint8)
        >>> encode_mp4(grey, fps=8)[4:8]
        b'ftyp'
    """
    # The index goes to the front in a second pass, for which ffmpeg wants a real file.
    with tempfile.TemporaryDirectory(prefix="astrolabe-") as folder:
        path = Path(folder) / "video.mp4"
        writer = Mp4Writer(path, fps, min_side=min_side, max_side=max_side, crf=crf)
        with writer:
            writer.add(frames)
        return path.read_bytes()


class Mp4Writer:
    """Writes a video piece by piece, for as long as frames come.

    What there is grows in a hidden file beside ``path``, which takes its name when it is complete;
    after an error nothing is left.

    Args:
        path: The file to make or replace; missing folders are made.
        fps: Frames per second.
        min_side: As in :func:`encode_mp4`.
        max_side: As in :func:`encode_mp4`.
        crf: As in :func:`encode_mp4`.

    Raises:
        OSError: If the folder cannot be written or the disk is full; ``filename`` is ``path``.
        TypeError: If the pixels are not ``uint8``.
        ValueError: If the shape is not that of one video, pieces differ in size, there are no
            frames, or ``fps`` is not above 0.

    Example:
        >>> import numpy as np, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Mp4Writer(Path(folder) / "a.mp4", fps=8) as writer:
        ...         for shade in (0, 128):
        ...             writer.add(np.full((4, 3, 48, 48), shade, dtype=np.uint8))
        ...     len(read_mp4(Path(folder) / "a.mp4").frames)
        8
    """

    def __init__(
        self,
        path: str | Path,
        fps: float,
        *,
        min_side: int = 0,
        max_side: int | None = None,
        crf: int = 18,
    ) -> None:
        if not fps > 0:
            raise ValueError(f"fps is {fps!r}; a video needs more than 0 frames per second.")
        self.path, self.fps, self.min_side, self.max_side = Path(path), fps, min_side, max_side
        self.crf = crf
        self._place = replacing(self.path)
        self._container: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None
        self._size, self._ended = (0, 0), False

    def __enter__(self) -> Self:
        self._part = self._place.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with ExitStack() as stack:
            stack.push(self._place)
            if self._container is not None:
                stack.callback(self._container.close)
            if error is not None:
                raise error
            self.finish()

    def add(self, frames: ArrayLike) -> None:
        """Append ``uint8 [F, 3, H, W]``."""
        video = _pad_to_even(upscale(as_frames(frames), self.min_side))
        if self._stream is None:
            self._begin(video.shape[-2], video.shape[-1])
        assert self._stream is not None
        assert self._container is not None
        if video.shape[-2:] != self._size:
            raise ValueError(f"frames of {video.shape[-2:]} follow frames of {self._size}.")
        for pixels in video:
            picture = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(pixels.transpose(1, 2, 0)), format="rgb24"
            )
            picture = picture.reformat(
                self._stream.width,
                self._stream.height,
                "yuv420p",
                dst_colorspace="itu709",
                interpolation="AREA",
            )
            self._container.mux(self._stream.encode(picture))

    def _begin(self, height: int, width: int) -> None:
        self._container = av.open(self._part, "w", options={"movflags": "+faststart"})
        stream = self._container.add_stream(
            "libx264",
            rate=Fraction(self.fps).limit_denominator(1001),
            options={"crf": str(self.crf)},
        )
        stream.pix_fmt, self._size = "yuv420p", (height, width)
        stream.height, stream.width = _target_size(height, width, self.max_side)
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = _LIMITED_RANGE
        self._stream = stream

    def finish(self) -> Path:
        """End the video; return the hidden file that holds it until the block ends.

        Raises:
            ValueError: If there are no frames.
        """
        if self._stream is None or self._container is None:
            raise ValueError(f"there are no frames for {str(self.path)!r}. Add some.")
        if not self._ended:
            self._ended = True
            self._container.mux(self._stream.encode(None))
            self._container.close()
        return self._part


def write_mp4(
    path: str | Path,
    frames: ArrayLike,
    fps: float,
    *,
    min_side: int = 0,
    max_side: int | None = None,
    crf: int = 18,
) -> None:
    """Write one video to ``path``; the file appears only when it is complete.

    Args:
        path: The file to make or replace; missing folders are made.
        frames: ``uint8 [F, 3, H, W]``.
        fps: Frames per second.
        min_side: As in :func:`encode_mp4`.
        max_side: As in :func:`encode_mp4`.
        crf: As in :func:`encode_mp4`.

    Raises:
        OSError: If the folder cannot be written or the disk is full.
        TypeError: If the pixels are not ``uint8``.
        ValueError: As in :func:`encode_mp4`.
    """
    with Mp4Writer(path, fps, min_side=min_side, max_side=max_side, crf=crf) as writer:
        writer.add(frames)


def read_mp4(path: str | Path) -> Video:
    """Read all frames of a video file.

    Any container and codec that ffmpeg knows is read; the completeness check is for mp4.

    Args:
        path: The file.

    Returns:
        The frames as they are to be shown, see `astrolabe_eval.display`, and their mean rate.

    Raises:
        VideoError: If the file is missing, cut short, holds no video, or cannot be shown as RGB of
            8 bits.
    """
    decoder = Decoder(path)
    frames = list(decoder)
    fps = decoder.fps
    return Video(np.stack(frames), fps)


def _target_size(height: int, width: int, max_side: int | None) -> tuple[int, int]:
    """Height and width to encode: even, and no longer than ``max_side``."""
    height, width = height + height % 2, width + width % 2
    longest = max(height, width)
    if max_side is None or longest <= max_side:
        return height, width
    scale = max_side / longest
    return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)


def _pad_to_even(video: Frames) -> Frames:
    """Repeat the last row or column of ``[F, 3, H, W]`` where a side is odd."""
    height, width = video.shape[-2:]
    return np.pad(video, ((0, 0), (0, 0), (0, height % 2), (0, width % 2)), mode="edge")
