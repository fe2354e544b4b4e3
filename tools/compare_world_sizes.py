"""Train the same run on 1, 2 and 4 processes, shared in every way, and compare what comes out.

    uv run python tools/compare_world_sizes.py
    uv run python tools/compare_world_sizes.py --steps 5 --sizes 2 --ways DDP

Each is a real run under torchrun, with gloo on this machine's processor and one thread a process,
of the embedded model at a small adapter. Shown is the largest difference from the run of one
process, over all steps: of losses and rewards relative to their largest size, of the final adapter
as it is trained relative to how far training moved it. 0 means: the same bits.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from torch import Tensor

from astrolabe.run_folder import RunFolder
from astrolabe.state_files import read_tensors

SETTINGS = (
    *("lora.rank=4", "lora.alpha=4", "train.lr=1e-3", "train.updates=2", "train.micro_batch=2"),
    *("rollout.num_prompts=4", "rollout.group_size=4", "rollout.batch_size=4"),
    *("rollout.num_frames=6", "evaluation.at_end=false", "logging.samples_every=0"),
    "logging.checkpoint_every=1000",
)
WAYS = {
    "DDP": (),
    "FSDP2, adapter replicated": ("distributed.base=sharded",),
    "FSDP2, adapter sharded": ("distributed.base=sharded", "distributed.lora=sharded"),
    "half of them only sample": ("distributed.rollout_ranks={half}",),
}

#: Metrics of each step, and the adapter at the end.
Outcome = tuple[list[dict[str, float]], dict[str, Tensor]]


def train(folder: Path, processes: int, steps: int, changes: tuple[str, ...]) -> Outcome:
    """Train a run and read what it left."""
    settings = [*SETTINGS, f"train.steps={steps}", *changes]
    options = [word for setting in settings for word in ("--set", setting)]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = ["-m", "astrolabe", "train", "tiny", *options, "--out", str(folder)]
    subprocess.run(
        [sys.executable, *launcher, *command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    checkpoint = RunFolder(folder).newest()
    assert checkpoint is not None
    return [json.loads(line) for line in lines], read_tensors(checkpoint, under="adapter/")


def differences(ours: Outcome, theirs: Outcome) -> dict[str, float]:
    """Largest differences between two runs; see the top of this file."""
    found = {}
    for kind in ("loss/", "reward/"):
        names = [name for name in theirs[0][0] if name.startswith(kind)]
        pairs = [
            (abs(a[name] - b[name]), max(abs(step[name]) for step in theirs[0]))
            for name in names
            for a, b in zip(ours[0], theirs[0], strict=True)
        ]
        found[kind.rstrip("/")] = max(gap / (size or 1.0) for gap, size in pairs)
    moved = max(float(value.abs().max()) for name, value in theirs[1].items() if "lora_B" in name)
    gaps = [float((ours[1][name] - value).abs().max()) for name, value in theirs[1].items()]
    found["adapter"] = max(gaps) / moved
    return found


def main() -> None:
    """Run all and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        alone = train(Path(place) / "alone", 1, arguments.steps, ())
        sys.stdout.write("| processes | how | loss | rewards | adapter |\n|---|---|---|---|---|\n")
        for way in arguments.ways:
            for size in arguments.sizes:
                changes = tuple(change.format(half=size // 2) for change in WAYS[way])
                ours = train(Path(place) / f"{way}-{size}", size, arguments.steps, changes)
                cells = [f"{value:.1e}" for value in differences(ours, alone).values()]
                sys.stdout.write(f"| {size} | {way} | {' | '.join(cells)} |\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
