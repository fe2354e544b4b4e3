"""What long tuning costs on the embedded model: memory of a step, and time of a group's rollout.

    uv run python tools/bench_long.py

Memory: growth of the process's peak during one forward and backward pass, each in a process of its
own, for the last window (clip) of a video of four or for all of it (sequence), with what lies
before a chunk detached or with gradient through it (full back-propagation); then for a clip at
later and later windows of a video. Clip and cache have 21 latent frames, as in the paper. Time:
eight candidates over a history that they share against eight videos of the same length sampled by
themselves, in turn, as a ratio of medians.
"""

import argparse
import gc
import multiprocessing
import os
import resource
import statistics
import time
from dataclasses import replace

WINDOW, WINDOWS, VIDEOS = 9, 4, 8
CLIP = 21
PROMPT = "a red circle bounces on a gray background"


def batch_of(model, index: int, frames: int, videos: int = VIDEOS):
    """A batch as the loss sees it, of noise instead of videos."""
    import torch
    from tensordict import TensorDict

    geometry = model.geometry
    shape = (videos, frames, geometry.channels, *geometry.latent_size)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(shape, generator=generator)
    context = torch.randn(
        (videos, geometry.context, *shape[2:]), generator=torch.Generator().manual_seed(1)
    )
    return TensorDict(
        {
            "prompt": {"embeds": model.text([PROMPT] * videos)},
            "window": {"index": torch.full((videos,), index), "context": context},
            "video": {"latents": latents},
            "noisy": {"latents": latents, "sigma": torch.full(shape[:2], 0.75)},
        },
        batch_size=[videos],
    )


def memory(frames: int, context: str, index: int) -> float:
    """Growth of the peak in MiB during a training pass; run in a fresh process."""
    import torch

    from astrolabe_rollout import CausalWan, Denoiser, add_lora, load_tiny

    torch.set_num_threads(1)
    model = load_tiny()
    geometry = replace(model.geometry, window=CLIP)
    wan = CausalWan(model.transformer.network, geometry, relative=True)
    model = replace(model, transformer=wan)
    add_lora(model.transformer.network, rank=16, alpha=16)
    denoiser = Denoiser(model, frames, context=context)
    # Imports and kernels are there before anything is counted.
    denoiser(batch_of(model, 0, frames, videos=1))["denoised", "latents"].square().mean().backward()
    gc.collect()
    batch = batch_of(model, index, frames)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loss = denoiser(batch)["denoised", "latents"].square().mean()
    loss.backward()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def rollout(windows: int, shared: bool, repeats: int) -> list[float]:
    """Seconds of eight videos' last window and all that lies before it."""
    import torch
    from tensordict import NonTensorStack, TensorDict

    from astrolabe_rollout import StreamingPolicy, load_tiny
    from astrolabe_rollout.group_streaming import GroupStreamingPolicy

    model = load_tiny()
    seconds = []
    for _ in range(repeats):
        batch = TensorDict(
            {
                "prompt": {
                    "embeds": model.text([PROMPT] * VIDEOS),
                    "seed": torch.arange(VIDEOS),
                    "group": torch.zeros(VIDEOS, dtype=torch.int64),
                    "script": NonTensorStack(*[PROMPT] * VIDEOS),
                    "history_seed": torch.zeros(VIDEOS, dtype=torch.int64),
                },
                "window": {"index": torch.full((VIDEOS,), windows)},
            },
            batch_size=[VIDEOS],
        )
        start = time.perf_counter()
        if shared:
            GroupStreamingPolicy(model, WINDOW, decode=False)(batch)
        else:
            policy = StreamingPolicy(model, WINDOW, decode=False)
            for window in range(windows + 1):
                batch["window", "index"] = torch.full((VIDEOS,), window)
                policy(batch)
        seconds.append(time.perf_counter() - start)
    return seconds


def fresh(function, *arguments):
    """Call a function in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["memory", "time"], help="one of the two tables")
    options = parser.parse_args()
    # Large blocks go back to the system at once: peaks are those of tensors, not of a free list.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    if options.only != "time":
        print(f"{VIDEOS} videos      MiB   ratio to clip, detached")
        reference = fresh(memory, CLIP, "clean", WINDOWS - 1)
        for name, frames, index in (
            ("clip", CLIP, WINDOWS - 1),
            ("sequence", CLIP * WINDOWS, 0),
        ):
            for context in ("clean", "attached"):
                found = fresh(memory, frames, context, index)
                how = "detached" if context == "clean" else "full"
                print(f"{name:<9} {how:<9} {found:8.1f}   {found / reference:.2f}", flush=True)
        for index in (1, 2, 5, 10):
            found = fresh(memory, CLIP, "clean", index)
            print(f"clip at window {index:<3} {found:8.1f}", flush=True)
    if options.only != "memory":
        print(f"history of    shared   alone  ratio  (seconds, {VIDEOS} candidates)")
        for windows in (2, 4, 8):
            shared, alone = [], []
            for _ in range(options.repeats):
                shared += rollout(windows, True, 1)
                alone += rollout(windows, False, 1)
            a, b = statistics.median(shared), statistics.median(alone)
            print(f"{windows} windows  {a:9.2f} {b:7.2f} {b / a:6.2f}", flush=True)


if __name__ == "__main__":
    main()
