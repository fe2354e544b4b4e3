"""How much moves in a video, by the optical flow of RAFT (Teed and Deng 2020, arXiv 2003.12039).

The measure is VBench's dynamic degree (Huang et al. 2024, arXiv 2311.17982) before its thresholds:
VBench tells for each video whether it moves, this tells how much. VBench takes the weights of
RAFT's authors and 20 updates, this takes torchvision's weights and 12; hence another name. Motion
of any kind counts, a shaking camera's too: it is a remedy against videos that stand still, not a
measure of how well things move.
"""

import hashlib
import math
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from astrolabe_rewards.errors import WeightsError
from astrolabe_rewards.needs import RAFT_FILES as FILES
from astrolabe_rewards.needs import RAFT_URL as _URL
from astrolabe_rewards.needs import raft_file, require
from astrolabe_rewards.network import Network
from astrolabe_rewards.placement import Placement, shared
from astrolabe_rewards.reward import Reward
from astrolabe_rewards.weights import TensorFiles, digest

Size = Literal["large", "small"]

_RATE = 8.0  # pairs of frames per second, about
_FASTEST = 0.05  # share of a frame's pixels
_THRESHOLD = 6 / 256  # of the shorter side: what VBench calls motion
_LEAST_SIDE = 128  # below it the coarsest correlations of RAFT have no pixels


def frame_step(fps: float) -> int:
    """Return which frames make up about 8 per second: every n-th, as VBench chooses them.

    Raises:
        ValueError: If ``fps`` is not a positive number.

    Example:
        >>> frame_step(16.0), frame_step(24.0), frame_step(30.0), frame_step(5.0)
        (2, 3, 4, 1)
    """
    if not 0 < fps < math.inf:
        raise ValueError(f"a video has {fps!r} frames per second. Give a positive number.")
    return max(1, round(fps / _RATE))


