"""Video files as pixels, for scores of files. Needs PyAV (extra ``video``).

Left out on purpose: whatever has to be turned, stretched or mapped before it can be shown. Such
files are refused with the command that converts them, as a score of other pixels would be wrong
without a word. astrolabe-eval reads them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, SupportsBytes, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from astrolabe_rewards.errors import VideoError
from astrolabe_rewards.input_files import check_file
from astrolabe_rewards.needs import require

if TYPE_CHECKING:
    import av

#: Transfers of ITU-T H.273 whose levels are not those of BT.709: linear, logarithmic, HDR, cinema.
_TRANSFERS: Final = frozenset({8, 9, 10, 16, 17, 18})
#: Primaries that are not those of BT.709 or its relatives: film, BT.2020, XYZ, DCI-P3, Display P3.
_PRIMARIES: Final = frozenset({8, 9, 10, 11, 12})
#: Matrices that swscale converts: RGB, BT.709, untagged, FCC, BT.601 twice, SMPTE 240M, BT.2020.
_MATRICES: Final = frozenset({0, 1, 2, 4, 5, 6, 7, 9})
_CONVERT: Final = "Convert it: ffmpeg -i IN -vf {} OUT.mp4"
_TO_709: Final = _CONVERT.format("zscale=t=linear,tonemap,zscale=p=709:t=709:m=709")
#: What lies at the top of an mp4 file (ISO/IEC 14496-12, 6.2.3, and QuickTime).
_BOXES: Final = frozenset(
    b"ftyp pdin moov moof mfra mdat free skip wide meta meco styp sidx ssix prft emsg uuid udta "
    b"pnot PICT imda".split()
)


class VideoFile(NamedTuple):
    """What a file shows: ``pixels`` is uint8 ``[F, 3, H, W]``, ``fps`` frames per second."""

    pixels: Tensor
    fps: float


def read_video(path: str | Path) -> VideoFile:
    """Read all frames of a video file; a picture is a video of one frame.

    Args:
        path: Whatever FFmpeg reads.

    Returns:
        RGB as a player shows it, and the rate of the frames; 1 for a single frame.

    Raises:
        ModuleNotFoundError: If PyAV is not installed.
        VideoError: If there is no such file, it is cut short or holds no video, or its frames are
            not flat, upright pictures of square pixels in the range of BT.709.
    """
    path = Path(path)
    require("video", "reading video files")
    frames: list[NDArray[np.uint8]] = []
    times: list[Fraction | None] = []
    with _opened(path) as (container, stream):
        _check_stream(path, stream)
        converter = None
        for frame in container.decode(stream):
            _check_frame(path, frame)
            of = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
            if converter is None or converter[0] != of:
                converter = (of, _converter(frame))
            converter[1].push(frame)
            picture = converter[1].pull().to_ndarray()
            if frames and picture.shape != frames[0].shape:
                raise VideoError(f"{str(path)!r} changes its size. Write it with one size.")
            frames.append(picture.astype(np.uint8, copy=False))
            times.append(None if frame.pts is None else frame.pts * Fraction(frame.time_base or 0))
        rates = [rate for rate in (stream.average_rate, stream.guessed_rate) if rate]
        tick = Fraction(stream.time_base or 0)
    if not frames:
        raise VideoError(f"{str(path)!r} holds no frames. Write it again.")
    pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()
    return VideoFile(pixels, _rate(path, times, rates, tick))


def _rate(path: Path, times: list[Fraction | None], rates: list[Fraction], tick: Fraction) -> float:
    """The rate that a file declares, if its frames come at it, else the mean over their times."""
    known = [time for time in times if time is not None]
    if len(times) == 1:
        return 1.0
    if len(known) < len(times):
        if not rates:
            raise VideoError(f"{str(path)!r} does not say its frame rate. Write it again.")
        return float(rates[-1])
    if sorted(known) != known or known[0] == known[-1]:
        raise VideoError(f"The times of {str(path)!r} go backwards or stand. Write it again.")
    for rate in rates:
        if all(abs(time - known[0] - i / rate) <= tick for i, time in enumerate(known)):
            return float(rate)
    return float((len(known) - 1) / (known[-1] - known[0]))


@contextmanager
def _opened(path: Path) -> Iterator[tuple["av.container.InputContainer", "av.VideoStream"]]:
    import av

    _check_complete(path)
    try:
        with av.open(path) as container:
            stream = container.streams.best("video")
            if not isinstance(stream, av.VideoStream):
                raise VideoError(f"{str(path)!r} holds no video, only other streams.")
            yield container, stream
    except av.FFmpegError as error:
        raise VideoError(
            f"{str(path)!r} cannot be read as a video ({error.strerror}). "
            "Copy it again, or play it to see whether it is one."
        ) from error


def _check_stream(path: Path, stream: "av.VideoStream") -> None:
    shape = Fraction(stream.sample_aspect_ratio or 1)
    width = stream.width
    # 639:640 and the like come from sizes rounded to even numbers.
    if shape > 0 and abs(width * shape - width) > 1:
        raise VideoError(
            f"{str(path)!r} has pixels of {shape}, not square ones. "
            + _CONVERT.format("scale=iw*sar:ih,setsar=1")
        )
    if stream.metadata.get("alpha_mode") == "1":
        raise _transparent(path)


def _check_frame(path: Path, frame: "av.VideoFrame") -> None:
    """Refuse a frame that is not shown as it is stored."""
    if frame.interlaced_frame:
        raise VideoError(
            f"{str(path)!r} is interlaced: a frame holds two moments. "
            + _CONVERT.format("bwdif=mode=send_frame")
        )
    if frame.color_trc in _TRANSFERS or frame.color_primaries in _PRIMARIES:
        raise VideoError(f"{str(path)!r} has the colours of another range than BT.709. {_TO_709}")
    if frame.colorspace not in _MATRICES:
        raise VideoError(f"{str(path)!r} has colours in a matrix that is not read. {_TO_709}")
    if "f32" in frame.format.name or "f16" in frame.format.name:
        raise VideoError(f"{str(path)!r} has pixels as floating point. Write 8 or 16 bits.")
    try:
        turned = _kind(frame, "DISPLAYMATRIX") is not None and frame.rotation % 360 != 0
        mirrored = _mirrored(_kind(frame, "DISPLAYMATRIX"))
        round_ = _kind(frame, "SPHERICAL") or any((_kind(frame, "STEREO3D") or b"")[:4])
    except ValueError as error:  # PyAV has no name for what comes with it, such as Exif
        raise VideoError(
            f"{str(path)!r} says something of its display that is not read. Write it again: "
            "ffmpeg -i IN OUT"
        ) from error
    if turned or mirrored:
        raise VideoError(
            f"{str(path)!r} is to be shown turned or mirrored. Turn its pixels: "
            "ffmpeg -i IN OUT.mp4"
        )
    if round_:
        raise VideoError(
            f"{str(path)!r} is no flat picture but two views or a sphere. Cut one out."
        )
    format_ = frame.format
    if (format_.has_palette or any(part.is_alpha for part in format_.components)) and (
        frame.reformat(format="rgba").to_ndarray()[..., 3].min() < 255
    ):
        raise _transparent(path)


def _kind(frame: "av.VideoFrame", name: str) -> bytes | None:
    """What comes with a frame under a name of FFmpeg's."""
    found = frame.side_data.get(name)
    return None if found is None else bytes(cast(SupportsBytes, found))


