"""How a file says its frames are to be shown: turned, stretched, in which colours.

Turns, pixels that are not square, range and matrix are left to ffmpeg's own filters, so that the
result is that of its command line (with ``scale=iw*sar:ih`` for pixels that are not square).
What has no one right picture in RGB, or is not done here, is refused by name: fields of interlaced
video, high dynamic range, wide gamuts, transparency, two eyes, spheres.
"""

import struct
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Final, Literal, SupportsBytes, cast

import av
import numpy as np
from av.filter import Graph
from PIL import Image

from astrolabe_eval.errors import VideoError
from astrolabe_eval.frames import Frames

#: ``"tagged"``: the colours that the file was made of. ``"bt601"``: what OpenCV 4.11 makes of any
#: file; it ignores the tag (OpenCV 5 does not), so that numbers of tools built on it need the same.
Matrix = Literal["tagged", "bt601"]

_TO_709: Final = "Convert it: ffmpeg -i IN -vf zscale=t=linear,tonemap,zscale=p=709:t=709:m=709 OUT"
#: By the numbers of ITU-T H.273.
_TRANSFERS: Final = {
    8: "linear light",
    9: "logarithmic",
    10: "logarithmic",
    16: "high dynamic range (PQ)",
    17: "of digital cinema (SMPTE 428)",
    18: "high dynamic range (HLG)",
}
_PRIMARIES: Final = {
    8: "of film",
    9: "BT.2020",
    10: "XYZ",
    11: "DCI-P3",
    12: "Display P3",
}
#: What swscale converts: RGB, BT.709, untagged, FCC, BT.601 twice, SMPTE 240M, BT.2020.
_MATRICES: Final = frozenset({0, 1, 2, 4, 5, 6, 7, 9})
#: Exif's number of the orientation, and what each of its values means as a display matrix.
_ORIENTATION: Final = 0x112
_EXIF: Final = {
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}
#: Sides of a pixel; beyond it a tag is a mistake rather than a shape.
_MOST_STRETCH: Final = 10
#: Turns by a quarter, by the signs of the two entries that are not 0.
_TRANSPOSE: Final = {
    (True, False): "clock",
    (False, True): "cclock",
    (True, True): "cclock_flip",
    (False, False): "clock_flip",
}