def flow_between(network: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    """Find where the pixels of frames are in other frames.

    Sides are padded to multiples of 8 and at least 128, evenly, by repeating the edges; the flow
    of what was added is cut off.

    Args:
        network: One of torchvision's RAFT networks.
        first: uint8 ``[n, 3, H, W]`` on its device.
        second: The same.

    Returns:
        Pixels right and down after the last of 12 updates, float32 ``[n, 2, H, W]``.
    """
    height, width = first.shape[-2:]
    down, across = (max(_LEAST_SIDE, math.ceil(side / 8) * 8) - side for side in (height, width))
    left, top = across // 2, down // 2
    padding = (left, across - left, top, down - top)
    # RAFT reads [-1, 1]. In [0, 255] or [0, 1] it answers too, with flow that means nothing.
    pair = [
        functional.pad(frames.float() / 127.5 - 1, padding, mode="replicate")
        for frames in (first, second)
    ]
    flow: Tensor = network(*pair)[-1][..., top : top + height, left : left + width]
    return flow


def fastest_mean(flow: Tensor) -> Tensor:
    """Mean length of the longest 5 % of flow vectors, ``[n, 2, H, W]`` to pixels ``[n]``."""
    speed: Tensor = torch.linalg.vector_norm(flow, dim=1).flatten(1)
    return speed.topk(max(1, int(_FASTEST * speed.shape[1])), dim=1).values.mean(1)


class RaftDynamics(Reward):
    """How much a video moves: 1 is the speed above which VBench calls a pair of frames dynamic.

    Every n-th frame is taken, ``n = max(1, round(fps / 8))``, and from each taken frame to the next
    the flow is found. The score is the mean over these pairs of
    ``(mean speed of the fastest 5 % of pixels) / (6 · min(H, W) / 256)``, speed in pixels per pair.
    It is 0 for a video of which a single frame is taken: that shows no motion. Meant for a GPU: on
    two cores of a CPU a pair of 480x832 takes half a minute.

    Args:
        weights: torchvision's file, or its folder; None looks where torchvision itself puts it,
            in the cache of ``torch.hub``. Nothing is downloaded.
        size: Of the network: "large" or, five times smaller and less exact, "small".
        micro_batch: Pairs of one forward. More is faster on a GPU and takes more memory; scores do
            not change.
        device: Where the weights go; None takes the current CUDA device if there is one, else the
            CPU.

    Raises:
        ModuleNotFoundError: If torchvision is not installed.
        ValueError: If an option is out of its range.
        WeightsError: If the weights are absent, damaged or of another network. They are read at the
            first score.

    Example:
        ``RaftDynamics(weights="/models/raft_large_C_T_SKHT_V2-ff5fadd5.pth")``
    """

    name: ClassVar[str] = "raft_dynamics"
    measures: ClassVar[str] = "amount of motion: the fastest 5 % of RAFT's optical flow"
    unit: ClassVar[str] = "VBench's threshold for a moving pair of frames; 0 (still) and up"
    licence: ClassVar[str] = "BSD-3-Clause (torchvision)"
    weights_from: ClassVar[str] = f"`{_URL}/{FILES['large']}`"
    memory: ClassVar[str] = "20 MiB (small: 4), and 0.5 GiB for each pair of 480x832"

    def __init__(
        self,
        *,
        weights: str | None = None,
        size: Size = "large",
        micro_batch: int = 4,
        device: str | None = None,
    ) -> None:
        super().__init__()
        if size not in FILES:
            raise ValueError(f"size is {size!r}. Choose from: {tuple(FILES)}.")
        if micro_batch < 1 or micro_batch != int(micro_batch):
            raise ValueError(f"micro_batch is {micro_batch!r}. Give the pairs of a forward, as 4.")
        require("flow", self.name)
        self.size = size
        self._micro_batch = int(micro_batch)
        self._file = _located(weights, size)
        self._placement = Placement("float32", device)
        self._network = shared(
            f"{self.name} {size}",
            [self._file],
            self._placement,
            lambda: Network(self.name, TensorFiles([self._file]), _skeleton(size), self._placement),
        )

    def score(self, pixels: Tensor, prompts: list[str], fps: Tensor) -> Tensor:
        """Return how much each video moves, float32 ``[N]``; see ``Reward.score``."""
        steps = [frame_step(rate) for rate in fps.tolist()]
        device = self._placement.torch_device()
        with self._network.lock, torch.no_grad(), torch.autocast(device.type, enabled=False):
            network = self._network.load()
            scores = [
                self._video(network, video[::step].to(device))
                for video, step in zip(pixels, steps, strict=True)
            ]
            return torch.stack(scores).cpu()

    def fingerprint(self) -> str:
        """Return a short digest of class, size and the bytes of the weights."""
        text = super().fingerprint() + digest([self._file])
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def _video(self, network: nn.Module, frames: Tensor) -> Tensor:
        """The score ``[]`` of the taken frames of one video, ``[f, 3, H, W]``."""
        if len(frames) < 2:
            return torch.zeros((), device=frames.device)
        first, second = frames[:-1], frames[1:]
        parts = [
            slice(start, start + self._micro_batch)
            for start in range(0, len(first), self._micro_batch)
        ]
        speeds = [fastest_mean(flow_between(network, first[at], second[at])) for at in parts]
        return torch.cat(speeds).mean() / (_THRESHOLD * min(frames.shape[-2:]))


def _skeleton(size: Size) -> nn.Module:
    """The network without numbers."""
    from torchvision.models.optical_flow import raft_large, raft_small

    with torch.device("meta"):
        network: nn.Module = {"large": raft_large, "small": raft_small}[size](weights=None)
    return network


def _located(weights: str | None, size: Size) -> Path:
    """The file of the weights, which is there."""
    published, file = FILES[size], raft_file(weights, size, torch.hub.get_dir())
    if not file.is_file():
        raise WeightsError(
            f"the weights of {RaftDynamics.name} ({published}) are not on this machine: there is "
            f"no {str(file)!r}. Fetch them with `curl -fLO {_URL}/{published}` where there is a "
            f"network, then set weights=DIR/{published}."
        )
    return file
