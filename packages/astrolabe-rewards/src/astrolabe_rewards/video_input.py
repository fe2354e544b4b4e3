"""Videos in the forms in which other programs hold them, as the pixels that rewards read."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from astrolabe_rewards.video_file import read_video

#: How far levels of floating point may lie outside of 0 to 1: rounding of 16 bits.
_ROUNDING = 1e-2
_MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "PA")


def split(videos: Any) -> list[Any]:  # Any: see `as_pixels`
    """Return the videos of a batch one by one.

    Args:
        videos: A list, or one array or tensor: ``[N, F, 3, H, W]`` or ``[N, F, H, W, 3]`` of
            videos, ``[N, 3, H, W]`` or ``[N, H, W, 3]`` of pictures.

    Raises:
        TypeError: If it is one video, or no batch at all.
        ValueError: If an array has another rank.
    """
    if isinstance(videos, (Tensor, np.ndarray)) and videos.dtype != object:
        if videos.ndim not in (4, 5):
            raise ValueError(
                f"videos are an array of shape {tuple(videos.shape)}. Give [N, F, 3, H, W], "
                "[N, 3, H, W] of pictures, or a list."
            )
        return list(videos)
    single = isinstance(videos, (str, bytes, os.PathLike, Mapping)) or _is_picture(videos)
    if single or not isinstance(videos, Iterable):
        raise TypeError(
            f"videos are a {type(videos).__name__}. Give a list of videos, one or more."
        )
    return list(videos)


def as_pixels(video: Any) -> tuple[Tensor, float | None]:  # Any: whatever holds a video
    """Return one video as rewards read it, and its frame rate if it says one.

    Args:
        video: A path to a file; an array or tensor ``[F, 3, H, W]`` or ``[F, H, W, 3]``, or a
            picture without ``F``; a picture of Pillow; or a list of such frames. Arrays are uint8,
            or floating in [0, 1]. Where both the last and the third last dimension are 3, those of
            tensors are channels first, those of arrays last.

    Returns:
        uint8 ``[F, 3, H, W]``; frames per second of a file, else None.

    Raises:
        TypeError: If it is none of these, or of another dtype.
        ValueError: If its shape is that of no video, or its levels lie outside of 0 to 1.
        VideoError: If a file cannot be read.
    """
    if isinstance(video, (str, os.PathLike)):
        found = read_video(os.fspath(video))
        return found.pixels, found.fps if len(found.pixels) > 1 else None
    if _is_picture(video):
        return _from_picture(video)[None], None
    if isinstance(video, (Tensor, np.ndarray)):
        return _from_array(video), None
    if isinstance(video, Sequence) and not isinstance(video, (str, bytes)):
        frames = [as_pixels(frame)[0] for frame in video]
        if not frames:
            raise ValueError("it has no frames. Give at least one.")
        sizes = {tuple(frame.shape) for frame in frames}
        if len(sizes) > 1 or len(frames[0]) > 1:
            raise ValueError(
                f"its frames have the shapes {sorted(sizes)}. Give single frames of one size."
            )
        return torch.cat(frames), None
    raise TypeError(
        f"it is a {type(video).__name__}. Give a path, frames as a list, an array or a tensor, or "
        "a picture of Pillow."
    )


def _is_picture(value: object) -> bool:
    """Whether it is a picture of Pillow, which is not needed to know that."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)


def _from_picture(picture: Any) -> Tensor:  # Any: Pillow may not be installed
    """A picture of Pillow as it is shown, uint8 ``[3, H, W]``."""
    from PIL import ImageOps

    if picture.mode not in _MODES:
        raise ValueError(f"a picture has the mode {picture.mode!r}. Convert it: .convert('RGB').")
    picture = ImageOps.exif_transpose(picture)
    if "A" in picture.mode or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        if picture.getchannel("A").getextrema()[0] < 255:
            raise ValueError("a picture is transparent in places. Put it on a background.")
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def _from_array(values: "Tensor | np.ndarray[Any, Any]") -> Tensor:
    """An array or tensor of frames, or of one, uint8 ``[F, 3, H, W]``."""
    shape, last = tuple(values.shape), isinstance(values, np.ndarray)
    if len(shape) not in (3, 4):
        raise ValueError(
            f"it has shape {shape}, not [F, 3, H, W], [F, H, W, 3] or one frame of it."
        )
    first_is, last_is = shape[-3] == 3, shape[-1] == 3
    if not (first_is or last_is):
        raise ValueError(f"it has shape {shape}: no 3 channels. {_way_out(shape)}")
    if 0 in shape:
        raise ValueError(f"it has shape {shape}: no frames or no area.")
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "uif":
            raise TypeError(f"it is of {values.dtype}. Give uint8, or floating numbers in [0, 1].")
        values = torch.from_numpy(np.ascontiguousarray(values))
    if last_is and (last or not first_is):
        values = values.movedim(-1, -3)
    levels = _levels(values.detach())
    return levels[None] if len(shape) == 3 else levels


def _way_out(shape: tuple[int, ...]) -> str:
    if len(shape) == 4 and shape[0] == 3:
        return "Its first dimension is: give frames first, video.movedim(0, 1)."
    if 4 in (shape[-1], shape[-3]):
        return "Put what is transparent on a background and leave the fourth channel out."
    if 1 in (shape[-1], shape[-3]):
        return "Repeat the grey channel three times."
    return "Give [F, 3, H, W] or [F, H, W, 3]."


def _levels(values: Tensor) -> Tensor:
    """Levels as uint8."""
    if values.dtype == torch.uint8:
        return values
    if not values.is_floating_point():
        raise TypeError(
            f"it is of {values.dtype}. Give uint8, as by .to(torch.uint8) of levels from 0 to 255, "
            "or floating numbers in [0, 1]."
        )
    low, high = (float(end) for end in values.aminmax())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # NaN is neither
        if 1 + _ROUNDING < high <= 255 and low >= 0:
            way_out = "Levels from 0 to 255 are uint8: .round().to(torch.uint8)"
        elif -1 - _ROUNDING <= low < 0 and high <= 1 + _ROUNDING:
            way_out = "From -1 to 1 it is made by (video + 1) / 2"
        else:
            way_out = "Mend what is not finite or of another range"
        raise ValueError(
            f"it has floating levels from {low:g} to {high:g}, not from 0 to 1. {way_out}."
        )
    return (values.float() * 255).round().clamp(0, 255).to(torch.uint8)
