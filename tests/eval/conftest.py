"""A model, a scorer and videos with known answers."""

import numpy as np
import pytest
import torch


def _moving_square(shift=0, num_frames=9, side=48):
    """A red square that moves right by one pixel a frame over a smooth blue ground."""
    ramp = np.linspace(40, 200, side)
    frames = np.zeros((num_frames, 3, side, side), dtype=np.uint8)
    frames[:, 2] = ramp[None, None, :]
    for index in range(num_frames):
        left = 4 + shift + index
        frames[index, :, 16:28, left : left + 12] = np.array([220, 40, 30])[:, None, None]
    return frames


@pytest.fixture
def moving_square():
    return _moving_square


@pytest.fixture
def bright_model():
    """Makes grey videos: as bright as the prompt's number and the seed's noise say, plus gain."""

    def make(gain):
        def sample(batch):
            levels = []
            for text, seed in zip(
                batch["prompt", "text"], batch["prompt", "seed"].tolist(), strict=True
            ):
                noise = torch.rand((), generator=torch.Generator().manual_seed(seed))
                levels.append(float(text.split()[-1]) + gain + 10 * noise)
            pixels = torch.tensor(levels).to(torch.uint8)[:, None, None, None, None]
            batch["video", "pixels"] = pixels.expand(-1, 5, 3, 8, 8).clone()
            return batch

        return sample

    return make


@pytest.fixture
def brightness():
    """Scores the mean level, 0 to 255, and twice that as reward."""

    def score(batch):
        mean = batch["video", "pixels"].float().mean(dim=(1, 2, 3, 4)).unsqueeze(-1)
        batch["score", "brightness"] = mean
        batch["next", "reward"] = 2 * mean
        return batch

    return score
