"""Contact sheets: many videos in one picture."""

import io
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from astrolabe_eval.frames import as_frames, evenly_spaced

_MARGIN = 14
_GAP = 3
_GUTTER = 18
_TEXT = 14
_CAPTION = _TEXT + 8
_GROUND = (22, 25, 31)
_INK = (214, 219, 226)
_FAINT = (139, 148, 158)


def contact_sheet(
    videos: Sequence[ArrayLike],
    captions: Sequence[str],
    *,
    after: Sequence[ArrayLike] | None = None,
    columns: int = 5,
    tile: int = 96,
    labels: tuple[str, str] = ("before", "after"),
) -> bytes:
    """One row for each prompt, evenly spaced frames from left to right.

    Args:
        videos: ``uint8 [F, 3, H, W]`` each.
        captions: The prompts, one for each video; cut with an ellipsis where too long.
        after: A second video for each prompt, shown to the right of the first.
        columns: Frames of each video; one with fewer frames leaves tiles empty.
        tile: Width of a frame in the sheet, pixels; the height follows from the first video.
        labels: Headings of the two halves, shown only with ``after``.

    Returns:
        A PNG file with a dark ground.

    Raises:
        ValueError: If there are no videos, or captions and videos do not pair up.
    """
    halves = [videos] if after is None else [videos, after]
    if not len(videos) or any(len(half) != len(captions) for half in halves):
        raise ValueError(
            f"A sheet needs one caption for each video: {[len(half) for half in halves]} videos, "
            f"{len(captions)} captions. Give at least one of both."
        )
    height = max(1, round(tile * np.shape(videos[0])[-2] / np.shape(videos[0])[-1]))
    strip = columns * (tile + _GAP) - _GAP
    width = 2 * _MARGIN + len(halves) * strip + (len(halves) - 1) * _GUTTER
    top = _MARGIN + (_CAPTION if after is not None else 0)
    row = _CAPTION + height + _GUTTER
    sheet = Image.new("RGB", (width, top + len(captions) * row - _GUTTER + _MARGIN), _GROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_TEXT)
    for side, half in enumerate(halves):
        left = _MARGIN + side * (strip + _GUTTER)
        if after is not None:
            draw.text((left, _MARGIN), labels[side], fill=_FAINT, font=font)
        for index, video in enumerate(half):
            y = top + index * row
            if side == 0:
                caption = _shorten(captions[index], width - 2 * _MARGIN, draw, font)
                draw.text((left, y), caption, fill=_INK, font=font)
            _paste_strip(sheet, video, (left, y + _CAPTION), columns, (tile, height))
    file = io.BytesIO()
    sheet.save(file, format="png")
    return file.getvalue()


def _paste_strip(
    sheet: Image.Image, video: ArrayLike, at: tuple[int, int], columns: int, size: tuple[int, int]
) -> None:
    frames = as_frames(video)
    # Small pixels are enlarged as squares, large pictures are averaged.
    shrinks = frames.shape[-1] > size[0]
    method = Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST
    for column, index in enumerate(evenly_spaced(len(frames), columns)):
        picture = Image.fromarray(np.ascontiguousarray(frames[index].transpose(1, 2, 0)))
        sheet.paste(picture.resize(size, method), (at[0] + column * (size[0] + _GAP), at[1]))


def _shorten(
    text: str,
    width: int,
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> str:
    """``text`` on one line, cut to ``width`` pixels."""
    text = " ".join(text[: 100 * width].split())[:width]  # no letter takes less than a pixel
    if draw.textlength(text, font=font) <= width:
        return text
    fits = bisect_left(
        range(len(text)), True, key=lambda n: draw.textlength(f"{text[:n]}…", font=font) > width
    )
    return f"{text[: max(0, fits - 1)].rstrip()}…"
