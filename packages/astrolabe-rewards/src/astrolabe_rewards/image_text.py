"""What rewards that look at single frames have in common: which frames, how many at once, the mean.

The frames of all videos of a batch are put to the network in micro-batches; a prompt is read once,
not once per frame.
"""

import hashlib
import logging
import math
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from astrolabe_rewards.network import Network
from astrolabe_rewards.placement import Placement
from astrolabe_rewards.reward import Reward
from astrolabe_rewards.weights import digest

#: Texts to token ids ``[N, L]``, and how many texts were longer than L and cut.
Tokens = Callable[[list[str]], tuple[Tensor, int]]

_log = logging.getLogger(__name__)


def frames_at(num_frames: int, fps: float, rate: float | None) -> list[int]:
    """Return the numbers of the frames nearest to 0, 1/rate, 2/rate, ... seconds; the first always.

    Args:
        num_frames: At least 1.
        fps: Frames per second of the video.
        rate: Frames per second that are wanted; None, or more than there are, gives every frame.

    Raises:
        ValueError: If ``fps`` is not a positive number.

    Example:
        >>> frames_at(33, 16.0, 2.0), frames_at(5, 16.0, 2.0), frames_at(3, 16.0, None)
        ([0, 8, 16, 24, 32], [0], [0, 1, 2])
    """
    if rate is None:
        return list(range(num_frames))
    if not 0 < fps < math.inf:
        raise ValueError(
            f"a video has {fps!r} frames per second. Give a positive number, or sample by fps=None."
        )
    step = max(1.0, fps / rate)
    places = (math.floor(k * step + 0.5) for k in range(math.ceil(num_frames / step)))
    return [place for place in places if place < num_frames]


class FrameReward(Reward):
    """A reward that scores frames by themselves; not a reward by itself.

    A subclass sets ``_network``, ``_files`` and, if it reads prompts, ``_tokens``, and writes
    ``_judged``.

    Args:
        placement: Where and how the weights are held.
        fps: Frames per second that are looked at; None for every frame.
        micro_batch: Frames, or prompts, of one forward.

    Raises:
        ValueError: If ``fps`` or ``micro_batch`` is not positive.
    """

    _network: Network
    _files: list[Path]
    _tokens: Tokens

    def __init__(self, placement: Placement, fps: float | None, micro_batch: int) -> None:
        super().__init__()
        if fps is not None and not 0 < fps < math.inf:
            raise ValueError(
                f"fps is {fps!r}. Give the frames per second to look at, such as 2.0, or None for "
                "every frame."
            )
        if micro_batch < 1 or micro_batch != int(micro_batch):
            raise ValueError(
                f"micro_batch is {micro_batch!r}. Give the frames of one forward, such as 32."
            )
        self.dtype = placement.dtype
        self.fps = fps
        self._placement = placement
        self._micro_batch = int(micro_batch)
        self._cut = 0

    @property
    def cut(self) -> int:
        """How many prompts of the last batch were longer than the model reads, and were cut."""
        return self._cut

    def load(self) -> Self:
        """Read the weights now instead of at the first score."""
        self._network.load()
        return self

    def fingerprint(self) -> str:
        """Return a short digest of class, options and the bytes of all files."""
        text = f"{super().fingerprint()} {self.fps} {digest(self._files)}"
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def score(self, pixels: Tensor, prompts: list[str] | None, fps: Tensor) -> Tensor:
        """Return what the frames' scores come to, float32 ``[N]``; see ``Reward.score``."""
        chosen = [frames_at(pixels.shape[1], rate, self.fps) for rate in fps.tolist()]
        videos = [video for video, places in enumerate(chosen) for _ in places]
        numbers = [number for places in chosen for number in places]
        with self._network.lock, torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            network = self._network.load()
            texts = torch.empty(len(pixels), 0)
            if self.needs_text and prompts is not None:
                texts = self._read(network, prompts)  # [N, ...]
            parts = []
            for start in range(0, len(videos), self._micro_batch):
                these = videos[start : start + self._micro_batch]
                frames = pixels[these, numbers[start : start + self._micro_batch]]
                parts.append(self._judged(network, frames, texts[these]).float())
            # No result was waited for until here: the device computes while the CPU prepares.
            scores = torch.cat(parts).cpu()
        each = torch.split(scores, [len(places) for places in chosen])
        return torch.stack([self._pooled(frames) for frames in each])

    @abstractmethod
    def _judged(self, network: Any, frames: Tensor, texts: Tensor) -> Tensor:
        """Score frames; written by subclasses.

        Args:
            network: Loaded; ``Any`` because its library has no types.
            frames: uint8 ``[n, 3, H, W]`` where they came from.
            texts: ``[n, ...]``, what ``_texts`` made of each frame's prompt.

        Returns:
            ``[n]`` on any device.
        """

    def _texts(self, network: Any, ids: Tensor) -> Tensor:
        """What ``_judged`` needs of prompts, from their token ids ``[n, L]`` on the device."""
        raise NotImplementedError(f"{self.name} reads no prompts.")

    def _pooled(self, scores: Tensor) -> Tensor:
        """One number from the scores ``[f]`` of a video's frames."""
        return scores.mean()

    @property
    def _device(self) -> torch.device:
        return self._placement.torch_device()

    def _placed(self, pictures: Tensor) -> Tensor:
        """Pictures as the network takes them."""
        return pictures.to(self._device, self._placement.torch_dtype())

    def _read(self, network: Any, prompts: list[str]) -> Tensor:
        """The prompts as ``_judged`` needs them, one row each."""
        # A lone surrogate, which no UTF-8 has, becomes a question mark.
        clean = [prompt.encode("utf-8", "replace").decode("utf-8") for prompt in prompts]
        ids, self._cut = self._tokens(clean)
        if self._cut:
            _log.warning(
                "%s: %d of %d prompts are longer than the %d tokens that it reads, and are cut",
                self.name,
                self._cut,
                len(prompts),
                ids.shape[1],
            )
        parts = torch.split(ids.to(self._device), self._micro_batch)
        return torch.cat([self._texts(network, part) for part in parts])
