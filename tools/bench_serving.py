"""Measure what it costs to score elsewhere: in a worker's process, or over HTTP on this machine.

    uv run python tools/bench_serving.py
    uv run python tools/bench_serving.py --clip 480 832 81 --videos 4 --repeats 20

The same videos are scored by a reward that only reads one number of each: here, by a
``ScoringWorker`` and by a ``RemoteReward`` of a server in another process. The three take turns, so
that a busy machine slows them alike. What worker and server take more than the call here, divided
by the videos, is their overhead; its share is that of the time that ``sharpness_vq``, a cheap
reward, takes for the same video. The scores must be equal, bit for bit, or the program ends with
status 1.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from astrolabe_rewards import Reward, SharpnessVQ
from astrolabe_rewards.client import RemoteReward
from astrolabe_rewards.worker import ScoringWorker

CLIPS = ((48, 48, 33), (480, 832, 81))
SERVE = """
from astrolabe_rewards.server import RewardServer
from bench_serving import FirstPixel
with RewardServer({"first_pixel": FirstPixel()}, port=0) as server:
    print(server.url, flush=True)
    server.run()
"""

Scorer = Callable[[TensorDictBase], TensorDictBase]


class FirstPixel(Reward):
    """The level of one pixel: no work at all."""

    name = "first_pixel"
    unit = "0 to 255"

    def score(self, pixels: Tensor, prompts: list[str], fps: Tensor) -> Tensor:
        """Return it, float32 ``[N]``."""
        return pixels[:, -1, -1, -1, -1].float()


def batch_of(videos: int, height: int, width: int, frames: int) -> TensorDict:
    """Random videos."""
    pixels = torch.randint(0, 256, (videos, frames, 3, height, width), dtype=torch.uint8)
    fps = torch.full((videos,), 16.0)
    return TensorDict({"video": {"pixels": pixels, "fps": fps}}, batch_size=[videos])


def seconds(scorer: Scorer, batch: TensorDictBase) -> float:
    """Seconds of one call."""
    begun = time.perf_counter()
    scorer(batch.copy())
    return time.perf_counter() - begun


def measure(ways: dict[str, Scorer], clip: list[int], videos: int, repeats: int) -> None:
    """Compare, measure and print one size of videos."""
    batch, (height, width, frames) = batch_of(videos, *clip), clip
    scores = {name: way(batch.copy())["score", "first_pixel"] for name, way in ways.items()}
    if not all(torch.equal(found, scores["here"]) for found in scores.values()):
        sys.exit("the scores are not equal.")
    cheap = seconds(SharpnessVQ(), batch[:1])
    times: dict[str, list[float]] = {name: [] for name in ways}
    for name in list(ways) * repeats:
        times[name].append(seconds(ways[name], batch))
    here, mib = median(times["here"]), height * width * frames * 3 / 2**20
    print(f"{height}x{width}x{frames}, {mib:.1f} MiB each, {videos} at once")
    print(f"  {'':8}{'ms/clip':>10}{'overhead':>10}{'MiB/s':>10}{'of sharpness_vq':>18}")
    for name, taken in times.items():
        middle, more = median(taken) / videos, (median(taken) - here) / videos
        line = f"  {name:8}{middle * 1e3:10.2f}"
        if name != "here":
            line += f"{more * 1e3:10.2f}{mib / more:10.0f}{more / cheap:17.1%}"
        print(line)


def main() -> None:
    """Start worker and server, measure, print."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--clip", type=int, nargs=3, metavar=("H", "W", "F"))
    parser.add_argument("--videos", type=int, default=4, help="scored at once")
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()

    command = [sys.executable, "-c", SERVE]
    here = Path(__file__).parent
    server = subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        with ScoringWorker(target="bench_serving:FirstPixel") as worker:
            ways: dict[str, Scorer] = {
                "here": FirstPixel(),
                "worker": worker,
                "HTTP": RemoteReward(url=url, reward="first_pixel"),
            }
            for clip in [args.clip] if args.clip else CLIPS:
                measure(ways, list(clip), args.videos, args.repeats)
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    main()
