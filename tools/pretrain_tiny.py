"""Make the embedded model ``tiny`` from nothing: codec, teacher, four-step student, figures.

One command, seeded, about two hours on two CPU cores (a CUDA device is not used):

    uv run python tools/pretrain_tiny.py --out runs/pretrain_tiny

Every stage saves its state; a command that was stopped goes on where it was. At the end the weights
are copied into the package (``--no-install`` leaves them in the folder), and ``quality.json`` holds
the figures of the model card.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from pretrain_codec import psnr, train_codec
from pretrain_student import Trajectories, concatenate, haze, student_losses, teacher_videos
from pretrain_teacher import Optimiser, make_pool, teacher_losses
from safetensors.torch import save_file
from tensordict import TensorDict
from torch import Tensor

from astrolabe_rewards.pixel_check import PixelCheck
from astrolabe_rollout import tiny, world
from astrolabe_rollout.model import VideoModel
from astrolabe_rollout.streaming import StreamingPolicy

SEED = 0
CODEC_STEPS = 2500
POOL, POOL_FRAMES = 4000, 81
TEACHER_STEPS, TEACHER_LR = 1700, (0.02, 1e-3)
TRAJECTORIES, TRAJECTORY_BATCH = 1152, 96
STUDENT_STEPS, STUDENT_LR = 500, (0.006, 3e-4)
BATCH = 24
SAVE_EVERY = 100


def save(state: object, path: Path) -> None:
    """Write a file as a whole or not at all."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def stage(path: Path, make: Callable[[], object]) -> object:
    """Return what ``path`` holds; make and save it first if it does not exist."""
    if not path.exists():
        print(f"--- {path.stem}", flush=True)
        save(make(), path)
    return torch.load(path, weights_only=True)


def weights(model: VideoModel) -> dict[str, dict[str, Tensor]]:
    """Weights of the parts that diffusion training changes."""
    modules = tiny.tiny_modules(model)
    return {name: modules[name].state_dict() for name in ("transformer", "text")}


def load_weights(model: VideoModel, state: dict[str, dict[str, Tensor]]) -> None:
    """Put weights of `weights` back."""
    for name, values in state.items():
        tiny.tiny_modules(model)[name].load_state_dict(values)


def fit(
    model: VideoModel,
    path: Path,
    steps: int,
    rates: tuple[float, float],
    losses: Callable[[range], Iterator[tuple[int, Tensor]]],
) -> dict:
    """Run an optimisation that can be stopped at any time; return the final weights."""
    optimiser = Optimiser([model.transformer.network, model.encoder], steps, *rates)
    first, partial = 0, path.with_suffix(".going")
    if partial.exists():
        state = torch.load(partial, weights_only=True)
        load_weights(model, state["weights"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
    recent: list[float] = []
    start = time.time()
    for step, loss in losses(range(first, steps)):
        loss.backward()
        optimiser.step()
        recent.append(loss.item())
        if len(recent) == 25:
            speed = (time.time() - start) / 25
            print(
                f"{path.stem} {step + 1}/{steps} loss {sum(recent) / 25:.4f} {speed:.2f} s/step",
                flush=True,
            )
            recent, start = [], time.time()
        if (step + 1) % SAVE_EVERY == 0:
            state = {
                "weights": weights(model),
                "optimiser": optimiser.state_dict(),
                "step": step + 1,
            }
            save(state, partial)
    partial.unlink(missing_ok=True)
    return weights(model)


def make_codec(model: VideoModel) -> dict[str, Tensor]:
    """Stage 1."""
    print(f"codec {train_codec(model.codec, CODEC_STEPS, seeded(0)):.2f} dB")
    return model.codec.state_dict()


def make_teacher(model: VideoModel, path: Path) -> dict:
    """Stage 2."""
    pool = make_pool(model.codec, POOL, POOL_FRAMES, seeded(1))
    return fit(
        model,
        path,
        TEACHER_STEPS,
        TEACHER_LR,
        lambda r: teacher_losses(model, pool, BATCH, r, SEED + 1),
    )


def make_trajectories(model: VideoModel) -> dict:
    """Stage 3: the teacher's videos of training captions."""
    parts = []
    generator = seeded(2)
    for done in range(0, TRAJECTORIES, TRAJECTORY_BATCH):
        captions = [s.caption for s in world.sample_scenes(TRAJECTORY_BATCH, generator)]
        parts.append(teacher_videos(model, captions, generator))
        print(f"trajectories {done + TRAJECTORY_BATCH}/{TRAJECTORIES}", flush=True)
    return vars(concatenate(parts))


def seeded(offset: int) -> torch.Generator:
    """Return the random numbers of a stage."""
    return torch.Generator().manual_seed(SEED + offset)


@torch.no_grad()
def quality(model: VideoModel, videos: int = 108) -> dict[str, float]:
    """Reconstruction, and what the independent pixel check finds right in the student's videos."""
    figures = {"reconstruction_psnr_db": psnr(model.codec, seeded(3))}
    for name, held_out in (("seen", False), ("held_out", True)):
        prompts = world.prompts(held_out)
        prompts = [prompts[i * len(prompts) // videos] for i in range(videos)]
        batch = TensorDict(
            {
                "prompt": {"embeds": model.text(prompts), "seed": torch.arange(videos) + 1000},
                "window": {"index": torch.zeros(videos, dtype=torch.int64)},
            },
            batch_size=[videos],
        )
        pixels = StreamingPolicy(model, 9)(batch)["video", "pixels"]
        found = PixelCheck().check(pixels, prompts)
        figures |= {f"{name}/{key}": float(value.nanmean()) for key, value in found.items()}
    return figures


def main() -> None:
    """Run all stages that are not done yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/pretrain_tiny"), help="working folder"
    )
    parser.add_argument(
        "--no-install", action="store_true", help="leave the package's weights alone"
    )
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    model = tiny.build_tiny(SEED)
    model.codec.load_state_dict(stage(out / "codec.pt", lambda: make_codec(model)))
    load_weights(model, stage(out / "teacher.pt", lambda: make_teacher(model, out / "teacher.pt")))
    clear = Trajectories(**stage(out / "trajectories.pt", lambda: make_trajectories(model)))
    data = haze(clear, model.codec)
    student = stage(
        out / "student.pt",
        lambda: fit(
            model,
            out / "student.pt",
            STUDENT_STEPS,
            STUDENT_LR,
            lambda r: student_losses(model, data, BATCH, r, SEED + 4),
        ),
    )
    load_weights(model, student)
    model.freeze()
    for name, module in tiny.tiny_modules(model).items():
        half = {key: value.half().contiguous() for key, value in module.state_dict().items()}
        save_file(half, out / f"{name}.safetensors")
    figures = quality(tiny.load_tiny(out))
    (out / "quality.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
    if not arguments.no_install:
        folder = Path(tiny.__file__).parent / "tiny_weights"
        folder.mkdir(exist_ok=True)
        for name in tiny.PARTS:
            part = folder / f"{name}.part"
            shutil.copyfile(out / f"{name}.safetensors", part)
            os.replace(part, folder / f"{name}.safetensors")


if __name__ == "__main__":
    main()
