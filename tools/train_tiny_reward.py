"""Train ``tiny_ta``, the text reward of the embedded model's world, and write its weights.

One command, seeded; it took 14 minutes on one core of a busy machine:
``OMP_NUM_THREADS=1 uv run python tools/train_tiny_reward.py``

It sees rendered videos of the training combinations only; accuracy is stated on the held-out ones.
Half of the videos are nearly clean. The others are damaged as generated videos are: faint,
vanishing, mixed with another object, deformed, blurred, noisy, shuffled, frozen. What a damage
hides becomes uncertain in the target, so the probabilities say how clearly a thing is shown.
"""

import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from astrolabe_rewards.frames import evenly_spaced
from astrolabe_rewards.matcher import NUM_FRAMES, TinyMatcher, clips_of
from astrolabe_rewards.words import VOCABULARY
from astrolabe_rollout.world import CELL, GROUNDS, SIZE, Scene, combinations, render, sample_scenes

OUT = Path("packages/astrolabe-rewards/src/astrolabe_rewards/weights/tiny_ta.safetensors")
LENGTHS = (33, 33, 33, 33, 25, 29, 37, 41)  # pixel frames; 33 is what the embedded model makes
SMOOTHING = 0.04  # share of the target spread over all values, even for a clean video


def clip(scene: Scene, num_frames: int, start: int) -> Tensor:
    """Return the 9 frames the matcher sees, uint8 [9, 3, 48, 48]."""
    return render(scene, num_frames, start)[evenly_spaced(num_frames, NUM_FRAMES)]


def labels(scene: Scene) -> list[int]:
    """Return the index of each attribute's value, in the order of VOCABULARY."""
    return [values.index(getattr(scene, name)) for name, values in VOCABULARY.items()]


def variant(scene: Scene, attribute: str, generator: torch.Generator) -> Scene:
    """Return the scene with another value of one attribute, still a combination of training."""
    triples = set(combinations(held_out=False))
    values = list(VOCABULARY[attribute])
    for index in torch.randperm(len(values), generator=generator).tolist():
        other = {"colour": scene.colour, "shape": scene.shape, "motion": scene.motion}
        ground = scene.ground
        if attribute == "ground":
            ground = values[index]
        else:
            other[attribute] = values[index]
        new = Scene(other["colour"], other["shape"], other["motion"], ground, scene.jitter)
        if new != scene and tuple(other.values()) in triples:
            return new
    return scene


