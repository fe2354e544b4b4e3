"""A video model as a function from prompts and seeds to videos."""

from collections.abc import Callable
from pathlib import Path

import torch
from tensordict import TensorDict

from astrolabe.config import Run
from astrolabe.run_folder import LORA, RunFolder
from astrolabe_rollout.errors import CheckpointError
from astrolabe_rollout.lora import load_lora
from astrolabe_rollout.model import VideoModel
from astrolabe_rollout.streaming import StreamingPolicy

#: Reads text, seed, window index and fps of a batch ``[n]``; returns it with pixels.
Sample = Callable[[TensorDict], TensorDict]


def sampler(model: VideoModel, num_frames: int, overview: int = 0) -> Sample:
    """Return a function that samples videos of ``num_frames`` latent frames with the model.

    Args:
        model: The model.
        num_frames: Whole chunks.
        overview: Frames of overviews for rewards that read them; 0: none.
    """
    policy = StreamingPolicy(model, num_frames=num_frames, overview=overview)

    def sample(batch: TensorDict) -> TensorDict:
        batch["prompt", "embeds"] = model.text(list(batch["prompt", "text"]))
        sampled: TensorDict = policy(batch)
        return sampled

    return sample


def one_by_one(step: Sample) -> Sample:
    """Return a function that hands the videos of a batch to ``step`` each by itself.

    The last bits of a matrix product depend on how many rows it has; so no number depends on what
    else is in the batch.
    """

    def each(batch: TensorDict) -> TensorDict:
        alone = [step(batch[row : row + 1].copy()) for row in range(len(batch))]
        joined: TensorDict = torch.cat(alone)
        return joined

    return each


def load_trained(model: VideoModel, folder: RunFolder) -> Path:
    """Put the averaged adapter of a run's newest checkpoint on its model; return the checkpoint.

    Raises:
        CheckpointError: If there is none, or it is damaged or of another model.
    """
    checkpoint = folder.newest()
    if checkpoint is None:
        raise CheckpointError(
            f"{str(folder.path)!r} has no checkpoint yet. "
            f"Train on with: astrolabe train --resume {folder.path}"
        )
    load_lora(model.transformer.network, checkpoint / LORA)
    return checkpoint


def evaluation_frames(run: Run) -> int:
    """Latent frames of the videos that a run is judged by."""
    return run.evaluation.num_frames or run.rollout.num_frames
