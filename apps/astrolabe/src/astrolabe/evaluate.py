"""What training changed: the model before and after, on the same prompts with the same noise."""

from collections.abc import Callable
from dataclasses import replace
from itertools import cycle, islice

from astrolabe import checkpoint
from astrolabe.compose import Scorer, build_model, build_reward, build_term, check_frames
from astrolabe.config import Run
from astrolabe.prompts import prompt_list
from astrolabe.run_folder import RunFolder
from astrolabe.sampling import evaluation_frames, load_trained, sampler
from astrolabe.tracking import read_curves
from astrolabe_eval import (
    Comparison,
    Evaluation,
    Suite,
    evaluate_suite,
    verdict,
    write_mp4,
    write_report,
)
from astrolabe_rollout.model import VideoModel

Say = Callable[[str], None]
REWARD, MONITOR = "reward/", "monitor/"


def evaluate(folder: RunFolder, run: Run, say: Say) -> Comparison:
    """Compare the model of a run before and after training; write the report into its folder.

    "After" is the averaged policy of the newest checkpoint, the one that sampled the data last.

    Args:
        folder: Of the run.
        run: Its settings; ``run.evaluation`` says what is generated.
        say: Shows a line.

    Returns:
        The content of ``report.json``.

    Raises:
        ConfigError: If a setting does not fit the model.
        CheckpointError: If there is no checkpoint, or it is damaged.
        PromptFileError: If the prompts cannot be read.
        OSError: If the report cannot be written.
    """
    suite = make_suite(run)
    model = build_model(run.model)
    num_frames = evaluation_frames(run)
    check_frames(model, num_frames, "evaluation.num_frames")
    folder.newest()  # a damaged checkpoint is refused before minutes are spent
    reward = build_reward(run, grouped=False).eval()
    checkpoint.restore_reward(folder, reward)
    judges = {
        name: build_term(name, term, "evaluation.judges")
        for name, term in run.evaluation.judges.items()
    }
    before = _measure("before", model, suite, run, reward, judges, say)
    trained = load_trained(model, folder)
    after = _measure("after", model, suite, run, reward, judges, say)
    curves = read_curves(folder)
    comparison = write_report(
        folder.path,
        before,
        after,
        title=f"{folder.path.name}: before and after",
        curves={
            _title(name, run): curve
            for name, curve in curves.items()
            if name.startswith(REWARD) or name == "loss/policy"
        },
        monitors={
            name.removeprefix(MONITOR): curve
            for name, curve in curves.items()
            if name.startswith(MONITOR)
        },
        details=_details(run, trained.name),
    )
    for index in range(min(run.logging.samples, len(suite))):
        for name, result in (("before", before), ("after", after)):
            path = folder.samples / "report" / f"{index}-{name}.mp4"
            write_mp4(path, result.videos[index], result.fps, min_side=192)
    for line in describe(comparison):
        say(line)
    say(f"Report: {folder.report}")
    return comparison


def make_suite(run: Run) -> Suite:
    """Choose the prompts of the evaluation, evenly over the list, and number their seeds."""
    settings = run.evaluation
    prompts = prompt_list(settings.prompts, "evaluation.prompts")
    count = settings.num_videos
    chosen = (
        [prompts[index * len(prompts) // count] for index in range(count)]
        if count <= len(prompts)
        else list(islice(cycle(prompts), count))
    )
    seeds = range(settings.seed, settings.seed + count)
    return Suite(settings.prompts, tuple(chosen), tuple(seeds))


def describe(comparison: Comparison) -> list[str]:
    """One line for each score: means, paired difference, interval and what it says."""
    state = " (partial)" if comparison["partial"] else ""
    lines = [
        f"{comparison['prompts']} held-out videos{state}, same prompts and noise before and after:"
    ]
    for kind, scores in (("", comparison["rewards"]), (" (judge)", comparison["judges"])):
        for name, change in scores.items():
            low, high = change["interval"] or (float("nan"), float("nan"))
            wins = comparison["wins"][name]["rate"]
            lines.append(
                f"  {name + kind:<24} {change['before']:8.3f} -> {change['after']:8.3f}   "
                f"{change['difference']:+.3f} [{low:+.3f}, {high:+.3f}]  wins {wins:.0%}  "
                f"{verdict(change)}"
            )
    return lines


def _title(name: str, run: Run) -> str:
    """Title of a curve; rewards that nothing is trained on are marked."""
    term = run.rewards.get(name.removeprefix(REWARD))
    return name if term is None or term.weight else f"{name} (held out)"


def _measure(
    name: str,
    model: VideoModel,
    suite: Suite,
    run: Run,
    reward: Scorer,
    judges: dict[str, Scorer],
    say: Say,
) -> Evaluation:
    say(f"Sampling and scoring {len(suite)} videos {name} training ...")
    result = evaluate_suite(
        sampler(model, evaluation_frames(run), run.overview),
        suite,
        reward,
        fps=model.fps,
        judges=judges,
        batch_size=run.evaluation.batch_size,
    )
    watched = (name for name, term in run.rewards.items() if not term.weight)
    return replace(result, held_out=tuple(name for name in watched if name in result.rewards))


def _details(run: Run, trained: str) -> dict[str, str]:
    """What a reader of the report wants to know about the run."""
    rollout, train = run.rollout, run.train
    return {
        "model": run.model.name,
        "rewards": ", ".join(f"{term.weight:g} {name}" for name, term in run.rewards.items()),
        "objective": run.objective.name,
        "checkpoint": trained,
        "videos of a step": f"{rollout.num_prompts} prompts x {rollout.group_size}",
        "learning rate": f"{train.lr:g}",
        "seed": str(train.seed),
    }
