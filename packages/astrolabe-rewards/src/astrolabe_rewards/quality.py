"""Visual quality of single frames, from the pixels alone.

These are hand-made measures, no learned ones: they tell a sharp, clean, well exposed frame from a
spoiled one, and know nothing of content or beauty. Where the formulas of a measure are the
literature's, it is cited; the weights, ranges and the geometric mean are ours, set on real pictures
and on the embedded model's world so that each damage lowers the score and nothing saturates.
"""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from astrolabe_rewards.frames import LUMA, MEAN, Floats, channels_last
from astrolabe_rewards.needs import require
from astrolabe_rewards.reward import Reward

_FLOOR = 1e-3  # of every factor, so that one that is zero does not hide the others
_FAINT_EDGE = 0.2  # Sobel response of a step of 5 %: below it, edges may be noise and count less
_NOISE_KERNEL = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], dtype=np.float32)
_EXPONENTS = {"sharpness": 0.45, "noise": 0.25, "contrast": 0.15, "exposure": 0.1, "colour": 0.05}


def blurriness(frame: Floats) -> float:
    """How little a frame loses when it is blurred again, 0 (sharp) to 1 (Crete et al. 2007).

    As ``skimage.measure.blur_effect``, but on all three channels, so that an object as bright as
    its ground has edges too, and with less weight for faint edges, so that noise does not pass for
    sharpness.

    Args:
        frame: ``[H, W, 3]`` in [0, 1].
    """
    import cv2

    height, width = frame.shape[:2]
    result = []
    for across, size in ((True, width), (False, height)):
        window = min(11, size)
        box = (window, 1) if across else (1, window)
        dx, dy = (1, 0) if across else (0, 1)
        sharp = np.abs(cv2.Sobel(frame, cv2.CV_32F, dx, dy))
        again = np.abs(cv2.Sobel(cv2.blur(frame, box), cv2.CV_32F, dx, dy))
        weight = sharp / (sharp + _FAINT_EDGE)
        edges = float((weight * sharp).sum())
        lost = float((weight * np.maximum(sharp - again, 0)).sum())
        result.append(1 - lost / edges if edges > 0 else 1.0)
    return max(result)


def noise_level(frame: Floats) -> float:
    """Standard deviation of fine noise (Immerkær 1996), away from edges (Tai and Yang 2008).

    ``σ = √(π/2) / 6 · mean |frame * N|`` with N the difference of two Laplacians, over the 80 % of
    pixels with the smallest gradient.

    Args:
        frame: ``[H, W, 3]`` in [0, 1].
    """
    import cv2

    across, down = cv2.Sobel(frame, cv2.CV_32F, 1, 0), cv2.Sobel(frame, cv2.CV_32F, 0, 1)
    strength = ((np.abs(across) + np.abs(down)) @ MEAN).ravel()
    detail = (np.abs(cv2.filter2D(frame, cv2.CV_32F, _NOISE_KERNEL)) @ MEAN).ravel()
    count = max(1, int(0.8 * len(strength)))
    calm = np.argpartition(strength, count - 1)[:count]
    return float(np.sqrt(np.pi / 2) / 6 * detail[calm].mean())


def frame_factors(frame: Floats) -> dict[str, float]:
    """Measure one frame.

    Args:
        frame: ``[H, W, 3]`` in [0, 1].

    Returns:
        Factors in [0, 1], larger is better: ``sharpness`` = 1 - blurriness; ``noise`` =
        exp(-max(0, σ - 0.01) / 0.04); ``contrast`` = r / (r + 0.1) with r the widest range of a
        channel (1st to 99th percentile, so the size of an object hardly counts); ``exposure`` = 1 -
        (2 m - 1)² with m the mean luma; ``colour`` = M / (M + 30) with M the colourfulness of
        Hasler and Süsstrunk 2003.
    """
    flat = frame.reshape(-1, 3)
    ends = max(1, len(flat) // 100)
    ordered = np.partition(flat, (ends - 1, len(flat) - ends), axis=0)
    reach = float((ordered[len(flat) - ends] - ordered[ends - 1]).max())
    mean = float((flat @ LUMA).mean())
    red_green = flat[:, 0] - flat[:, 1]
    yellow_blue = (flat[:, 0] + flat[:, 1]) / 2 - flat[:, 2]
    vividness = 255 * float(
        np.hypot(red_green.std(), yellow_blue.std())
        + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean())
    )
    return {
        "sharpness": 1 - blurriness(frame),
        "noise": float(np.exp(-max(0.0, noise_level(frame) - 0.01) / 0.04)),
        "contrast": reach / (reach + 0.1),
        "exposure": 1 - (2 * mean - 1) ** 2,
        "colour": vividness / (vividness + 30),
    }


class SharpnessVQ(Reward):
    """Visual quality without weights: sharp, clean, well exposed frames.

    Every frame gets ``Π_k max(factor_k, 0.001)^e_k`` of ``frame_factors`` with exponents sharpness
    0.45, noise 0.25, contrast 0.15, exposure 0.1, colour 0.05; the video gets the mean of its best
    frames.

    Args:
        top: Share of the frames that count, the best ones, in (0, 1]. Astrolabe takes 0.3 for its
            image reward.

    Raises:
        ValueError: If ``top`` is not in (0, 1].
    """

    name: ClassVar[str] = "sharpness_vq"
    measures: ClassVar[str] = (
        "sharpness, noise, contrast, exposure, colour of the best 30 % of frames"
    )
    unit: ClassVar[str] = "geometric mean of frame measures, 0 to 1"

    def __init__(self, *, top: float = 0.3) -> None:
        require("opencv", self.name)
        super().__init__()
        if not 0 < top <= 1:
            raise ValueError(f"top is {top!r}, not in (0, 1]. Take 1.0 for the mean of all frames.")
        self.top = top

    def score(self, pixels: Tensor, prompts: list[str], fps: Tensor) -> Tensor:
        """Return the quality of each video, float32 ``[N]``; see ``Reward.score``."""
        return torch.tensor([self._video(video) for video in pixels], dtype=torch.float32)

    def _video(self, pixels: Tensor) -> float:
        """The mean of the best frames of one video."""
        frames = channels_last(pixels).astype(np.float32) / 255  # [F, H, W, 3]
        values = []
        for frame in frames:
            factors = frame_factors(frame)
            values.append(np.prod([max(factors[k], _FLOOR) ** e for k, e in _EXPONENTS.items()]))
        best = np.sort(values)[::-1][: max(1, int(self.top * len(values)))]
        return float(best.mean())
