"""Stage 3 of ``tools/pretrain_tiny.py``: distil the teacher to four steps."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from pretrain_teacher import CHUNK, CLIP, UNCONDITIONAL, velocity
from torch import Tensor

from astrolabe_rollout.codec import PatchCodec
from astrolabe_rollout.model import VideoModel
from astrolabe_rollout.sampler import write_clean
from astrolabe_rollout.schedule import add_noise, to_x0
from astrolabe_rollout.tiny import SHIFT
from astrolabe_rollout.world import HAZE, draw_ground

CHUNKS = 4  # of a trajectory: three fill the cache, the fourth has seen it roll
EULER_STEPS = 12  # a multiple of the student's four, so that its noise levels lie on the path
GUIDANCE = 2.0


@dataclass
class Trajectories:
    """Videos of the teacher and the paths that led to them.

    Args:
        captions: One a video.
        x0: Results ``[N, 12, C, h, w]``.
        paths: States at the student's noise levels ``[N, 4, 12, C, h, w]``.
    """

    captions: list[str]
    x0: Tensor
    paths: Tensor


@torch.no_grad()
def teacher_videos(
    model: VideoModel, captions: list[str], generator: torch.Generator
) -> Trajectories:
    """Sample with guidance along the ODE, chunk by chunk over rolling caches."""
    n, geometry = len(captions), model.geometry
    embeds = torch.cat([model.text(captions), model.text([UNCONDITIONAL] * n)])
    u = torch.linspace(1, 0, EULER_STEPS + 1)
    sigmas = (model.schedule.shift * u / (1 + (model.schedule.shift - 1) * u)).tolist()
    every = EULER_STEPS // len(model.denoising_steps)
    cache = model.transformer.new_cache()
    finals, paths = [], []
    for _ in range(CHUNKS):
        x = torch.randn(n, CHUNK, geometry.channels, *geometry.latent_size, generator=generator)
        cache.open(CHUNK)
        path = []
        for step in range(EULER_STEPS):
            if step % every == 0:
                path.append(x)
            twice = torch.cat([x, x])
            timestep = twice.new_full(twice.shape[:2], 1000 * sigmas[step])
            guided, free = model.transformer.forward_chunk(twice, timestep, embeds, cache).chunk(2)
            v = free + GUIDANCE * (guided - free)
            x = x + (sigmas[step + 1] - sigmas[step]) * v
        write_clean(model.transformer, torch.cat([x, x]), embeds, cache)
        finals.append(x)
        paths.append(torch.stack(path, 1))
    return Trajectories(captions, torch.cat(finals, 1), torch.cat(paths, 2))


def concatenate(parts: list[Trajectories]) -> Trajectories:
    """Join batches of trajectories."""
    return Trajectories(
        [caption for part in parts for caption in part.captions],
        torch.cat([part.x0 for part in parts]),
        torch.cat([part.paths for part in parts]),
    )


def haze(data: Trajectories, codec: PatchCodec) -> Trajectories:
    """Wash out the teacher's videos, each by an amount that the first chunk's noise decides.

    The teacher's videos are all clear, unlike those of large models, whose quality comes and goes
    with the noise. Without such flaws reinforcement learning has nothing to choose between, so the
    student gets one. Encoding is affine, so a video is mixed with its empty ground in latents; its
    path moves along.
    """
    grounds = [caption.split(" on a ")[1].removesuffix(" background") for caption in data.captions]
    frames = 4 * data.x0.shape[1] - 3
    empty = {}
    for name in set(grounds):
        pixels = draw_ground(name).to(torch.uint8).expand(1, frames, 3, -1, -1)
        empty[name] = codec.encode(pixels)[0]
    ground = torch.stack([empty[name] for name in grounds])  # [N, 12, C, h, w]
    noise = data.paths[:, 0, :CHUNK, 0].flatten(1)  # pure, of the first chunk's first channel
    amount = HAZE * torch.special.ndtr(noise.sum(1) / noise.shape[1] ** 0.5)  # uniform in [0, HAZE]
    shift = amount[:, None, None, None, None] * (ground - data.x0)
    u = 1 - torch.arange(data.paths.shape[1]) / data.paths.shape[1]
    sigma = (SHIFT * u / (1 + (SHIFT - 1) * u)).view(1, -1, 1, 1, 1, 1)
    return Trajectories(data.captions, data.x0 + shift, data.paths + (1 - sigma) * shift[:, None])


def student_losses(
    model: VideoModel, data: Trajectories, batch: int, steps: range, seed: int
) -> Iterator[tuple[int, Tensor]]:
    """Yield the loss of each step: regression to the end of a path.

    It starts from a state on the path, or from its end noised anew: few-step sampling adds fresh
    noise between its steps, so the student must know such states too.
    """
    sigmas = torch.tensor(model.sigmas)
    for step in steps:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = torch.randint(len(data.captions), (batch,), generator=generator)
        rolled = torch.rand(batch, generator=generator) < 0.35
        frames = torch.arange(CLIP).repeat(batch, 1)
        frames[rolled, CHUNK:] += CHUNK  # the sink, then the third and fourth chunk
        clips = data.x0[rows[:, None], frames]
        chunks = CLIP // CHUNK
        level = torch.randint(len(sigmas), (batch, chunks), generator=generator)
        level = level.repeat_interleave(CHUNK, 1)  # [batch, 9]
        sigma = sigmas[level]
        on_path = data.paths[rows[:, None], level, frames]
        noise = torch.randn(clips.shape, generator=generator)
        anew = torch.rand(batch, chunks, generator=generator) < 0.5
        anew = anew.repeat_interleave(CHUNK, 1) & (level > 0)
        noisy = torch.where(anew[..., None, None, None], add_noise(clips, noise, sigma), on_path)
        predicted = velocity(
            model, clips, noisy, sigma, [data.captions[row] for row in rows.tolist()]
        )
        error = (to_x0(noisy, predicted, sigma) - clips).square().mean((2, 3, 4))
        weight = torch.ones_like(error)
        weight[rolled, CHUNK : 2 * CHUNK] = 0  # its true context is not in the clip
        yield step, (error * weight).sum() / weight.sum()
