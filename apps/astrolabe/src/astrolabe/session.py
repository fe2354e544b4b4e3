"""One training run from its settings to its report: folders, checkpoints, signals, the screen.

Every process of a run goes through here; the main one alone writes into the folder (but for logs
and crash reports, where each writes its own) and speaks to the user.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from astrolabe import checkpoint, crash, preflight
from astrolabe.checks import check_prompts, check_settings, check_terms
from astrolabe.clock import Clock
from astrolabe.compose import Parts, compose
from astrolabe.config import Run
from astrolabe.evaluate import evaluate
from astrolabe.explain import explain
from astrolabe.guard import StepGuard
from astrolabe.load import changed, names_in
from astrolabe.masking import known_secrets
from astrolabe.metrics_file import check_metrics, go_on_after
from astrolabe.rank_log import RankLog, log_to
from astrolabe.recipe_changes import check_changes
from astrolabe.rollout_rank import sample_only
from astrolabe.run_folder import RunFolder
from astrolabe.run_lock import RunLock
from astrolabe.sameness import check_same
from astrolabe.saving import Saver, space_needed
from astrolabe.screen import echo
from astrolabe.shown import describe
from astrolabe.signals import interruptible
from astrolabe.stacks import why_hung
from astrolabe.stragglers import SlowRank
from astrolabe.tracking import Tracker
from astrolabe.train import Step, train
from astrolabe.view import View, make_view
from astrolabe.watchdog import Watchdog
from astrolabe.world import World
from astrolabe_eval import write_mp4
from astrolabe_eval.files import write_atomic

INTERRUPTED = 130
"""Exit code of a program that ended by Ctrl-C."""

#: Builds the parts of a run, and brings them to the state after some steps; returns both.
Begin = Callable[[View], tuple[Parts, int]]


def start(
    run: Run,
    out: str | Path,
    *,
    again: bool = False,
    force: bool = False,
    allow_code: bool = False,
) -> int:
    """Begin a new run in a new folder.

    Args:
        run: The settings.
        out: The folder.
        again: Go on if the folder holds this run already, as after a restart by a scheduler.
        force: Whether settings that are safe to change may then differ from those it began with.
        allow_code: Whether those it began with may name code that ``run`` does not.

    Returns:
        The exit code: 0, or 130 after an interruption.

    Raises:
        FileExistsError: If ``out`` is not empty.
        ConfigError: If the processes do not fit together, or the settings those of the run.
        OSError: If it cannot be written, or the disk is too full.
    """
    folder = RunFolder(out)
    with joined(run) as world:
        if again and world.any(world.main and folder.config.exists()):
            begun = RunFolder.open(out, allow_code=allow_code, known=run)[1]
            return _resume(folder, world, begun, run, force)
        new = [path for path in (folder.path, *folder.path.parents) if not path.exists()]
        world.lead(lambda: RunFolder.claim(out))

        def begin(view: View) -> tuple[Parts, int]:
            parts = _compose(run, world, folder)
            world.lead(lambda: folder.begin(run))
            return parts, 0

        try:
            return _go(folder, run, world, begin)
        except Exception as error:
            if world.main and explain(error) is not None:
                folder.withdraw()
            raise
        finally:
            if world.main and not folder.config.exists():
                # A refused run leaves no trace, so that the same command works once it is mended.
                with suppress(OSError):  # unless somebody else holds it, or put something there
                    with RunLock(folder.path, lambda text: None):
                        RunLock.path_of(folder.path).unlink()
                    for path in new:
                        path.rmdir()


def resume(
    path: str | Path,
    run: Run | None = None,
    *,
    overrides: Sequence[str] = (),
    unset: Sequence[str] = (),
    force: bool = False,
    allow_code: bool = False,
) -> int:
    """Go on with a run from its newest whole checkpoint, or from its start if there is none.

    Args:
        path: Its folder.
        run: Settings to go on with; those that it began with if left out.
        overrides: Changes of those it began with, as `load` takes them; none of a given run.
        unset: Settings to take out of them, likewise.
        force: Whether settings that are safe to change may differ.
        allow_code: Whether its own settings may name code that ``run`` does not.

    Returns:
        The exit code: 0, or 130 after an interruption.

    Raises:
        ConfigError: If ``path`` is no run folder or names code, or ``run`` would make it another
            run.
        CheckpointError: If no checkpoint is whole, or the newest does not fit.
        OSError: If the folder cannot be written.
    """
    typed = names_in(overrides, unset)
    folder, begun = RunFolder.open(path, allow_code=allow_code, known=run, typed=typed)
    wanted = run or changed(begun, overrides, unset)
    with joined(wanted) as world:
        return _resume(folder, world, begun, wanted, force)


def _resume(folder: RunFolder, world: World, begun: Run, run: Run, force: bool) -> int:
    check_changes(begun, run, force=force)

    def begin(view: View) -> tuple[Parts, int]:
        world.lead(lambda: check_metrics(folder.metrics))  # before minutes are spent
        parts = _compose(run, world, folder)
        hung = world.lead(lambda: why_hung(folder.path))
        first, told = checkpoint.restore(folder, parts)
        _say(view, [*filter(None, [hung]), *told, f"Going on after step {first}."])

        def tidy() -> None:
            folder.begin(run)
            _say(view, go_on_after(folder.metrics, first))

        world.lead(tidy)
        return parts, first

    return _go(folder, run, world, begin)


@contextmanager
def joined(run: Run) -> Iterator[World]:
    """Join the other processes of a run, and leave them if all went well."""
    # Later than the watchdog, which shows where the others stand; a collective would just fail.
    world = World.start(run.distributed.timeout + 60)
    yield world
    # Not after an error: the others may be waiting for this process, until torchrun ends them.
    world.end()


def _compose(run: Run, world: World, folder: RunFolder) -> Parts:
    """Build the parts, and see that all processes have the same and the disk has room."""
    if world.local_rank == 0:
        preflight.check(run)
    check_settings(run, world.size)
    check_prompts(run)
    if run.evaluation.at_end:
        check_terms(run, judges_only=True)  # what the report needs is refused now, not at its end
    parts = compose(run, world)
    check_same(world, run, parts)
    if parts.handover is not None and parts.handover.learns:
        for unused in (parts.model.encoder, parts.model.codec):
            if isinstance(unused, nn.Module):
                unused.to("cpu")  # those that sample have them
    world.lead(lambda: folder.check_space(space_needed(run, parts)))
    return parts


def _go(folder: RunFolder, run: Run, world: World, begin: Begin) -> int:
    """Train, then write the report; what goes wrong unexpectedly leaves a crash report."""
    logging.getLogger("torchrl").setLevel(logging.WARNING)  # it tells of each storage it makes
    view = make_view(run.train.steps, str(folder.path), speaks=world.main)
    # torchrun takes any other code for a failure, and would start the run again.
    interrupted = 0 if "TORCHELASTIC_RUN_ID" in os.environ else INTERRUPTED
    with ExitStack() as stack:
        world.lead(lambda: stack.enter_context(RunLock(folder.path, view.say)))
        log = stack.enter_context(
            log_to(folder.path, world, known_secrets(asdict(run), os.environ))
        )
        first, trained = 0, False
        try:
            parts, first = begin(view)
            trained = _train(folder, run, world, view, log, parts, first)
            if not trained:
                return interrupted
            if run.evaluation.at_end:
                _report(folder, run, world, view)
        except KeyboardInterrupt:
            view.say(_stopped(folder, first, trained))
            return interrupted
        except Exception as error:
            if explain(error) is None:
                where = crash.report(folder, run, error, world)
                # Not through the view, which one process has alone.
                echo(f"crash report: {where}", err=True)
            raise
    return 0


def _stopped(folder: RunFolder, first: int, trained: bool) -> str:
    """What to say of a run that was stopped outside of its steps, and how to go on."""
    if trained:
        return f"Trained, but without a report. Write it with: astrolabe eval {folder.path}"
    if not folder.config.exists():
        return "Stopped before the run began; nothing is kept. Start it again as before."
    return (
        f"Stopped before step {first + 1}; all is as it was. "
        f"Go on with: astrolabe train --resume {folder.path}"
    )


def _train(
    folder: RunFolder,
    run: Run,
    world: World,
    view: View,
    log: RankLog,
    parts: Parts,
    first: int,
) -> bool:
    """Train to the last step or until the alarm ends it; False if somebody stopped it."""
    if first >= run.train.steps:
        return True
    watchdog = Watchdog(folder.path, world, run.distributed.timeout, log.watching(view.phase))
    clock = Clock(watchdog.phase)
    log.step = first + 1
    slow = SlowRank(world)
    if parts.handover is not None and not parts.handover.learns:
        return _sample(run, parts, clock, first, watchdog, log)
    keep, best = run.logging.keep, run.logging.keep_best
    saver = Saver(folder, parts, keep=keep, best=best, run=run)
    guard = StepGuard(folder, run, view, world)
    with ExitStack() as stack, suppress(KeyboardInterrupt):
        stack.enter_context(view)
        interrupted = stack.enter_context(interruptible(aloud=world.main))
        tracker = stack.enter_context(_tracker(folder, run, view)) if world.main else None
        stack.enter_context(watchdog)
        for step in train(run, parts, clock, first):
            if tracker is not None:
                tracker.log(step.number, step.metrics)
                view.step(step.number, step.metrics)
                _keep_samples(folder, run, step, view)
            guard(step)
            log.step = step.number + 1
            if hint := slow.watch(step.metrics):
                view.say(hint)
            asked = bool(interrupted) or (parts.handover is not None and parts.handover.asked)
            leave = parts.world.any(asked)  # a signal may have come to some of them only
            last = step.number == run.train.steps or guard.stop
            with clock("save"):
                _say(view, saver.settle())  # what the last step began: no more is ever lost
                if last or leave or step.number % run.logging.checkpoint_every == 0:
                    saver.save(step.number, step.metrics)
                if last or leave:
                    _say(view, saver.settle())
                    if parts.handover is not None:
                        parts.handover.end(left=leave)
            if last and not leave:
                guard.end(step)
                saver.check()
                return True
            if leave:
                break
    saved = saver.wait()
    kept = f"saved after step {saved} of {run.train.steps}" if saved else "no step is saved yet"
    view.say(f"Stopped; {kept}. Go on with: astrolabe train --resume {folder.path}")
    return False


def _tracker(folder: RunFolder, run: Run, view: View) -> Tracker:
    return Tracker(folder, run.logging.backends, run.logging.tracker_options, view.say)


def _sample(
    run: Run, parts: Parts, clock: Clock, first: int, watchdog: Watchdog, log: RankLog
) -> bool:
    """Sample for the processes that learn; False if somebody stopped them."""
    assert parts.handover is not None  # it tells how they ended
    with suppress(KeyboardInterrupt), interruptible(aloud=False) as interrupted, watchdog:
        for step in sample_only(run, parts, clock, first, lambda: bool(interrupted)):
            log.step = step + 1
        return not parts.handover.left
    return False


def _report(folder: RunFolder, run: Run, world: World, view: View) -> None:
    """Evaluate; processes share the videos, and the last one to finish writes the report."""
    done = evaluate(folder, run, view.say, share=(world.rank, world.size))
    if done is not None and not world.main:
        echo(f"Report: {folder.report}")


def _say(view: View, texts: list[str]) -> None:
    for text in texts:
        view.say(text)


def _keep_samples(folder: RunFolder, run: Run, step: Step, view: View) -> None:
    """Write the step's videos that are to be shown, then ``index.json``, which describes them."""
    if not run.logging.shows(step.number) or not len(step.shown):
        return
    place = folder.samples / f"step-{step.number:06d}"
    videos = describe(step.judged, step.shown, list(run.rewards))
    content = json.dumps({"step": step.number, "videos": videos}, indent=2)
    try:
        for index, video in enumerate(step.shown.unbind(0)):  # each [T]
            pixels = torch.cat([window["video", "pixels"] for window in video.unbind(0)])
            fps = float(video[0]["video", "fps"])
            write_mp4(place / f"{index}.mp4", pixels.cpu().numpy(), fps, min_side=192)
        write_atomic(place / "index.json", content.encode())
    except OSError as error:  # a full disk must not end a run of days
        view.say(f"Step {step.number}: the sample videos cannot be written ({error.strerror}).")
