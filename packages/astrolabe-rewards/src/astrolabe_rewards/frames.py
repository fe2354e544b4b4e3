"""Frames as the rewards want them: chosen, resized, in luma."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Floats = NDArray[np.float32]

#: Weights of R, G and B in luma (ITU-R BT.601).
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
#: Weights of a plain mean over R, G and B; a product with it is much faster than ``.mean(-1)``.
MEAN = np.full(3, 1 / 3, dtype=np.float32)


def evenly_spaced(num_frames: int, count: int) -> list[int]:
    """Return ``count`` frame numbers from first to last; frames repeat if there are fewer.

    Example:
        >>> evenly_spaced(33, 5)
        [0, 8, 16, 24, 32]
        >>> evenly_spaced(2, 4)
        [0, 0, 1, 1]
    """
    return [int(i) for i in torch.linspace(0, num_frames - 1, count).round()]


def channels_last(pixels: Tensor) -> NDArray[np.uint8]:
    """Return one video uint8 ``[F, 3, H, W]`` as an array ``[F, H, W, 3]`` for OpenCV."""
    return np.ascontiguousarray(pixels.cpu().permute(0, 2, 3, 1).numpy())


def shrink(pixels: Tensor, longest: int) -> Tensor:
    """Scale a video down until its longer side is at most ``longest``; never up.

    Args:
        pixels: uint8 ``[F, 3, H, W]``.
        longest: Pixels.

    Returns:
        uint8 ``[F, 3, h, w]``, antialiased.
    """
    height, width = pixels.shape[-2:]
    if max(height, width) <= longest:
        return pixels
    ratio = longest / max(height, width)
    size = (max(1, round(height * ratio)), max(1, round(width * ratio)))
    return functional.interpolate(pixels, size=size, mode="bilinear", antialias=True)