def _mirrored(matrix: bytes | None) -> bool:
    """Whether a display matrix has the handedness of a mirror."""
    if not matrix:
        return False
    a, b, _, c, d = np.frombuffer(matrix[:20], "=i4").astype(np.float64)
    return bool(a * d - b * c < 0)


def _transparent(path: Path) -> VideoError:
    return VideoError(f"{str(path)!r} is transparent in places. Put it on a background.")


def _converter(frame: "av.VideoFrame") -> "av.filter.Graph":
    """The filters that make RGB of frames like this one, by its own matrix and range."""
    from av.filter import Graph

    graph = Graph()
    last = graph.add(
        "buffer",
        f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1000:"
        f"pixel_aspect=1/1:colorspace={frame.colorspace}:range={frame.color_range}",
    )
    for name, option in (("scale", f"{frame.width}:{frame.height}"), ("format", "rgb24")):
        following = graph.add(name, option)
        last.link_to(following)
        last = following
    last.link_to(graph.add("buffersink"))
    graph.configure()
    return graph


def _check_complete(path: Path) -> None:
    """Refuse no file, and an mp4 of fewer bytes than its boxes announce: FFmpeg plays the rest."""
    try:
        check_file(path)
    except FileNotFoundError:
        raise VideoError(f"There is no video file {str(path)!r}. Check the path.") from None
    except OSError as error:
        raise VideoError(
            f"The video {str(path)!r} cannot be read ({error.strerror}). Name a file that you may "
            "read."
        ) from error
    total, position, indexed = path.stat().st_size, 0, False
    with path.open("rb") as file:
        if file.read(12)[4:8] != b"ftyp":
            return
        while position < total:
            file.seek(position)
            header = file.read(16)
            size, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if indexed and kind not in _BOXES:  # a signature or padding behind the last box
                return
            indexed = indexed or kind == b"moov"
            size = int.from_bytes(header[8:16], "big") if size == 1 else size or total - position
            if len(header) < 8 or size < 8 or position + size > total:
                raise VideoError(f"{str(path)!r} is cut short. Copy or write it again.")
            position += size
