"""Break a run in every way it should survive, and count what is lost.

    uv run python tools/chaos.py
    uv run python tools/chaos.py kill --kills 20 --processes 2
    uv run python tools/chaos.py hang nan memory corrupt

A small run of the embedded model, under torchrun with gloo on this machine's processor, is
disturbed in one way at a time. Reported of each:

- ``events``: how often it was disturbed;
- ``lost``: finished steps that had to be made again, the most for one event and in all;
- ``weights``: whether the final adapter equals that of the undisturbed run, bit for bit;
- ``damaged``: checkpoints whose digests do not fit, at the end.

Faults: ``kill`` (SIGKILL of a random rank at random moments), ``storm`` (the whole job is told to
leave and queued again), ``hang``, ``nan``, ``memory``, ``slow_disk``, ``full_disk``, ``clock``,
``corrupt`` (the newest checkpoint is damaged while the job is down), ``server`` (the process that
serves a reward is killed and comes back).
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from astrolabe.checkpoint_files import damage
from astrolabe.run_folder import RunFolder
from astrolabe.state_files import read_tensors

SETTINGS = (
    *("lora.rank=2", "lora.alpha=2", "train.lr=1e-3", "train.micro_batch=2", "train.updates=1"),
    *("rollout.num_prompts=4", "rollout.group_size=2", "rollout.batch_size=2"),
    *("rollout.num_frames=3", "evaluation.at_end=false", "logging.samples_every=0"),
    *("logging.checkpoint_every=2", "logging.keep=3", "distributed.timeout=20"),
)
WORKER = Path(__file__).with_name("chaos_worker.py")
INSIDE = ("hang", "nan", "memory", "slow_disk", "full_disk", "clock")
KILL_LENGTH = 15  # times as many steps, so that all kills fall into the run
STALLED = 300
"""Seconds without a finished step after which a trial is given up."""


@dataclass
class Job:
    """A run under torchrun, started as often as it takes."""

    folder: Path
    processes: int
    steps: int
    fault: str = "none"
    settings: tuple[str, ...] = ()
    output: list[str] = field(default_factory=list)

    def start(self) -> None:
        """Start torchrun; a run that is begun goes on."""
        settings = [*SETTINGS, f"train.steps={self.steps}", *self.settings]
        options = [word for setting in settings for word in ("--set", setting)]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--max-restarts=50"]
        launcher += ["--monitor-interval=0.2", f"--nproc-per-node={self.processes}"]
        train = ["train", "tiny", *options, "--out", str(self.folder), "--auto-resume"]
        self.log = self.folder.with_suffix(f".{len(self.output)}.log").open("w+")
        self.output.append(self.log.name)
        self.process = subprocess.Popen(
            [sys.executable, *launcher, str(WORKER), self.fault, *train],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def finished(self) -> int:
        """Steps that are finished."""
        path = self.folder / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def ranks(self) -> list[int]:
        """Process ids of the ranks that run now."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children")
        return [int(child) for child in children.read_text().split()] if children.exists() else []

    def wait(self, steps: int) -> None:
        """Wait until so many steps are finished, or the job has ended."""
        best, since = self.finished(), time.monotonic()
        while self.process.poll() is None and (now := self.finished()) < steps:
            if now > best:
                best, since = now, time.monotonic()
            if time.monotonic() - since > STALLED:
                raise SystemExit(f"no step for {STALLED} s; see {self.output[-1]}")
            time.sleep(0.1)

    def end(self) -> None:
        """Wait for the end of the job."""
        self.wait(self.steps + 1)
        if self.process.wait() != 0:
            raise SystemExit(f"the job failed; see {self.output[-1]}")

    def starts(self) -> list[int | None]:
        """The step after which the run went on, each time it was started; None: it did not say."""
        text = "".join(Path(name).read_text() for name in self.output)
        each = text.split("Run folder: ")[1:]
        found = [re.search(r"Going on after step (\d+)|step 1/", part) for part in each]
        return [int(match[1] or 0) if match else None for match in found]

    def adapter(self) -> dict[str, torch.Tensor]:
        """The adapter at the end, as it is trained."""
        newest = RunFolder(self.folder).newest()
        assert newest is not None
        return read_tensors(newest, under="adapter/")

    def damaged(self) -> int:
        """Checkpoints that are not whole."""
        return sum(damage(path) is not None for path in RunFolder(self.folder).all_checkpoints())


@dataclass
class Outcome:
    """What a fault did to a job."""

    lost: list[int]
    """Finished steps that each event cost."""
    note: str = ""


def kill(job: Job, events: int, chance: random.Random) -> Outcome:
    """SIGKILL one rank at a random moment, also while it starts; torchrun starts all again."""
    lost = []
    job.start()
    while len(lost) < events and job.process.poll() is None:
        time.sleep(chance.uniform(0, 25))
        before = restarts(job)
        ranks = job.ranks()
        if len(ranks) < job.processes or job.finished() >= job.steps:
            continue
        reached = job.finished()
        os.kill(chance.choice(ranks), signal.SIGKILL)
        wait_for(partial(began_again, job, before))
        lost.append(reached)
    job.end()
    return Outcome(losses(job, lost))


