"""One training run from its settings to its report: folders, checkpoints, signals, the screen."""

import json
import logging
from pathlib import Path

import torch

from astrolabe import checkpoint
from astrolabe.clock import Clock
from astrolabe.compose import Parts, compose
from astrolabe.config import Run
from astrolabe.evaluate import evaluate
from astrolabe.guard import StepGuard
from astrolabe.run_folder import RunFolder
from astrolabe.shown import describe
from astrolabe.signals import interruptible
from astrolabe.tracking import Tracker
from astrolabe.train import Step, train
from astrolabe.view import View, make_view
from astrolabe_eval import write_mp4
from astrolabe_eval.files import write_atomic

MINIMUM_SPACE = 64 * 2**20
INTERRUPTED = 130
"""Exit code of a program that ended by Ctrl-C."""


def start(run: Run, out: str | Path) -> int:
    """Begin a new run in a new folder.

    Returns:
        The exit code: 0, or 130 after an interruption.

    Raises:
        FileExistsError: If ``out`` is not empty.
        OSError: If it cannot be written, or the disk is too full.
    """
    new = [path for path in (Path(out), *Path(out).parents) if not path.exists()]
    folder = RunFolder.claim(out)
    try:
        parts = compose(run)
        folder.check_space(space_needed(run, parts))
    except BaseException:
        # A refused run leaves no trace, so that the same command works once it is mended.
        for path in new:
            path.rmdir()
        raise
    folder.begin(run)
    return _go(folder, run, parts, first=0)


def resume(path: str | Path) -> int:
    """Go on with a run from its newest checkpoint, or from its start if there is none.

    Returns:
        The exit code: 0, or 130 after an interruption.

    Raises:
        ConfigError: If ``path`` is no run folder.
        CheckpointError: If the newest checkpoint is damaged or does not fit.
        OSError: If the folder cannot be written.
    """
    folder, run = RunFolder.open(path)
    folder.newest()  # refuse a damaged checkpoint before anything is loaded
    parts = compose(run)
    folder.check_space(space_needed(run, parts))
    first = checkpoint.restore(folder, parts)
    folder.trim_metrics(first)
    return _go(folder, run, parts, first)


def space_needed(run: Run, parts: Parts) -> int:
    """Bytes that a run will write at most: checkpoints, and some for everything else."""
    # The adapter as it is trained and as it is published, two snapshots, two moments of AdamW.
    trained = sum(value.numel() * value.element_size() for value in parts.parameters.values())
    return 6 * trained * (run.logging.keep + 1) + MINIMUM_SPACE


def _go(folder: RunFolder, run: Run, parts: Parts, first: int) -> int:
    logging.getLogger("torchrl").setLevel(logging.WARNING)  # it tells of each storage it makes
    view = make_view(run.train.steps, str(folder.path))
    if not _train(folder, run, parts, first, view):
        return INTERRUPTED
    if run.evaluation.at_end:
        try:
            evaluate(folder, run, view.say)
        except KeyboardInterrupt:
            view.say(f"Trained, but without a report. Write it with: astrolabe eval {folder.path}")
            return INTERRUPTED
    return 0


def _train(folder: RunFolder, run: Run, parts: Parts, first: int, view: View) -> bool:
    """Train to the last step or until the alarm ends it; False if somebody stopped it."""
    if first == run.train.steps:
        return True
    saved = first
    guard = StepGuard(folder, run, view)
    try:
        with (
            view,
            interruptible() as interrupted,
            Tracker(folder, run.logging.backends) as tracker,
        ):
            for step in train(run, parts, Clock(view.phase), first):
                tracker.log(step.number, step.metrics)
                view.step(step.number, step.metrics)
                _keep_samples(folder, run, step)
                guard(step)
                last = step.number == run.train.steps or guard.stop
                if last or interrupted or step.number % run.logging.checkpoint_every == 0:
                    view.phase("save", 0.0)
                    checkpoint.save(folder, parts, step.number, run.logging.keep)
                    saved = step.number
                if last and not interrupted:
                    guard.end(step)
                    return True
                if interrupted:
                    break
    except KeyboardInterrupt:
        pass
    view.say(
        f"Stopped; saved after step {saved} of {run.train.steps}. "
        f"Go on with: astrolabe train --resume {folder.path}"
    )
    return False


def _keep_samples(folder: RunFolder, run: Run, step: Step) -> None:
    """Write the step's videos that are to be shown, then ``index.json``, which describes them."""
    every = run.logging.samples_every
    if not every or (step.number % every and step.number != 1):
        return
    place = folder.samples / f"step-{step.number:06d}"
    for index, video in enumerate(step.shown.unbind(0)):  # each [T]
        pixels = torch.cat([window["video", "pixels"] for window in video.unbind(0)])
        fps = float(video[0]["video", "fps"])
        write_mp4(place / f"{index}.mp4", pixels.cpu().numpy(), fps, min_side=192)
    videos = describe(step.batch, step.shown, list(run.rewards))
    content = json.dumps({"step": step.number, "videos": videos}, indent=2)
    write_atomic(place / "index.json", content.encode())
