"""A video model as a function from prompts and seeds to videos."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor

from astrolabe.checkpoint_files import LORA
from astrolabe.run_folder import RunFolder
from astrolabe_rollout.chunks import ChunkStream
from astrolabe_rollout.errors import CheckpointError
from astrolabe_rollout.lora import load_lora
from astrolabe_rollout.model import VideoModel
from astrolabe_rollout.scenes import Scene, parse_scenes
from astrolabe_rollout.streaming import StreamingPolicy

#: Reads text, seed, window index and fps of a batch ``[n]``; returns it with pixels.
Sample = Callable[[TensorDict], TensorDict]


def sampler(model: VideoModel, num_frames: int, overview: int = 0) -> Sample:
    """Return a function that samples videos of ``num_frames`` latent frames with the model.

    Each prompt is encoded by itself: the last bits depend on what is encoded with it, and a prompt
    that was met before would bring those of an earlier batch.

    Args:
        model: The model.
        num_frames: Whole chunks.
        overview: Frames of overviews for rewards that read them; 0: none.
    """
    policy = StreamingPolicy(model, num_frames=num_frames, overview=overview)

    def sample(batch: TensorDict) -> TensorDict:
        batch["prompt", "embeds"] = torch.cat([model.text([p]) for p in batch["prompt", "text"]])
        sampled: TensorDict = policy(batch)
        return sampled

    return sample


def script_sampler(model: VideoModel, num_frames: int, overview: int = 0) -> Sample:
    """Return a function that plays scripts of scenes, which must be of equal length in a batch.

    Args:
        model: The model.
        num_frames: Latent frames of a scene that does not say, whole chunks.
        overview: Frames of overviews for rewards that read them; 0: none.
    """
    default = num_frames // model.geometry.chunk

    def sample(batch: TensorDict) -> TensorDict:
        seeds = batch["prompt", "seed"].tolist()
        made = [
            _play(model, parse_scenes(script), seed, default, overview)
            for script, seed in zip(batch["prompt", "text"], seeds, strict=True)
        ]
        for name in made[0]:
            batch["video", name] = torch.cat([video[name] for video in made])
        return batch

    return sample


def _play(
    model: VideoModel, scenes: Sequence[Scene], seed: int, default: int, overview: int
) -> dict[str, Tensor]:
    """The pixels of one video, ``[1, F, 3, H, W]``, and what else is asked for."""
    lengths = [scene.chunks(model.geometry, model.fps, default) for scene in scenes]
    capacity = sum(lengths) * model.geometry.chunk if model.geometry.window is None else None
    stream = ChunkStream(model, [seed], capacity=capacity, overview=overview)
    pixels: list[Tensor] = []
    for number, (scene, length) in enumerate(zip(scenes, lengths, strict=True)):
        embeds = model.text([scene.prompt])
        for chunk in range(length):
            cut = scene.cut and number > 0 and chunk == 0
            made = stream.next(embeds, cut=cut)
            assert made.pixels is not None
            pixels.append(made.pixels)
    found = {"pixels": torch.cat(pixels, 1)}
    if stream.overview is not None:
        found["overview"] = stream.overview.frames()
        found["overview_fps"] = torch.tensor([stream.overview.fps(model.fps)])
    return found


def reading_scenes(step: Sample) -> Sample:
    """Let a reward read what all scenes of a script show, without lengths and marks."""

    def read(batch: TensorDict) -> TensorDict:
        plain = batch.copy()
        plain["prompt", "text"] = [
            ". ".join(scene.prompt.rstrip(". ") for scene in parse_scenes(script))
            for script in batch["prompt", "text"]
        ]
        return step(plain)

    return read


def newest_checkpoint(folder: RunFolder) -> Path:
    """Return the folder of a run's newest checkpoint.

    Raises:
        CheckpointError: If there is none, or it is damaged.
    """
    checkpoint = folder.newest()
    if checkpoint is None:
        raise CheckpointError(
            f"{str(folder.path)!r} has no checkpoint yet. "
            f"Train on with: astrolabe train --resume {folder.path}"
        )
    return checkpoint


def load_trained(model: VideoModel, folder: RunFolder) -> Path:
    """Put the averaged adapter of a run's newest checkpoint on its model; return the checkpoint.

    Raises:
        CheckpointError: If there is none, or it is damaged or of another model.
    """
    checkpoint = newest_checkpoint(folder)
    load_lora(model.transformer.network, checkpoint / LORA)
    return checkpoint
