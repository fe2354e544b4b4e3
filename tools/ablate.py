"""The laboratory: train many small variants of recipe `tiny`, and say what each changed.

    uv run python tools/ablate.py --out runs/lab [--only kl beta/0.1 ...] [--seeds 0 1 2]
                                  [--jobs 2] [--steps 5] [--list] [--table]

The arms are in `ablate_arms.py`. Each run is an ordinary run folder, OUT/ARM/seed-S, with a
result.json; what is finished is skipped, what was interrupted goes on, and what failed is tried
again by the next call. Seeds come one after the other, so that after a third of the time each arm
has been seen once. All runs of a call use the code as it was when the call began.
"""

import argparse
import json
import math
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from ablate_arms import ARMS, COMMON, STEPS, Arm, select
from ablate_table import plot, refuse_unscored, summarise, table

from astrolabe.config import Run
from astrolabe.load import load, to_json

BEFORE = "before.json"
RESULT = "result.json"
#: Imported once, by the process from which all runs are forked: torchrl takes longer than a step.
PRELOAD = [
    "__main__",
    "astrolabe.session",
    "astrolabe.evaluate",
    "astrolabe_rollout.tiny",
    "astrolabe_rewards.quality",
    "astrolabe_rewards.motion",
    "astrolabe_rewards.matcher",
    "astrolabe_rewards.pixel_check",
]


def settings(arm: Arm, seed: int, steps: int) -> Run:
    """Settings of one run."""
    return load(arm.recipes, arm.overrides(seed, steps))


def folder_of(out: Path, arm: Arm, seed: int) -> Path:
    """Where one run is kept."""
    return out / arm.name / f"seed-{seed}"


def log_of(out: Path, arm: Arm, seed: int) -> Path:
    """Where one run's output goes; its last line says what went wrong, in a file beside it."""
    return out / "logs" / f"{arm.name.replace('/', '.')}.seed-{seed}.log"


def measure(folder: Path | None) -> dict[str, Any]:
    """Score 64 held-out videos of the untrained model, or of a run's averaged policy.

    Scores are those of the default recipe for every arm, so that they can be compared.
    """
    import numpy as np

    from astrolabe.compose import build_model
    from astrolabe.compose_rewards import build_reward, build_term
    from astrolabe.evaluate import make_suite
    from astrolabe.fit import evaluation_frames
    from astrolabe.run_folder import RunFolder
    from astrolabe.sampling import load_trained, sampler
    from astrolabe_eval import evaluate_suite

    run = load(["tiny"], COMMON)
    model = build_model(run.model)
    if folder is not None:
        load_trained(model, RunFolder(folder))
    found = evaluate_suite(
        sampler(model, evaluation_frames(run, model)),
        make_suite(run)[0],
        build_reward(run).eval(),
        fps=model.fps,
        judges={
            name: build_term(name, term, "evaluation.judges")
            for name, term in run.evaluation.judges.items()
        },
        batch_size=run.evaluation.batch_size,
    )
    videos = np.stack([np.asarray(video) for video in found.videos]).astype(np.float32) / 255
    highest, lowest = videos.max(axis=2), videos.min(axis=2)  # [n, F, H, W]
    monitors = {
        "brightness": videos.mean(axis=(1, 2, 3, 4)),
        "saturation": ((highest - lowest) / highest.clip(min=1 / 255)).mean(axis=(1, 2, 3)),
        "motion": np.abs(np.diff(videos, axis=1)).mean(axis=(1, 2, 3, 4)),
    }
    scores = {**found.rewards, **found.judges, **monitors}
    refuse_unscored(scores)
    return {
        "prompts": list(found.suite.prompts),
        "seeds": list(found.suite.seeds),
        "scores": {name: [float(value) for value in row] for name, row in scores.items()},
    }


