"""Stage 2 of ``tools/pretrain_tiny.py``: a causal flow model of the procedural world.

Clips have three chunks: the first of a video, which later is the sink, and two that follow each
other. They follow the first at once, or after a jump: in block-relative positions this is what a
rolling cache shows, so the model learns to go on for ever at the price of nine latent frames.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from muon import Muon
from torch import Tensor, nn

from astrolabe_rollout.codec import PatchCodec
from astrolabe_rollout.model import VideoModel
from astrolabe_rollout.schedule import add_noise
from astrolabe_rollout.world import render, sample_scenes

CHUNK, CLIP = 3, 9
UNCONDITIONAL = ""


@dataclass
class Pool:
    """Encoded training videos ``[N, 21, C, h, w]`` with their captions."""

    latents: Tensor
    captions: list[str]

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, list[str], Tensor]:
        """Return clips ``[count, 9, C, h, w]``, captions, and each latent frame's weight."""
        rows = torch.randint(len(self.captions), (count,), generator=generator)
        jumps = torch.randint(2, self.latents.shape[1] // CHUNK - 1, (count,), generator=generator)
        jumps[torch.rand(count, generator=generator) < 0.65] = 1
        clips = [
            torch.cat([self.latents[row, :CHUNK], self.latents[row, j * CHUNK : (j + 2) * CHUNK]])
            for row, j in zip(rows.tolist(), jumps.tolist(), strict=True)
        ]
        weight = torch.ones(count, CLIP)
        # After a jump nothing tells how far it went: the chunk is context, not a target.
        weight[:, CHUNK : 2 * CHUNK] = (jumps == 1).float()[:, None]
        return torch.stack(clips), [self.captions[row] for row in rows.tolist()], weight


def make_pool(codec: PatchCodec, videos: int, frames: int, generator: torch.Generator) -> Pool:
    """Render and encode training videos."""
    scenes = sample_scenes(videos, generator)
    latents = [codec.encode(render(scene, frames)[None])[0] for scene in scenes]
    return Pool(torch.stack(latents), [scene.caption for scene in scenes])


class Optimiser:
    """Muon for the matrices of the blocks, AdamW for the rest; warm-up, linear decay to zero."""

    def __init__(
        self, modules: list[nn.Module], steps: int, muon_lr: float, adam_lr: float
    ) -> None:
        named = [item for module in modules for item in module.named_parameters()]
        inner = [p for name, p in named if p.ndim == 2 and "blocks" in name and "table" not in name]
        chosen = {id(p) for p in inner}
        outer = [p for _, p in named if id(p) not in chosen]
        self.parameters = inner + outer
        self.parts = [
            Muon(inner, lr=muon_lr),
            torch.optim.AdamW(outer, lr=adam_lr, weight_decay=0.0, betas=(0.9, 0.98)),
        ]
        self.schedules = [
            torch.optim.lr_scheduler.LambdaLR(
                part, lambda step: min((step + 1) / 50, max(1 - step / steps, 0.0) * 1.3, 1.0)
            )
            for part in self.parts
        ]

    def step(self) -> None:
        """Clip the gradients and take one step."""
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for part, schedule in zip(self.parts, self.schedules, strict=True):
            part.step()
            part.zero_grad()
            schedule.step()

    def state_dict(self) -> list[dict]:
        """Return the state of all parts."""
        return [item.state_dict() for item in (*self.parts, *self.schedules)]

    def load_state_dict(self, states: list[dict]) -> None:
        """Restore the state of all parts."""
        for item, state in zip((*self.parts, *self.schedules), states, strict=True):
            item.load_state_dict(state)


def velocity(
    model: VideoModel, clips: Tensor, noisy: Tensor, sigma: Tensor, captions: list[str]
) -> Tensor:
    """Predict every chunk's velocity over the clean ones before it, with gradient into both."""
    distinct = sorted(set(captions))
    index = torch.tensor([distinct.index(caption) for caption in captions])
    embeds = model.encoder(distinct)[index]
    clean = clips[:, :-CHUNK]
    record: dict = {}
    model.transformer.forward_window(clean, clean.new_zeros(clean.shape[:2]), embeds, record=record)
    return model.transformer.forward_window(noisy, 1000 * sigma, embeds, clean=record)


def teacher_losses(
    model: VideoModel, pool: Pool, batch: int, steps: range, seed: int
) -> Iterator[tuple[int, Tensor]]:
    """Yield the flow-matching loss of each step; every step draws from its own seed."""
    for step in steps:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        clips, captions, weight = pool.draw(batch, generator)
        dropped = torch.rand(batch, generator=generator) < 0.1
        captions = [
            UNCONDITIONAL if d else c for c, d in zip(captions, dropped.tolist(), strict=True)
        ]
        u = torch.rand(batch, CLIP // CHUNK, generator=generator).clamp(min=0.001)
        sigma = model.schedule.shift * u / (1 + (model.schedule.shift - 1) * u)
        sigma = sigma.repeat_interleave(CHUNK, 1)
        noise = torch.randn(clips.shape, generator=generator)
        predicted = velocity(model, clips, add_noise(clips, noise, sigma), sigma, captions)
        error = (predicted - (noise - clips)).square().mean((2, 3, 4))
        yield step, (error * weight).sum() / weight.sum()
