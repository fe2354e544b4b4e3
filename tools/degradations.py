"""Whether the rewards without weights fall as real videos are spoiled: a table for each video.

    uv run python tools/degradations.py VIDEO.mp4 ... [--start 0] [--frames 81] [--longest 832]

Each damage is done mildly and strongly to a part of a video, and one of the two rewards is
responsible for it: it should order clean above mild above strong. The other reward is shown too; it
need not notice. Blur and noise are spatial, so sharpness_vq answers for them; flicker, shuffled
frames and standing still are flow_mq's. A hard cut is no motion: choose a part without one.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from astrolabe_eval import VideoError, read_mp4
from astrolabe_rewards import FlowMQ, Reward, SharpnessVQ
from astrolabe_rewards.frames import channels_last, shrink

SEED = 0
LEVELS = ("clean", "mild", "strong")


def blurred(video: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of ``sigma`` pixels."""
    frames = [cv2.GaussianBlur(frame, (0, 0), sigma) for frame in channels_last(video)]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def noisy(video: Tensor, sigma: float) -> Tensor:
    """White noise of ``sigma`` levels on every channel, new in each frame."""
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(video.shape, generator=generator).mul_(sigma)
    return noise.add_(video).round_().clamp_(0, 255).to(torch.uint8)


def flickering(video: Tensor, share: float) -> Tensor:
    """Every other frame brighter by ``share``, the others darker."""
    gain = 1 + share * torch.where(torch.arange(len(video)) % 2 == 0, 1.0, -1.0)
    return (video * gain[:, None, None, None]).round_().clamp_(0, 255).to(torch.uint8)


def shuffled(video: Tensor, window: float) -> Tensor:
    """Frames in random order inside each ``window`` of them."""
    generator = torch.Generator().manual_seed(SEED)
    places = torch.arange(len(video)).split(int(min(window, len(video))))
    order = [part[torch.randperm(len(part), generator=generator)] for part in places]
    return video[torch.cat(order)]


def frozen(video: Tensor, share: float) -> Tensor:
    """The last ``share`` of the frames stand still, all alike."""
    last = round((1 - share) * (len(video) - 1))
    return video[torch.arange(len(video)).clamp(max=last)]


Damage = Callable[[Tensor, float], Tensor]
#: Name to damage, mild and strong amount, what the amounts are, and the responsible reward.
DAMAGES: dict[str, tuple[Damage, float, float, str, str]] = {
    "blur": (blurred, 1.0, 3.0, "sigma 1, 3 px", "sharpness_vq"),
    "noise": (noisy, 6.0, 20.0, "sigma 6, 20 levels", "sharpness_vq"),
    "flicker": (flickering, 0.04, 0.12, "4, 12 % of brightness", "flow_mq"),
    "shuffle": (shuffled, 3, float("inf"), "3 frames, all", "flow_mq"),
    "freeze": (frozen, 0.5, 1.0, "second half, all", "flow_mq"),
}


def table(video: Tensor, fps: float) -> str:
    """Return the Markdown table of one video, uint8 ``[F, 3, H, W]``."""
    rewards: list[Reward] = [SharpnessVQ(), FlowMQ()]

    def scores(pixels: Tensor) -> dict[str, float]:
        rate = torch.tensor([fps])
        return {reward.name: float(reward.score(pixels[None], [""], rate)) for reward in rewards}

    clean = scores(video)
    names = [reward.name for reward in rewards]
    heads = [f"{name} {' / '.join(LEVELS)}" for name in names]
    lines = [
        f"| damage | mild, strong | {' | '.join(heads)} | responsible | clean > mild > strong |",
        "| --- " * (len(names) + 4) + "|",
    ]
    for damage, (spoil, mild, strong, amounts, responsible) in DAMAGES.items():
        levels = [clean, scores(spoil(video, mild)), scores(spoil(video, strong))]
        cells = [" / ".join(f"{level[name]:.3f}" for level in levels) for name in names]
        first, second, third = (level[responsible] for level in levels)
        ordered = "yes" if first > second > third else "no"
        lines.append(f"| {damage} | {amounts} | {' | '.join(cells)} | {responsible} | {ordered} |")
    return "\n".join(lines)


def main() -> None:
    """Print a table for each video."""
    parser = argparse.ArgumentParser(
        description="Scores of real videos, spoiled in five ways, by the rewards without weights."
    )
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--start", type=int, default=0, help="first frame (%(default)s)")
    parser.add_argument("--frames", type=int, default=81, help="how many (%(default)s)")
    parser.add_argument(
        "--longest", type=int, default=832, help="longer side in pixels, at most (%(default)s)"
    )
    given = parser.parse_args()
    if given.start < 0 or given.frames < 3 or given.longest < 16:
        parser.error(
            "give a start of at least 0, 3 frames or more, and a side of 16 pixels or more"
        )
    for path in given.videos:
        try:
            read = read_mp4(path)
        except VideoError as error:
            parser.error(str(error))
        part = read.frames[given.start : given.start + given.frames]
        if len(part) < 3:
            parser.error(f"{path} has {len(read.frames)} frames: too few after {given.start}")
        video = shrink(torch.from_numpy(part), given.longest)
        count, _, height, width = video.shape
        print(
            f"\n**{path.name}**: {count} frames of {height}x{width} from frame {given.start}, "
            f"{read.fps:g} per second\n"
        )
        print(table(video, read.fps), flush=True)


if __name__ == "__main__":
    main()
