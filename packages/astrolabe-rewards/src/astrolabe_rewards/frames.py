"""Frames as the rewards want them: chosen, resized, in luma or grey, cut into patches."""

import math

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


#: What Qwen2-VL takes from every channel, and what it divides by, in [0, 1] (CLIP's numbers).
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
#: Side of the square of pixels that is one token of Qwen2-VL: 2x2 patches of 14.
TOKEN_SIDE = 28


def fitted_size(height: int, width: int, least: int, most: int) -> tuple[int, int]:
    """Return the size nearest to a picture's whose sides are whole tokens (Qwen's smart_resize).

    Args:
        height: Pixels.
        width: Pixels.
        least: Fewest pixels of the result.
        most: Most pixels of the result.

    Raises:
        ValueError: If one side is more than 200 times the other.

    Example:
        >>> fitted_size(480, 832, 256 * 28 * 28, 256 * 28 * 28)
        (336, 588)
    """
    if max(height, width) > 200 * min(height, width):
        raise ValueError(
            f"frames are {height}x{width}: one side is more than 200 times the other. "
            "Cut or pad them to a shape that a picture has."
        )
    sides = [max(TOKEN_SIDE, round(side / TOKEN_SIDE) * TOKEN_SIDE) for side in (height, width)]
    if sides[0] * sides[1] > most:
        ratio = math.sqrt(height * width / most)
        sides = [math.floor(side / ratio / TOKEN_SIDE) * TOKEN_SIDE for side in (height, width)]
    elif sides[0] * sides[1] < least:
        ratio = math.sqrt(least / (height * width))
        sides = [math.ceil(side * ratio / TOKEN_SIDE) * TOKEN_SIDE for side in (height, width)]
    return max(TOKEN_SIDE, sides[0]), max(TOKEN_SIDE, sides[1])


def count_at_rate(num_frames: int, fps: float, rate: float) -> int:
    """Return how many frames of a video Qwen takes: about ``rate`` per second, even, 4 to 768.

    A video of fewer than four frames gives as many as it has, rounded down to even; one of a single
    frame gives 2, the same twice (Qwen's smart_nframes refuses it).

    Example:
        >>> count_at_rate(81, 16.0, 2.0), count_at_rate(3, 16.0, 2.0), count_at_rate(1, 16.0, 2.0)
        (10, 2, 2)
    """
    most = min(768, num_frames) // 2 * 2
    wanted = min(max(num_frames / fps * rate, 4), most)
    return max(2, round(wanted / 2) * 2)


def grey(pixels: Tensor) -> Tensor:
    """Return uint8 ``[..., 3, H, W]`` in grey, one channel ``[..., 1, H, W]`` (torchvision's)."""
    red, green, blue = pixels.unbind(-3)
    luma = (0.2989 * red + 0.587 * green + 0.114 * blue).to(torch.uint8)  # truncated, not rounded
    return luma.unsqueeze(-3)


def resized(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale frames as torchvision does: bicubic, antialiased, rounded to whole levels.

    Args:
        frames: uint8 ``[F, C, H, W]``.
        size: Height and width.

    Returns:
        uint8 ``[F, C, h, w]``.
    """
    if tuple(frames.shape[-2:]) == size:
        return frames
    scaled = functional.interpolate(frames.float(), size=size, mode="bicubic", antialias=True)
    return scaled.clamp_(0, 255).round_().to(torch.uint8)


def resized_by_pillow(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale frames by Pillow, whose bicubic kernel is another: levels differ by up to 24.

    Args:
        frames: uint8 ``[F, 3, H, W]``.
        size: Height and width.

    Returns:
        uint8 ``[F, 3, h, w]`` on the CPU.
    """
    from PIL import Image

    if tuple(frames.shape[-2:]) == size:
        return frames.cpu()
    pictures = [
        np.asarray(Image.fromarray(frame).resize(size[::-1], Image.Resampling.BICUBIC))
        for frame in channels_last(frames)
    ]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def qwen_patches(frames: Tensor) -> Tensor:
    """Cut frames into the patches that Qwen2-VL reads.

    Args:
        frames: uint8 ``[F, 3, H, W]`` on any device, sides multiples of 28; an odd last frame is
            taken twice.

    Returns:
        float32 ``[ceil(F / 2) · H/14 · W/14, 1176]``: patches of 2 frames and 14x14 pixels, the
        four of a token next to each other, normalised by CLIP's mean and deviation.
    """
    if len(frames) % 2:
        frames = torch.cat([frames, frames[-1:]])
    count, _, height, width = frames.shape
    mean = torch.tensor(_CLIP_MEAN, device=frames.device)[:, None, None]
    std = torch.tensor(_CLIP_STD, device=frames.device)[:, None, None]
    normal = (frames.float() / 255 - mean) / std
    cut = normal.reshape(count // 2, 2, 3, height // 28, 2, 14, width // 28, 2, 14)
    return cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, 3 * 2 * 14 * 14)
