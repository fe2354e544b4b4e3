"""Scores of video files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDict

from astrolabe.compose import build_term
from astrolabe.config import RewardTerm
from astrolabe_eval import read_mp4


def score_videos(
    videos: Sequence[Path], prompts: Sequence[str], terms: dict[str, RewardTerm]
) -> Iterator[dict[str, float]]:
    """Score video files, one after the other.

    Args:
        videos: Files that ffmpeg can read.
        prompts: One for each video.
        terms: Rewards by the name of their score.

    Yields:
        The scores of each video by name.

    Raises:
        VideoError: If a file is missing, cut short, or no video.
        WeightsError: If a reward's weights are not there.
    """
    rewards = {name: build_term(name, term, "reward") for name, term in terms.items()}
    for path, prompt in zip(videos, prompts, strict=True):
        video = read_mp4(path)
        batch = TensorDict(batch_size=[1])
        batch["prompt", "text"] = [prompt]
        batch["video", "pixels"] = torch.from_numpy(np.ascontiguousarray(video.frames))[None]
        batch["video", "fps"] = torch.tensor([video.fps], dtype=torch.float32)
        yield {name: float(reward(batch.copy())["score", name]) for name, reward in rewards.items()}