def storm(job: Job, events: int, chance: random.Random) -> Outcome:
    """Tell the whole job to leave, as a scheduler does, and start it again, many times."""
    lost = []
    for _ in range(events):
        job.start()
        job.wait(min(job.finished() + 1, job.steps))
        time.sleep(chance.uniform(0, 3))
        job.process.send_signal(signal.SIGTERM)
        job.process.wait()
        lost.append(job.finished())
    job.start()
    job.end()
    return Outcome(losses(job, lost))


def corrupt(job: Job, events: int, chance: random.Random) -> Outcome:
    """Flip a byte of the newest checkpoint while the job is down."""
    lost = []
    for _ in range(events):
        job.start()
        job.wait(min(job.finished() + 5, job.steps))
        for rank in job.ranks():
            os.kill(rank, signal.SIGKILL)
        job.process.send_signal(signal.SIGKILL)
        job.process.wait()
        lost.append(job.finished())
        newest = RunFolder(job.folder).all_checkpoints()[-1]
        victim = chance.choice(sorted(path for path in newest.rglob("*") if path.is_file()))
        content = bytearray(victim.read_bytes())
        content[chance.randrange(len(content))] ^= 1
        victim.write_bytes(content)
    job.start()
    job.end()
    aside = len(list((job.folder / "checkpoints").glob("damaged-*")))
    return Outcome(losses(job, lost), f"{aside} set aside")


def server(job: Job, events: int, chance: random.Random) -> Outcome:
    """Kill the process that serves a reward, and start it again two seconds later."""
    port = 20000 + os.getpid() % 20000
    command = [sys.executable, "-m", "astrolabe", "serve-rewards", "sharpness_vq"]
    command += ["--port", str(port)]
    serving = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    job.settings = (
        "rewards.sharpness_vq.name=remote",
        f'rewards.sharpness_vq.options={{url = "{url}", reward = "sharpness_vq"}}',
    )
    job.start()
    try:
        for _ in range(events):
            job.wait(min(job.finished() + 2, job.steps))
            serving.kill()
            serving.wait()
            time.sleep(2)
            serving = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        job.end()
    finally:
        serving.kill()
    return Outcome(losses(job, []))


def inside(job: Job, events: int, chance: random.Random) -> Outcome:
    """A fault that the processes make themselves."""
    job.start()
    job.end()
    skipped = sum(
        json.loads(line)["guard/skipped"]
        for line in (job.folder / "metrics.jsonl").read_text().splitlines()
    )
    return Outcome(losses(job, []), f"{skipped:.0f} updates skipped" if skipped else "")


def losses(job: Job, reached: list[int]) -> list[int]:
    """Finished steps that were lost at each event, from where the run was and where it went on.

    The n-th event ended the n-th start. What one costs that came before a start had said where it
    goes on was lost by the event before.
    """
    starts, lost = job.starts(), []
    for number, steps in enumerate(reached):
        after = next((step for step in starts[number + 1 :] if step is not None), steps)
        fresh = number == 0 or starts[number] is not None
        lost.append(max(0, steps - after) if fresh else 0)
    return lost


def restarts(job: Job) -> int:
    """How often the ranks were started."""
    return len(job.starts())


def began_again(job: Job, before: int) -> bool:
    """Whether the ranks were started since, or the job has ended."""
    return restarts(job) > before or job.process.poll() is not None


def wait_for(condition: Callable[[], bool]) -> None:
    """Look again and again."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > STALLED:
            raise SystemExit("the job did not go on")
        time.sleep(0.2)


def difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> str:
    """Say how far two adapters are apart."""
    gap = max(float((ours[name] - value).abs().max()) for name, value in theirs.items())
    size = max(float(value.abs().max()) for value in theirs.values())
    return "the same bits" if gap == 0 else f"differ by {gap / size:.1e}"


def main() -> None:
    """Try all faults and print what came of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("faults", nargs="*", default=[*OUTSIDE, *INSIDE])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--steps", type=int, default=20, help="of a run; `kill` makes fifteen times as many"
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--events", type=int, default=3, help="of other faults from outside")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for runs and their output")
    arguments = parser.parse_args()
    place = arguments.keep or Path(tempfile.mkdtemp())
    place.mkdir(parents=True, exist_ok=True)
    undisturbed: dict[int, dict[str, torch.Tensor]] = {}
    sys.stdout.write("| fault | events | lost, most | lost, all | weights | damaged | |\n")
    sys.stdout.write("|---|---|---|---|---|---|---|\n")
    for fault in arguments.faults:
        steps = arguments.steps * KILL_LENGTH if fault == "kill" else arguments.steps
        if steps not in undisturbed:
            plain = Job(place / f"undisturbed-{steps}", arguments.processes, steps)
            plain.start()
            plain.end()
            undisturbed[steps] = plain.adapter()
        job = Job(place / fault, arguments.processes, steps, fault if fault in INSIDE else "none")
        act = inside if fault in INSIDE else OUTSIDE[fault]
        events = arguments.kills if fault == "kill" else arguments.events
        outcome = act(job, events, random.Random(arguments.seed))
        lost = outcome.lost or [0]
        sys.stdout.write(
            f"| {fault} | {len(outcome.lost) or 1} | {max(lost)} | {sum(lost)} | "
            f"{difference(job.adapter(), undisturbed[steps])} | {job.damaged()} | "
            f"{outcome.note} |\n"
        )
        sys.stdout.flush()


OUTSIDE = {"kill": kill, "storm": storm, "corrupt": corrupt, "server": server}

if __name__ == "__main__":
    main()