class Display:
    """Turns the frames of one file into what is shown.

    Args:
        path: The file, for messages.
        stream: Of the video.
        matrix: How colours are converted.
    """

    def __init__(self, path: Path, stream: av.VideoStream, matrix: Matrix = "tagged") -> None:
        self._path, self._stream, self._matrix = path, stream, matrix
        self._graph: Graph | None = None
        self._of: tuple[object, ...] = ()
        self._size = (0, 0)
        self._turns: tuple[int, ...] | None = None
        if stream.metadata.get("alpha_mode") == "1":
            raise self._transparent()

    def check(self, frame: av.VideoFrame) -> None:
        """Refuse a frame that cannot be shown as RGB of 8 bits.

        Raises:
            VideoError: Says why, and what to do.
        """
        name = frame.format.name
        if frame.interlaced_frame:
            raise self._error(
                "is interlaced: a frame holds two moments.",
                "Make it progressive: ffmpeg -i IN -vf bwdif=mode=send_frame OUT",
            )
        if frame.color_trc in _TRANSFERS:
            raise self._error(f"is {_TRANSFERS[frame.color_trc]}, not BT.709.", _TO_709)
        if frame.color_primaries in _PRIMARIES:
            kind = _PRIMARIES[frame.color_primaries]
            raise self._error(f"has the primaries {kind}, not those of BT.709.", _TO_709)
        if frame.colorspace not in _MATRICES:
            raise self._error(
                f"has colours in a matrix that is not read (number {frame.colorspace} of H.273).",
                "Write it with BT.709.",
            )
        if "f32" in name or "f16" in name:
            raise self._error(f"has pixels as floating point ({name}).", "Write 8 or 16 bits.")
        if not _is_flat(frame):
            raise self._error("is no flat picture but two views or a sphere.", "Cut out one view.")
        turn = _turn_of(self._path, frame)
        self._turn(turn)
        if self._turns not in (None, turn):  # H.264 may say it of single frames
            raise self._error(
                "is turned in some frames and otherwise in others.",
                "Turn it into its pixels: ffmpeg -i IN OUT",
            )
        self._turns = turn
        if _has_alpha(frame) and frame.reformat(format="rgba").to_ndarray()[..., 3].min() < 255:
            raise self._transparent()

    def show(self, frame: av.VideoFrame) -> Frames:
        """Return what is shown of a frame, ``uint8 [3, H, W]``, RGB.

        Raises:
            VideoError: If its pixels have no shape that could be meant, or the size differs from
                that of the frames before.
        """
        turn = _turn_of(self._path, frame)
        colours = (frame.format.name, frame.colorspace, frame.color_range)
        of = (frame.width, frame.height, *colours, turn)
        if self._graph is None or of != self._of:
            self._graph, self._of = self._build(frame, turn), of
        self._graph.push(frame)
        picture = self._graph.pull()
        assert isinstance(picture, av.VideoFrame)
        shown = picture.to_ndarray()
        if self._size not in ((0, 0), shown.shape[:2]):
            raise self._error(
                f"changes its size from {self._size} to {shown.shape[:2]} (height, width).",
                "Write it with one size.",
            )
        self._size = shown.shape[:2]
        return np.ascontiguousarray(shown.transpose(2, 0, 1))

    def _build(self, frame: av.VideoFrame, turn: tuple[int, ...]) -> Graph:
        """The filters of ffmpeg's command line: turn, stretch, convert."""
        graph = Graph()
        # PyAV's add_buffer leaves the matrix and the range out.
        last = graph.add(
            "buffer",
            f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1000:"
            f"pixel_aspect=1/1:colorspace={frame.colorspace}:range={frame.color_range}",
        )
        turned, filters = self._turn(turn)
        width, height = (frame.height, frame.width) if turned else (frame.width, frame.height)
        scale = [f"{self._width(width, turned)}:{height}"]
        scale += ["in_color_matrix=bt601"] * (self._matrix == "bt601")
        for name, option in [*filters, ("scale", ":".join(scale)), ("format", "rgb24")]:
            following = graph.add(name, option)
            last.link_to(following)
            last = following
        last.link_to(graph.add("buffersink"))
        graph.configure()
        return graph

    def _turn(self, matrix: tuple[int, ...]) -> tuple[bool, list[tuple[str, str]]]:
        """Whether width and height change places, and the filters that turn and mirror.

        A point (x, y) of the file is shown at (a x + c y, b x + d y).
        """
        if not matrix:
            return False, []
        a, b, c, d = matrix
        largest = max(map(abs, (a, b, c, d)), default=0)
        # Whole turns have zeros; what is within a degree of them is rounding.
        a, b, c, d = (0 if abs(value) <= largest // 64 else value for value in (a, b, c, d))
        if b == c == 0 and a and d:
            flips = (("hflip", a < 0), ("vflip", d < 0))
            return False, [(name, "") for name, wanted in flips if wanted]
        if a == d == 0 and b and c:
            return True, [("transpose", _TRANSPOSE[b > 0, c > 0])]
        raise self._error(
            "is to be shown at an angle that is no quarter turn.",
            "Turn it into its pixels: ffmpeg -i IN OUT",
        )

    def _width(self, width: int, turned: bool) -> int:
        """Width in square pixels."""
        shape = Fraction(self._stream.sample_aspect_ratio or 1)
        if shape <= 0:
            return width
        if not Fraction(1, _MOST_STRETCH) <= shape <= _MOST_STRETCH:
            raise self._error(f"has pixels of {shape} sides.", "Write it with square pixels.")
        shown = int(width / shape if turned else width * shape)
        # 639:640 and the like come from sizes rounded to even numbers; they would only blur.
        return shown if abs(shown - width) > 1 else width

    def _transparent(self) -> VideoError:
        return self._error(
            "is transparent in places, and what is behind it is not said.",
            "Put it on a background: ffmpeg -f lavfi -i color=white:s=WxH -i IN "
            "-filter_complex overlay=shortest=1 OUT",
        )

    def _error(self, problem: str, advice: str) -> VideoError:
        return VideoError(f"{str(self._path)!r} {problem} {advice}")


def _turn_of(path: Path, frame: av.VideoFrame) -> tuple[int, ...]:
    """Where the corners go: a, b, c, d of the display matrix; none for a frame shown as it is."""
    try:
        data = _side_data(frame, "DISPLAYMATRIX")
    except ValueError:  # PyAV 18 has no name for Exif, and then gives no side data at all
        return _orientation(path)
    if not data:
        return ()
    a, b, _, c, d, *_ = struct.unpack("=9i", data[:36])
    return a, b, c, d


def _orientation(path: Path) -> tuple[int, ...]:
    """The orientation of a picture by its Exif, as in a display matrix."""
    try:
        with Image.open(path) as picture:
            return _EXIF.get(picture.getexif().get(_ORIENTATION, 1), ())
    except OSError as error:
        raise VideoError(
            f"{str(path)!r} says something about its display that is not read. "
            "Write it again: ffmpeg -i IN OUT"
        ) from error


def _is_flat(frame: av.VideoFrame) -> bool:
    """Whether it is neither a sphere nor two views (STEREO3D begins with its kind; 0 is flat)."""
    with suppress(ValueError):  # a picture with Exif, see `_turn_of`
        return not (_side_data(frame, "SPHERICAL") or any(_side_data(frame, "STEREO3D")[:4]))
    return True


def _side_data(frame: av.VideoFrame, kind: str) -> bytes:
    """What comes with a frame under a name of FFmpeg's; nothing if it does not."""
    found = frame.side_data.get(kind)
    return b"" if found is None else bytes(cast(SupportsBytes, found))


def _has_alpha(frame: av.VideoFrame) -> bool:
    return frame.format.has_palette or any(part.is_alpha for part in frame.format.components)
