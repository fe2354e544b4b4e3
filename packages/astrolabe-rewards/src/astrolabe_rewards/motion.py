"""Motion quality of a video, from its optical flow.

Hand-made, no learned weights: it asks whether things move, keep their speed from frame to frame,
and keep their looks while they move. It does not know what a natural motion is.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from astrolabe_rewards.flow import dense_flow, follow, single_threaded
from astrolabe_rewards.frames import LUMA, MEAN, Floats, channels_last, shrink
from astrolabe_rewards.needs import require
from astrolabe_rewards.reward import Reward

_LONGEST = 256  # pixels; larger videos are scaled down before flow is found
_SLOW = 0.05  # picture diagonals per second at which half the credit for moving is given
_SOFTNESS = 0.8  # pixels
_FAST = 0.8  # above this many diagonals per second (5 % per frame at 16) credit falls again


@dataclass(frozen=True)
class MotionFactors:
    """What ``flow_mq`` multiplies; each in [0, 1], larger is better."""

    amplitude: float
    smoothness: float
    consistency: float
    steadiness: float

    def quality(self) -> float:
        """Geometric mean of the three manners of moving, times 0.2 (still) to 1 (moving)."""
        manner = math.cbrt(self.smoothness * self.consistency * self.steadiness)
        return manner * (0.2 + 0.8 * self.amplitude)


def motion_factors(frames: NDArray[np.uint8], fps: float) -> MotionFactors:
    """Measure one video.

    With flow ``f_t``, change ``d_t = |I_{t+1} - I_t|`` and what flow leaves unexplained
    ``e_t = |I_{t+1}(x + f_t) - I_t|``, colours in [0, 1]:

    - amplitude: ``s² / (s² + 0.05²)``, s the mean of the fastest 5 % of a frame in diagonals per
      second, falling again above 0.8. Things that turn or pulse in place count as moving.
    - smoothness: ``exp(-a / (0.5 + m))``; a and m are acceleration and speed in pixels where the
      picture changes, median over time: jitter is in every frame, the turn of a bouncing ball is
      not.
    - consistency: ``exp(-ρ e / (0.07 c))``, ρ = Σe/Σd the unexplained share, e the mean of the
      largest tenth of ``e_t``, c the contrast of the video (1st to 99th percentile of its widest
      channel, at least 0.1), so that a faint video is not a consistent one; the geometric mean of
      its average over time and of its worst tenth, so one pop counts.
    - steadiness: ``exp(-b / 0.03)``, b the mean change of overall brightness against its trend.

    Args:
        frames: ``[F, H, W, 3]``.
        fps: Frames per second.

    Returns:
        The factors; all but the amplitude are 1 for a video of less than three frames.
    """
    if len(frames) < 3:
        return MotionFactors(0.0, 1.0, 1.0, 1.0)
    import cv2

    # Sampling noise at sharp edges would otherwise favour blurred videos.
    soft = np.stack([cv2.GaussianBlur(frame, (0, 0), _SOFTNESS) for frame in frames])
    colours: Floats = np.divide(soft, 255, dtype=np.float32)  # [F, H, W, 3]
    flow = dense_flow(soft)  # [F - 1, H, W, 2]
    speed = np.hypot(flow[..., 0], flow[..., 1])  # [F - 1, H, W]
    change = np.abs(np.diff(colours, axis=0)) @ MEAN
    error = np.abs(follow(colours[1:], flow) - colours[:-1]) @ MEAN
    turn = follow(flow[1:], flow[:-1]) - flow[:-1]
    weight = change[:-1] + change[1:] + 1e-6  # where there is something to see

    pace = float(_largest(speed, 0.05).mean()) * fps / float(np.hypot(*frames.shape[1:3]))
    amplitude = pace**2 / (pace**2 + _SLOW**2) * float(np.exp(-max(0.0, pace / _FAST - 1)))
    acceleration = (weight * np.hypot(turn[..., 0], turn[..., 1])).sum((1, 2))
    roughness = acceleration / (weight * (0.5 + speed[:-1])).sum((1, 2))
    unexplained = error.sum((1, 2)) / (change.sum((1, 2)) + 0.001 * change[0].size)
    relative = _largest(error, 0.1).mean(1) / max(_contrast(colours), 0.1)
    kept = np.sort(np.exp(-unexplained * relative / 0.07))
    lowest = kept[: max(1, round(len(kept) / 10))]
    brightness = (colours @ LUMA).mean((1, 2))
    bend = np.abs(brightness[2:] - 2 * brightness[1:-1] + brightness[:-2]).mean() / 2
    return MotionFactors(
        amplitude=amplitude,
        smoothness=float(np.exp(-np.median(roughness))),
        consistency=float(np.sqrt(kept.mean() * lowest.mean())),
        steadiness=float(np.exp(-bend / 0.03)),
    )


def _contrast(colours: Floats) -> float:
    """Widest range of a channel over all frames ``[F, H, W, 3]``, without the outer percents."""
    low, high = np.percentile(colours[:, ::2, ::2].reshape(-1, 3), (1, 99), axis=0)
    return float((high - low).max())


def _largest(values: Floats, share: float) -> Floats:
    """The largest numbers of every frame: ``[F, H, W]`` to ``[F, k]``."""
    flat = values.reshape(len(values), -1)
    first = flat.shape[1] - max(1, int(share * flat.shape[1]))
    return np.partition(flat, first, axis=1)[:, first:]


class FlowMQ(Reward):
    """Motion quality without weights: things move, smoothly, and keep their looks.

    ``(smoothness · consistency · steadiness)^⅓ · (0.2 + 0.8 amplitude)``, see ``motion_factors``.
    """

    name: ClassVar[str] = "flow_mq"
    measures: ClassVar[str] = "whether things move, smoothly, and keep their looks (optical flow)"
    unit: ClassVar[str] = "product of motion measures, 0 to 1"

    def __init__(self) -> None:
        require("opencv", self.name)
        super().__init__()

    def score(self, pixels: Tensor, prompts: list[str], fps: Tensor) -> Tensor:
        """Return the motion quality of each video, float32 ``[N]``; see ``Reward.score``."""
        with single_threaded():
            scores = [
                motion_factors(channels_last(shrink(video, _LONGEST)), rate).quality()
                for video, rate in zip(pixels, fps.tolist(), strict=True)
            ]
        return torch.tensor(scores, dtype=torch.float32)
