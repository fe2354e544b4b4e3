"""Text alignment without weights: colour words, directions and brightness, and nothing else.

Rules on pixels and optical flow. Honest scope: prompts of a synthetic world, or a smoke test.
Objects, actions and relations are invisible to it; a prompt without a known word scores a neutral
0.5.
"""

import re
from typing import ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from astrolabe_rewards.flow import dense_flow, single_threaded
from astrolabe_rewards.frames import LUMA, channels_last, evenly_spaced, shrink
from astrolabe_rewards.needs import require
from astrolabe_rewards.reward import Reward
from astrolabe_rewards.words import direction_of

NEUTRAL = 0.5
_LONGEST = 128  # pixels; larger videos are scaled down
_NUM_FRAMES = 9  # looked at for colours and brightness

#: Colour words and what they stand for, RGB 0 to 255.
ANCHORS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (220, 45, 45),
    "orange": (240, 140, 30),
    "yellow": (245, 210, 50),
    "green": (60, 175, 70),
    "cyan": (60, 200, 220),
    "blue": (50, 90, 220),
    "purple": (150, 60, 185),
    "pink": (245, 150, 190),
    "brown": (120, 75, 40),
    "black": (16, 16, 16),
    "gray": (110, 110, 110),
    "white": (240, 240, 240),
}
_COLOUR = re.compile(rf"\b({'|'.join(ANCHORS)}|grey)\b")
_DARK = re.compile(r"\b(dark|night|nighttime|dim|gloomy)\b")
_BRIGHT = re.compile(r"\b(bright|sunny|daylight|sunlit)\b")
_TOWARDS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}


def _lab(colours: NDArray[np.uint8]) -> NDArray[np.float32]:
    """CIE Lab of RGB ``[n, 3]``."""
    import cv2

    image = np.ascontiguousarray(colours[None]).astype(np.float32) / 255
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2LAB)[0], np.float32)


def colour_shares(frames: NDArray[np.uint8]) -> dict[str, float]:
    """Share of the pixels of ``[F, H, W, 3]`` whose nearest anchor in Lab is each colour word."""
    anchors = _lab(np.array(list(ANCHORS.values()), dtype=np.uint8))
    pixels = _lab(frames.reshape(-1, 3))
    # |p - a|² without the |p|² that all anchors share.
    nearest = ((anchors**2).sum(1) - 2 * pixels @ anchors.T).argmin(1)
    shares = np.bincount(nearest, minlength=len(ANCHORS)) / len(nearest)
    return dict(zip(ANCHORS, shares.tolist(), strict=True))


def mean_velocity(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean flow, pixels per frame right and down, of ``[F, H, W, 3]`` where it changes."""
    if len(frames) < 2:
        return np.zeros(2, np.float32)
    flow = dense_flow(frames)
    weight = np.abs(np.diff(frames.astype(np.float32), axis=0)).sum(-1)
    return np.asarray((flow * weight[..., None]).sum((0, 1, 2)) / (weight.sum() + 1e-6), np.float32)


class AttributeTA(Reward):
    """Colour words, directions and brightness of a prompt, looked up in the video.

    The mean over what the prompt names of

    - every colour word: ``s / (s + 0.05)``, s the share of pixels nearest to it in Lab;
    - a direction of motion ("moves left"): ``½ + ½ v·d / √(|v|² + 0.1²)``, v the mean flow;
    - dark or bright: a logistic function of the mean luma around ½.

    A prompt that names none of these scores 0.5, and ``coverage`` says so.
    """

    name: ClassVar[str] = "attribute_ta"
    measures: ClassVar[str] = "colour words, directions, dark or bright; 0.5 for any other prompt"
    unit: ClassVar[str] = "mean agreement of the named attributes, 0 to 1"
    needs_text: ClassVar[bool] = True

    def __init__(self) -> None:
        require("opencv", self.name)
        super().__init__()

    def score(self, pixels: Tensor, prompts: list[str], fps: Tensor) -> Tensor:
        """Return the agreement of video and prompt, float32 ``[N]``; see ``Reward.score``."""
        with single_threaded():
            scores = [
                self._video(video, prompt) for video, prompt in zip(pixels, prompts, strict=True)
            ]
        return torch.tensor(scores, dtype=torch.float32)

    @staticmethod
    def coverage(prompts: list[str]) -> Tensor:
        """Return how many attributes each prompt names, int64 ``[N]``; 0 means a neutral score."""
        return torch.tensor([_count(prompt) for prompt in prompts], dtype=torch.int64)

    @staticmethod
    def _video(pixels: Tensor, prompt: str) -> float:
        """The agreement of one video."""
        if _count(prompt) == 0:
            return NEUTRAL
        frames = channels_last(shrink(pixels, _LONGEST))
        some = frames[evenly_spaced(len(frames), min(_NUM_FRAMES, len(frames)))]
        scores = []
        if colours := _colours(prompt):
            shares = colour_shares(some)
            scores += [shares[colour] / (shares[colour] + 0.05) for colour in colours]
        if direction := direction_of(prompt):
            velocity = mean_velocity(frames)
            along = float(velocity @ np.array(_TOWARDS[direction], np.float32))
            scores.append(0.5 + 0.5 * along / float(np.sqrt((velocity**2).sum() + 0.1**2)))
        if sign := _brightness(prompt):
            luma = float((some.astype(np.float32) / 255 @ LUMA).mean())
            scores.append(1 / (1 + float(np.exp(-sign * (luma - 0.5) / 0.12))))
        return float(np.mean(scores))


def _colours(prompt: str) -> list[str]:
    """The colour words of a prompt, each once."""
    found = (word.replace("grey", "gray") for word in _COLOUR.findall(prompt.lower()))
    return list(dict.fromkeys(found))


def _brightness(prompt: str) -> int:
    """1 for a bright picture, -1 for a dark one, 0 if the prompt says neither or both."""
    text = prompt.lower()
    return bool(_BRIGHT.search(text)) - bool(_DARK.search(text))


def _count(prompt: str) -> int:
    """How many attributes a prompt names."""
    return len(_colours(prompt)) + bool(direction_of(prompt)) + bool(_brightness(prompt))
