"""Frames as numpy arrays: the checks and the sizes that files and pictures share.

A video here is ``uint8 [F, 3, H, W]``, RGB, 0 to 255, the layout of ``("video", "pixels")``.
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Frames: TypeAlias = NDArray[np.uint8]


def as_frames(video: ArrayLike) -> Frames:
    """Check one video and return it as an array, without a copy where that is possible.

    Args:
        video: ``uint8 [F, 3, H, W]``, an array or a tensor on the CPU.

    Returns:
        The same pixels, ``uint8 [F, 3, H, W]``.

    Raises:
        TypeError: If the pixels are not ``uint8``.
        ValueError: If the shape is not ``[F, 3, H, W]`` with at least one frame.
    """
    frames = np.asarray(video)
    if frames.dtype != np.uint8:
        raise TypeError(
            f"Pixels are {frames.dtype}, not uint8. Scale them to 0..255, round, and convert."
        )
    if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise ValueError(
            f"A video has shape {frames.shape}, not (frames, 3, height, width). "
            "Pass one video at a time, channels before height and width, and at least one frame."
        )
    return frames


def upscale(video: Frames, min_side: int) -> Frames:
    """Repeat pixels until the shorter side is at least ``min_side``.

    The factor is whole, so every pixel stays a sharp square of one colour.

    Args:
        video: ``[F, 3, H, W]``.
        min_side: Pixels; a video that is large enough already comes back as it is.

    Returns:
        ``[F, 3, kH, kW]`` with the smallest whole ``k >= 1`` that reaches ``min_side``.
    """
    factor = -(-min_side // min(video.shape[-2:]))
    if factor <= 1:
        return video
    return video.repeat(factor, axis=-2).repeat(factor, axis=-1)


def evenly_spaced(num_frames: int, count: int) -> list[int]:
    """Indices of ``count`` frames, first and last included; fewer if there are fewer.

    >>> evenly_spaced(33, 5)
    [0, 8, 16, 24, 32]
    >>> evenly_spaced(2, 5)
    [0, 1]
    """
    if num_frames <= count:
        return list(range(num_frames))
    return [int(index) for index in np.linspace(0, num_frames - 1, count).round()]
