"""What training did to each window of longer videos, for some arms of the laboratory.

    uv run python tools/ablate_long.py runs/lab base stream

Samples videos of four windows with the untrained model and with every finished run of these arms or
families, the same held-out prompts and noise, and writes long.md: the change of each score in each
window, with 95 % intervals over seeds and prompts.
"""

import json
import os
import sys
from pathlib import Path

from ablate import RESULT
from ablate_arms import select
from ablate_table import interval, refuse_unscored

WINDOWS, VIDEOS, FIRST_SEED = 4, 48, 8_000_000
SCORES = {"total": 2, "sharpness_vq": 4, "flow_mq": 4, "tiny_ta": 4, "pixel_check": 4}


def judge(model) -> dict[str, list[list[float]]]:
    """Score each window of held-out videos: ``[score][window][video]``."""
    import torch
    from tensordict import TensorDict

    from astrolabe.compose_rewards import build_reward
    from astrolabe.load import load
    from astrolabe_rewards import PixelCheck
    from astrolabe_rollout.streaming import StreamingPolicy
    from astrolabe_rollout.world import prompts

    texts = prompts(held_out=True)
    texts = [texts[index * len(texts) // VIDEOS] for index in range(VIDEOS)]
    policy = StreamingPolicy(model, 9, stackable=True)
    reward = build_reward(load(["tiny"])).eval()
    batch = TensorDict(batch_size=[VIDEOS])
    batch["prompt", "text"] = texts
    batch["prompt", "embeds"] = model.text(texts)
    batch["prompt", "seed"] = torch.arange(VIDEOS) + FIRST_SEED
    batch["video", "fps"] = torch.full((VIDEOS,), float(model.fps))
    found: dict[str, list[list[float]]] = {name: [] for name in SCORES}
    for window in range(WINDOWS):
        batch["window", "index"] = torch.full((VIDEOS,), window)
        reward(policy(batch))
        check = PixelCheck().score(batch["video", "pixels"], texts, batch["video", "fps"])
        values = {name: batch["score", name] for name in reward.rewards}
        values |= {"total": batch["next", "reward"], "pixel_check": check}
        for name in SCORES:
            found[name].append(values[name].flatten().tolist())
    refuse_unscored(found)
    return found


def judged(path: Path, run: Path | None) -> dict[str, list[list[float]]]:
    """Return what `judge` finds of a run, or of the untrained model; it is kept in a file."""
    if not path.exists():
        from astrolabe.run_folder import RunFolder
        from astrolabe.sampling import load_trained
        from astrolabe_rollout.tiny import load_tiny

        model = load_tiny()
        if run is not None:
            load_trained(model, RunFolder(run))
        part = path.with_suffix(".part")
        part.write_text(json.dumps(judge(model)))
        part.rename(path)
    return json.loads(path.read_text())


def main() -> None:
    """Write long.md."""
    out, arms = Path(sys.argv[1]), select(sys.argv[2:])
    os.environ["RL_LOGGING_LEVEL"] = "WARNING"
    import numpy as np

    before = judged(out / "long-before.json", None)
    means = [f"{np.mean(before['total'][window]):+.2f}" for window in range(WINDOWS)]
    lines = [f"Before, total by window: {', '.join(means)}.", ""]
    heads = " | ".join(f"window {window + 1}" for window in range(WINDOWS))
    for name, digits in SCORES.items():
        lines += [f"{name}, after minus before", "", f"| arm | seeds | {heads} |"]
        lines += [f"|{' --- |' * (WINDOWS + 2)}"]
        for arm in arms:
            runs = sorted(path.parent for path in (out / arm.name).glob(f"seed-*/{RESULT}"))
            if not runs:
                continue
            after = [judged(run / "long.json", run)[name] for run in runs]
            change = np.array(after) - np.array(before[name])  # [seeds, windows, videos]
            cells = []
            for window in range(WINDOWS):
                low, high = interval(change[:, window])
                mark = "*" if low > 0 or high < 0 else ""
                mean = change[:, window].mean()
                cells.append(f"{mean:+.{digits}f}{mark} [{low:+.{digits}f}, {high:+.{digits}f}]")
            lines.append(f"| {arm.name} | {len(runs)} | {' | '.join(cells)} |")
        lines.append("")
    (out / "long.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