def work(out: Path, arm: Arm | None, seed: int, steps: int, log: Path) -> None:
    """Do one run in this process, or the untrained model without an arm; leave a file behind."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    error = log.with_suffix(".error")
    error.unlink(missing_ok=True)
    try:
        if arm is None:
            _write(out / BEFORE, measure(None))
        else:
            _run(folder_of(out, arm, seed), settings(arm, seed, steps))
    except Exception as problem:
        traceback.print_exc()
        error.write_text(f"{type(problem).__name__}: {problem}".splitlines()[0])
        sys.exit(1)


def _run(folder: Path, run: Run) -> None:
    from astrolabe import session
    from astrolabe.run_folder import RunFolder
    from astrolabe.tracking import read_curves

    config = folder / "config.json"
    if config.exists():
        if config.read_text() != to_json(run):
            raise ValueError(
                f"{str(folder)!r} holds a run with other settings; give another --out."
            )
        code = session.resume(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)  # claimed, and interrupted before it began
        code = session.start(run, folder)
    if code:
        sys.exit(code)
    began = time.perf_counter()
    after = measure(folder)
    curves = {
        name: [value if math.isfinite(value) else None for value in values]
        for name, (_, values) in read_curves(RunFolder(folder)).items()
    }
    times = [name for name in curves if name.startswith("time/")]
    result = {
        **after,
        "seconds": sum(value or 0.0 for name in times for value in curves[name]),
        "evaluation_seconds": time.perf_counter() - began,
        "processor_seconds": time.process_time(),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "load": os.getloadavg()[0],
        "curves": curves,
    }
    _write(folder / RESULT, result)


def _write(path: Path, content: Any) -> None:  # Any: what JSON holds
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content))
    part.rename(path)


class Pool:
    """Runs that go on side by side, each in a process forked from one that has all imports."""

    def __init__(self, out: Path, jobs: int, steps: int) -> None:
        self.out, self.jobs, self.steps = out, jobs, steps
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOAD)
        self.running: dict[Any, tuple[str, Path, float]] = {}  # Any: a process of the context

    def add(self, arm: Arm | None, seed: int) -> None:
        """Begin a run as soon as there is room."""
        while len(self.running) >= self.jobs:
            self.finish_one()
        log = log_of(self.out, arm, seed) if arm else self.out / "logs" / "before.log"
        process = self.context.Process(target=work, args=(self.out, arm, seed, self.steps, log))
        process.start()
        name = f"{arm.name} seed {seed}" if arm else "before training"
        self.running[process] = (name, log, time.perf_counter())

    def finish_one(self) -> None:
        """Wait for any run to end, and say how."""
        wait([process.sentinel for process in self.running])
        for process in [one for one in self.running if one.exitcode is not None]:
            name, log, began = self.running.pop(process)
            error = log.with_suffix(".error")
            if process.exitcode and not error.exists():  # killed, so that it could not say itself
                error.write_text(f"the process ended with exit code {process.exitcode}")
            outcome = error.read_text() if process.exitcode else "done"
            print(f"{time.perf_counter() - began:6.0f} s  {name}: {outcome}", flush=True)

    def finish(self) -> None:
        """Wait for all."""
        while self.running:
            self.finish_one()

    def stop(self) -> None:
        """Ask all to save and end."""
        for process in self.running:
            process.terminate()
        self.finish()


def train_all(out: Path, arms: Sequence[Arm], seeds: Sequence[int], jobs: int, steps: int) -> None:
    """Train whatever is not finished."""
    (out / "logs").mkdir(parents=True, exist_ok=True)
    pool = Pool(out, jobs, steps)
    try:
        if not (out / BEFORE).exists():
            pool.add(None, 0)
            pool.finish()
        for seed in seeds:
            for arm in arms:
                folder = folder_of(out, arm, seed)
                if not (folder / RESULT).exists():
                    pool.add(arm, seed)
                elif (folder / "config.json").read_text() != to_json(settings(arm, seed, steps)):
                    print(f"{folder} is finished, with other settings: left as it is", flush=True)
        pool.finish()
    except KeyboardInterrupt:
        print("Stopping; the same command goes on.", flush=True)
        pool.stop()


def write_results(out: Path) -> None:
    """Write table.md, results.json and a plot for each family from what is finished."""
    before = json.loads((out / BEFORE).read_text())
    results: dict[str, dict[int, dict[str, Any]]] = {}
    errors: dict[str, dict[int, str]] = {}
    for arm in ARMS:
        found = sorted((out / arm.name).glob(f"seed-*/{RESULT}"))
        runs = {int(path.parent.name[5:]): json.loads(path.read_text()) for path in found}
        results[arm.name] = runs
        for path in (out / "logs").glob(f"{arm.name.replace('/', '.')}.seed-*.error"):
            errors.setdefault(arm.name, {})[int(path.stem.rpartition("-")[2])] = path.read_text()
    summary = summarise(ARMS, results, errors, before["scores"])
    (out / "table.md").write_text(table(summary, before["scores"]))
    _write(out / "results.json", {"before": before, "arms": summary})
    for family in dict.fromkeys(arm.family for arm in ARMS):
        names = [name for name in summary if name == "base" or name.partition("/")[0] == family]
        finished = [name for name in names if "change" in summary[name]]
        if finished:
            plot(out / f"{family}.png", finished, summary)
    count = sum(len(runs) for runs in results.values())
    print(f"{count} runs in {out / 'table.md'}")


def _terminated(number: int, frame: Any) -> None:  # Any: Python's own signature
    raise KeyboardInterrupt


def main() -> None:
    """Train what is asked for and write what is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/lab"))
    parser.add_argument("--only", nargs="+", default=[], help="arms or families")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, a thread each")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--table", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    try:
        arms = select(arguments.only)
    except ValueError as problem:
        parser.error(str(problem))
    if arguments.list:
        for arm in arms:
            print(f"{arm.name:<24} {arm.what}: {' '.join(arm.changes) or '-'}")
        return
    signal.signal(signal.SIGTERM, _terminated)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # for the arms, in the forking process
    if not arguments.table:
        train_all(arguments.out, arms, arguments.seeds, arguments.jobs, arguments.steps)
    write_results(arguments.out)


if __name__ == "__main__":
    main()
