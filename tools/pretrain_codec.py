"""Stage 1 of ``tools/pretrain_tiny.py``: fit the codec of the embedded model to rendered videos."""

import torch
from torch import Tensor, nn

from astrolabe_rollout.codec import PatchCodec
from astrolabe_rollout.world import render, sample_scenes

VIDEOS, FRAMES = 2000, 81


def fit_encoder(codec: PatchCodec, generator: torch.Generator) -> None:
    """Set mean and basis to the principal components of rendered patches.

    Channels are scaled to the square root of their standard deviation (at most 2), half-way between
    white latents and natural ones: coarse structure stays above the noise longer than fine detail.
    """
    videos = torch.stack([render(scene, FRAMES) for scene in sample_scenes(300, generator)])
    patches = codec.patches(videos).flatten(0, 3)
    mean = patches.mean(0)
    variance, directions = torch.linalg.eigh(torch.cov((patches - mean).T))
    channels = codec.basis.shape[1]
    deviation = variance.flip(0)[:channels].sqrt()
    scale = deviation.sqrt().clamp(max=2.0) / deviation
    codec.mean.copy_(mean)
    codec.basis.copy_(directions.flip(1)[:, :channels] * scale)


def edge_weight(target: Tensor) -> Tensor:
    """Weigh pixels by their distance from the ground, which is large and easy."""
    contrast = (
        target - target.median(-1, keepdim=True).values.median(-2, keepdim=True).values
    ).abs()
    return 1 + 3 * contrast.amax(-3, keepdim=True).clamp(max=1)


def train_codec(codec: PatchCodec, steps: int, generator: torch.Generator) -> float:
    """Train the decoder; return its PSNR in dB on scenes that it has not seen."""
    fit_encoder(codec, generator)
    videos = torch.stack([render(scene, FRAMES) for scene in sample_scenes(VIDEOS, generator)])
    optimiser = torch.optim.AdamW(codec.decoder.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 2e-3, total_steps=steps, pct_start=0.1
    )
    for step in range(steps):
        rows = torch.randint(VIDEOS, (12,), generator=generator)
        starts = torch.randint((FRAMES - 1) // 4 - 4, (12,), generator=generator).tolist()
        clips = torch.stack(
            [videos[r, 4 * s : 4 * s + 17] for r, s in zip(rows, starts, strict=True)]
        )
        latents = codec.encode(clips)
        target = codec.patches(clips)  # [N, f, h, w, 768]
        n, f, h, w, _ = target.shape
        target = target.reshape(n * f, h, w, 4, 3, 8, 8).permute(0, 3, 4, 1, 5, 2, 6)
        target = target.reshape(n * f, 4, 3, 8 * h, 8 * w)
        # Generated latents are never exact: the decoder learns to draw clean shapes from them.
        amount = 0.35 * torch.rand(len(clips), 1, 1, 1, 1, generator=generator)
        noisy = latents + amount * torch.randn(latents.shape, generator=generator)
        error = nn.functional.smooth_l1_loss(
            codec.reconstruct(noisy.flatten(0, 1)), target, reduction="none", beta=0.1
        )
        loss = (error * edge_weight(target)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            print(f"codec {step:5d}/{steps} loss {loss.item():.4f}", flush=True)
    return psnr(codec, generator)


def psnr(codec: PatchCodec, generator: torch.Generator) -> float:
    """Mean PSNR in dB of 64 held-out videos through the codec."""
    videos = torch.stack([render(s, 33) for s in sample_scenes(64, generator, held_out=True)])
    error = (
        (codec.decode(codec.encode(videos)).float() - videos.float()).square().mean((1, 2, 3, 4))
    )
    return float((10 * torch.log10(255**2 / error)).mean())
