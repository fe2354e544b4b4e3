"""Videos from prompts: chunk by chunk into mp4 files, while they are made."""

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from astrolabe.clock import peak_memory
from astrolabe.errors import ConfigError
from astrolabe.jobs import Job, Manifest
from astrolabe_eval import Mp4Writer, read_mp4
from astrolabe_eval.sealed import file_digest
from astrolabe_rollout.chunks import Chunk, ChunkStream
from astrolabe_rollout.model import VideoModel


@dataclass(frozen=True)
class Progress:
    """How far a batch of videos is."""

    jobs: list[Job]
    frames: int
    """Pixel frames of each video so far."""
    share: float
    """In [0, 1]."""
    seconds: float
    """Since the batch began."""
    first: float
    """Seconds until the first frames were there."""
    memory: float
    """Peak memory of the process, GiB."""

    @property
    def rate(self) -> float:
        """Pixel frames per second, all videos of the batch together."""
        return len(self.jobs) * self.frames / max(self.seconds, 1e-9)


def generate_videos(
    model: VideoModel,
    work: Iterable[tuple[list[Job], list[Job]]],
    manifest: Manifest,
    *,
    begin: Tensor | None = None,
) -> Iterator[Progress]:
    """Write one mp4 for each job that is left.

    Args:
        model: The model.
        work: From `astrolabe.jobs.whole_batches`. A batch is sampled whole, as its videos were the
            first time: their pixels may depend on it.
        manifest: Of the folder of the files; gets a line for each video that is complete.
        begin: Clean latents ``[1, n, C, h, w]`` with which every video starts, see `beginning`.

    Yields:
        How far the present batch is, after every chunk; a share of 1 once its files are complete.

    Raises:
        OSError: If a file cannot be written.
    """
    for batch, left in work:
        yield from _write(model, batch, left, manifest, begin)


def _write(
    model: VideoModel, batch: list[Job], left: list[Job], manifest: Manifest, begin: Tensor | None
) -> Iterator[Progress]:
    """Sample the videos of one batch together, those that are left each into its file."""
    given = 0 if begin is None else begin.shape[1]
    total = batch[0].chunks * model.geometry.chunk
    start, first, frames = time.perf_counter(), 0.0, 0
    stream = ChunkStream(
        model, [job.seed for job in batch], capacity=_capacity(model, given, total)
    )
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                Mp4Writer(manifest.folder / f"{job.name}.mp4", model.fps, min_side=192)
            )
            for job in left
        ]
        rows = [batch.index(job) for job in left]
        latent_frames = 0
        for chunk in _chunks(model, stream, batch, begin):
            assert chunk.pixels is not None
            for writer, video in zip(writers, chunk.pixels[rows].cpu().numpy(), strict=True):
                writer.add(video)
            seconds = time.perf_counter() - start
            first = first or seconds
            frames += chunk.pixels.shape[1]
            latent_frames += chunk.latents.shape[1]
            share = latent_frames / (given + total)
            progress = Progress(left, frames, share, seconds, first, peak_memory())
            if share < 1:
                yield progress
        figures = {
            "frames": frames,
            "frames_per_second": round(progress.rate, 3),
            "seconds_to_first_frame": round(first, 3),
            "peak_memory_gib": round(progress.memory, 3),
        }
        # Lines come before the files have their names: a line without its file does no harm, while
        # a file under the line of an earlier one would pass for what it is not.
        for job, writer in zip(left, writers, strict=True):
            (manifest.folder / f"{job.name}.mp4").unlink(missing_ok=True)
            manifest.add(job, figures, file_digest(writer.finish()))
    yield progress


def _chunks(
    model: VideoModel, stream: ChunkStream, batch: list[Job], begin: Tensor | None
) -> Iterator[Chunk]:
    embeds, before = None, None
    device = next(model.transformer.parameters()).device
    for number, videos in enumerate(zip(*(job.shown for job in batch), strict=True)):
        prompts = [prompt for prompt, _ in videos]
        if prompts != before:
            embeds, before = model.text(prompts).to(device), prompts
        assert embeds is not None
        if number == 0 and begin is not None:
            yield stream.begin(begin.to(device).expand(len(batch), -1, -1, -1, -1), embeds)
        yield stream.next(embeds, cut=[cut for _, cut in videos])


def _capacity(model: VideoModel, given: int, total: int) -> int | None:
    return given + total if model.geometry.window is None else None


def beginning(path: Path, model: VideoModel) -> Tensor:
    """Return the latents of a picture or of the end of a video, for new videos to go on from.

    Pictures are scaled to the model's size and what hangs over is cut off; a video is brought to
    the model's frame rate.

    Args:
        path: A file that ffmpeg can read.
        model: The model.

    Returns:
        ``[1, n, C, h, w]``: one frame of a picture; of a video as much as the model's cache can
        hold beside a chunk.

    Raises:
        VideoError: If the file is missing or neither picture nor video.
    """
    video, geometry = read_mp4(path), model.geometry
    count = max(1, round(len(video.frames) * model.fps / video.fps))
    rows = np.linspace(0, len(video.frames) - 1, count).round().astype(int)
    room = geometry.context or count
    latent = min(geometry.latent_frames_within(count), room)
    rows = rows[-geometry.pixel_frames(latent) :]
    frames = torch.from_numpy(np.ascontiguousarray(video.frames[rows])).float()
    height, width = geometry.height, geometry.width
    scale = max(height / frames.shape[-2], width / frames.shape[-1])
    size = [
        max(wanted, round(side * scale))
        for wanted, side in zip((height, width), frames.shape[-2:], strict=True)
    ]
    scaled = interpolate(frames, size=size, mode="bicubic", antialias=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    cut = scaled[..., top : top + height, left : left + width]
    return model.codec.encode(cut.round().clamp(0, 255).to(torch.uint8)[None])


def length(model: VideoModel, frames: int | None, seconds: float | None, default: int) -> int:
    """Return the chunks of a video, or of a scene that does not say.

    Args:
        model: The model.
        frames: Pixel frames.
        seconds: Length instead, rounded to whole chunks.
        default: Latent frames if neither is given.

    Raises:
        ConfigError: If both are given, or the frames are no whole number of chunks.
    """
    geometry = model.geometry
    if frames is not None and seconds is not None:
        raise ConfigError("--frames and --seconds are both given. Give one of them.")
    if frames is not None:
        try:
            return geometry.latent_frames(frames) // geometry.chunk
        except ValueError as error:
            raise ConfigError(f"--frames: {error}") from error
    if seconds is not None:
        if not seconds > 0:
            raise ConfigError(f"--seconds is {seconds}. Give more than 0.")
        return max(round(seconds * model.fps / geometry.temporal / geometry.chunk), 1)
    return default // geometry.chunk
