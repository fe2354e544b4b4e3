"""Videos from prompts, and scores of videos."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDict

from astrolabe.compose import build_model, build_term
from astrolabe.config import Part, RewardTerm
from astrolabe.errors import ConfigError
from astrolabe.run_folder import RunFolder
from astrolabe.sampling import load_trained, sampler
from astrolabe_eval import Suite, generate, read_mp4, write_mp4
from astrolabe_rollout.model import VideoModel


def generate_videos(
    prompts: Sequence[str],
    out: Path,
    *,
    model: Part,
    run: Path | None,
    frames: int | None,
    seconds: float | None,
    seed: int,
    batch_size: int,
) -> Iterator[Path]:
    """Write one mp4 for each prompt.

    Args:
        prompts: What to show.
        out: Folder of the files; made if missing.
        model: The model, unless ``run`` names one.
        run: Folder of a run whose trained adapter is used.
        frames: Pixel frames of a video; None: see ``seconds``.
        seconds: Length instead of frames, rounded to whole chunks; None: as long as in training.
        seed: Of the first video's noise; the next ones count up.
        batch_size: Videos sampled together.

    Yields:
        Each file once it is written.

    Raises:
        ConfigError: If the frames are no whole number of chunks, or both lengths are given.
        CheckpointError: If the run has no checkpoint that can be used.
        OSError: If a file cannot be written.
    """
    if frames is not None and seconds is not None:
        raise ConfigError("--frames and --seconds are both given. Give one of them.")
    default_frames = None
    if run is not None:
        folder, settings = RunFolder.open(run)
        model, default_frames = settings.model, settings.rollout.num_frames
    video_model = build_model(model)
    num_frames = _latent_frames(video_model, frames, seconds, default_frames)
    if run is not None:
        load_trained(video_model, folder)
    suite = Suite("prompts", tuple(prompts), tuple(range(seed, seed + len(prompts))))
    number = 0
    for batch in generate(
        sampler(video_model, num_frames), suite, fps=video_model.fps, batch_size=batch_size
    ):
        for pixels in batch["video", "pixels"].cpu().numpy():
            path = out / f"{number:03d}-{_file_name(suite.prompts[number])}.mp4"
            write_mp4(path, pixels, video_model.fps, min_side=192)
            yield path
            number += 1


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


def _latent_frames(
    model: VideoModel, frames: int | None, seconds: float | None, default: int | None
) -> int:
    """Latent frames of the videos to make, a whole number of chunks."""
    geometry = model.geometry
    if frames is not None:
        try:
            return geometry.latent_frames(frames)
        except ValueError as error:
            raise ConfigError(f"--frames: {error}") from error
    if seconds is not None:
        if not seconds > 0:
            raise ConfigError(f"--seconds is {seconds}. Give more than 0.")
        latent = seconds * model.fps / geometry.temporal
        return max(round(latent / geometry.chunk), 1) * geometry.chunk
    # Without a word about the length, that of the run's training, or of three chunks.
    return default or 3 * geometry.chunk


def _file_name(prompt: str) -> str:
    """A prompt as a part of a file name that every system accepts."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "video"