def render_pool(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw scenes, each with a partner that differs in one attribute, and its empty ground."""
    pool: dict[str, list[Tensor]] = {
        "clip": [],
        "partner": [],
        "ground": [],
        "label": [],
        "other": [],
    }
    names = list(VOCABULARY)
    for scene in sample_scenes(count, generator):
        length = LENGTHS[int(torch.randint(len(LENGTHS), (), generator=generator))]
        start = int(torch.randint(4, (), generator=generator))
        attribute = names[int(torch.randint(len(names), (), generator=generator))]
        partner = variant(scene, attribute, generator)
        cells = (torch.arange(SIZE) // CELL)[:, None] + (torch.arange(SIZE) // CELL)[None, :]
        ground = torch.tensor(GROUNDS[scene.ground], dtype=torch.float32)[cells % 2] / 127.5 - 1
        pool["clip"].append(clip(scene, length, start))
        pool["partner"].append(clip(partner, length, start))
        pool["ground"].append(ground)
        pool["label"].append(torch.tensor(labels(scene)))
        pool["other"].append(torch.tensor(labels(partner)))
    return {name: torch.stack(values) for name, values in pool.items()}


def warp(clips: Tensor, amount: Tensor, steady: Tensor, generator: torch.Generator) -> Tensor:
    """Deform frames smoothly by about `amount` pixels; if `steady`, all of a clip alike."""
    count = len(clips)
    shift = torch.randn(count, NUM_FRAMES, 2, 7, 7, generator=generator)
    shift = torch.where(steady[:, None, None, None, None], shift[:, :1], shift)
    shift = functional.interpolate(
        shift.flatten(0, 1), size=(SIZE, SIZE), mode="bicubic", align_corners=True
    )
    shift = shift * (amount * 2 / SIZE).repeat_interleave(NUM_FRAMES)[:, None, None, None]
    line = torch.linspace(-1, 1, SIZE) * (1 - 1 / SIZE)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1) + shift.movedim(1, -1)
    warped = functional.grid_sample(
        clips.flatten(0, 1), grid, padding_mode="border", align_corners=False
    )
    return warped.unflatten(0, (count, NUM_FRAMES))


def blur(clips: Tensor, sigma: Tensor) -> Tensor:
    """Blur each clip by its own Gaussian."""
    offsets = torch.arange(-3, 4, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets[None] / sigma.clamp(min=0.05)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(
        NUM_FRAMES * 3, 0
    )  # [n*9*3, 7]
    flat = clips.reshape(1, -1, SIZE, SIZE)
    groups = flat.shape[1]
    padded = functional.pad(flat, (3, 3, 3, 3), mode="replicate")
    rows = functional.conv2d(padded, kernel[:, None, None, :], groups=groups)
    return functional.conv2d(rows, kernel[:, None, :, None], groups=groups).view(clips.shape)


def damage(
    batch: dict[str, Tensor], generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Spoil clips and say how sure one may still be.

    Returns:
        Clips float [n, 9, 3, 48, 48], and per attribute the target distribution float [n, values].
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    clips, partners = batch["clip"] / 127.5 - 1, batch["partner"] / 127.5 - 1
    count = len(clips)
    ground = batch["ground"][:, None, None]  # [n, 1, 1, 48, 48]
    certain = {name: torch.ones(count) for name in VOCABULARY}

    # Mixed with a partner: the target is mixed too.
    share = torch.where(uniform(count) < 0.2, 0.6 * uniform(count), torch.zeros(count))
    clips = torch.lerp(clips, partners, share[:, None, None, None, None])

    # Faint, or gone in some frames.
    strength = torch.where(uniform(count) < 0.2, uniform(count), torch.ones(count))
    gone = (uniform(count) < 0.15)[:, None] & (uniform(count, NUM_FRAMES) < uniform(count, 1))
    shown = strength[:, None] * (~gone)  # [n, 9]
    clips = torch.lerp(ground.expand_as(clips), clips, shown[:, :, None, None, None])
    seen = ((shown - 0.1) / 0.8).clamp(0, 1).mean(1)
    for name in ("colour", "shape", "motion"):
        certain[name] = certain[name] * seen

    # Deformed: the shape is in doubt, and the motion if it changes from frame to frame.
    bent = uniform(count) < 0.25
    index = bent.nonzero().flatten()
    if len(index):
        amount, steady = 3 * uniform(len(index)), uniform(len(index)) < 0.5
        clips[index] = warp(clips[index], amount, steady, generator)
        certain["shape"][index] *= torch.exp(-((amount / 1.5) ** 2))
        certain["motion"][index] *= torch.where(steady, 1.0, torch.exp(-((amount / 2) ** 2)))
        certain["ground"][index] *= torch.exp(-((amount / 4) ** 2))

    # Out of order, or stopped at some frame: the motion is in doubt.
    for i in range(count):
        dice = float(uniform(1))
        if dice < 0.08:
            order = torch.randperm(NUM_FRAMES, generator=generator)
            clips[i] = clips[i, order]
            certain["motion"][i] *= 0.1
        elif dice < 0.16:
            last = int(torch.randint(NUM_FRAMES, (), generator=generator))
            clips[i, last:] = clips[i, last].clone()
            certain["motion"][i] *= max(0.0, (last - 1) / (NUM_FRAMES - 2))

    # Blurred and noisy, lightly or strongly; half resolution stands for a codec.
    heavy = uniform(count) < 0.3
    sigma = torch.where(heavy, 0.5 + 2 * uniform(count), 0.6 * uniform(count))
    noise = torch.where(heavy, 0.3 * uniform(count), 0.05 * uniform(count))
    clips = blur(clips, sigma)
    coarse = (uniform(count) < 0.2).nonzero().flatten()
    if len(coarse):
        small = functional.avg_pool3d(clips[coarse], (1, 2, 2))
        clips[coarse] = functional.interpolate(small, scale_factor=(1, 2, 2), mode="trilinear")
        certain["shape"][coarse] *= 0.9
    clips = clips + noise[:, None, None, None, None] * torch.randn(clips.shape, generator=generator)
    certain["shape"] *= 1 - 0.25 * (sigma - 0.6).clamp(min=0)
    for name in certain:
        certain[name] = certain[name] * torch.exp(-((noise / 0.35) ** 2))

    targets = {}
    for column, (name, values) in enumerate(VOCABULARY.items()):
        first = functional.one_hot(batch["label"][:, column], len(values)).float()
        second = functional.one_hot(batch["other"][:, column], len(values)).float()
        sure = (certain[name] * (1 - SMOOTHING))[:, None]
        mixed = torch.lerp(first, second, share[:, None])
        targets[name] = sure * mixed + (1 - sure) / len(values)
    return clips.clamp(-1, 1), targets


def loss_of(logits: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """Cross entropy against soft targets, summed over the attributes."""
    losses = [functional.cross_entropy(logits[name], targets[name]) for name in VOCABULARY]
    return torch.stack(losses).sum()


@torch.inference_mode()
def evaluate(matcher: TinyMatcher, count: int) -> None:
    """Print accuracy and mean probability on held-out combinations, clean and faint."""
    generator = torch.Generator().manual_seed(4242)
    scenes = sample_scenes(count, generator, held_out=True)
    videos = torch.stack([render(scene, 33) for scene in scenes])
    truth = torch.tensor([labels(scene) for scene in scenes])
    clean = clips_of(videos)
    kinds = {
        "clean": clean,
        "blur 1": blur(clean, torch.full((count,), 1.0)),
        "noise 0.1": clean + 0.2 * torch.randn(clean.shape, generator=generator),
        "shuffled": clean[:, torch.randperm(NUM_FRAMES, generator=generator)],
        "frozen": clean[:, :1].expand_as(clean),
    }
    for kind, clips in kinds.items():
        logits = matcher(clips)
        parts = []
        for column, name in enumerate(VOCABULARY):
            right = (logits[name].argmax(-1) == truth[:, column]).float().mean()
            chosen = logits[name].softmax(-1).gather(1, truth[:, column : column + 1]).mean()
            parts.append(f"{name} {right:.1%} (p {chosen:.2f})")
        print(f"held-out, {kind}: " + ", ".join(parts), flush=True)


def main() -> None:
    """Train, state the accuracy, write the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--pool", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    begun = time.perf_counter()
    pool = render_pool(options.pool, generator)
    print(f"{options.pool} scenes in {time.perf_counter() - begun:.0f} s", flush=True)
    matcher = TinyMatcher()
    optimizer = torch.optim.AdamW(matcher.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=options.steps)
    for step in range(1, options.steps + 1):
        chosen = torch.randint(options.pool, (options.batch,), generator=generator)
        batch = {name: value[chosen] for name, value in pool.items()}
        clips, targets = damage(batch, generator)
        loss = loss_of(matcher(clips), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step} loss {loss:.3f} {time.perf_counter() - begun:.0f} s", flush=True)
    matcher.eval()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half() for name, value in matcher.state_dict().items()}, options.out)
    print(f"{options.out}: {options.out.stat().st_size} bytes", flush=True)
    evaluate(matcher, 512)


if __name__ == "__main__":
    main()
