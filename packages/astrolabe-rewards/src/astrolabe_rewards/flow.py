"""Dense optical flow of a video, by OpenCV's DIS (Kroeger et al. 2016).

Flow is found on one channel: the video's own main axis of colour. In luma alone a red object on a
grey ground can be invisible.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import cast

import numpy as np
from numpy.typing import NDArray

from astrolabe_rewards.frames import Floats

#: Below this many pixels a side DIS has no patch to match.
MIN_SIDE = 16
_LEAST_RANGE = 32.0  # levels; a flat video's own noise is not stretched beyond this


@contextmanager
def single_threaded() -> Iterator[None]:
    """Keep OpenCV to one thread: on small frames its threads only wait for each other."""
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def main_colour_axis(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Project a video on the axis along which its colours vary most, stretched to 0..255.

    Args:
        frames: ``[F, H, W, 3]``.

    Returns:
        uint8 ``[F, H, W]``.
    """
    colours = frames.reshape(-1, 3).astype(np.float32)
    colours -= colours.mean(0)
    axis = np.linalg.eigh(colours.T @ colours)[1][:, -1].astype(np.float32)
    values = colours @ (axis if axis.sum() >= 0 else -axis)
    low, high = float(values.min()), float(values.max())
    values = (values - low) * (255 / max(high - low, _LEAST_RANGE))
    return values.clip(0, 255).astype(np.uint8).reshape(frames.shape[:3])


def dense_flow(frames: NDArray[np.uint8]) -> Floats:
    """Find where every pixel of a frame is in the next one.

    Args:
        frames: ``[F, H, W, 3]``, F at least 2.

    Returns:
        Pixels right and down, float32 ``[F - 1, H, W, 2]``; zero if a side is under ``MIN_SIDE``.
    """
    import cv2

    grey = main_colour_axis(frames)
    if min(grey.shape[1:]) < MIN_SIDE:
        return np.zeros((len(grey) - 1, *grey.shape[1:], 2), np.float32)
    finder = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    finder.setFinestScale(0)  # small objects move by fractions of a pixel
    # The stubs of OpenCV ask for an initial flow; None, which begins at rest, is allowed too.
    flow_between = cast(Callable[..., Floats], finder.calc)
    return np.stack([flow_between(first, second, None) for first, second in pairwise(grey)])


def follow(values: Floats, flow: Floats) -> Floats:
    """Fetch what the next frames show at the places that the flow points to.

    Args:
        values: ``[n, H, W, c]``, entry t of frame t + 1.
        flow: ``[n, H, W, 2]``, from frame t to t + 1.

    Returns:
        ``[n, H, W, c]`` on the grid of frame t.
    """
    import cv2

    height, width = flow.shape[1:3]
    across, down = np.meshgrid(
        np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    )
    # The stubs ask for two maps; one of two channels is allowed too.
    remap = cast(Callable[..., Floats], cv2.remap)
    places = flow + np.stack([across, down], -1)
    return np.stack(
        [
            remap(value, place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            for value, place in zip(values, places, strict=True)
        ]
    )
