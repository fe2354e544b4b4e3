"""What training changed: the model before and after, on the same prompts with the same noise."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from astrolabe import checkpoint
from astrolabe.checkpoint_files import LORA, digest_of
from astrolabe.compose import build_model
from astrolabe.compose_rewards import Scorer, build_judge, build_reward
from astrolabe.config import Run
from astrolabe.errors import ConfigError
from astrolabe.fit import check_frames, evaluation_frames
from astrolabe.load import to_json
from astrolabe.prompts import prompt_list, prompt_rows
from astrolabe.run_folder import RunFolder
from astrolabe.sampling import reading_scenes, sampler, script_sampler
from astrolabe.tracking import read_curves
from astrolabe.view import progress
from astrolabe_eval import (
    Comparison,
    Evaluation,
    Suite,
    SuiteFolder,
    evaluate_suite,
    fill,
    keep_shared,
    read_vbench_prompts,
    vbench_suite,
    write_report,
)
from astrolabe_eval.subsets import least_prompts
from astrolabe_eval.suites import name_seed
from astrolabe_eval.summary import summarise
from astrolabe_eval.vbench_prompts import PROMPT_KEY
from astrolabe_rollout.lora import load_lora
from astrolabe_rollout.model import VideoModel
from astrolabe_rollout.scenes import parse_scenes

Say = Callable[[str], None]
#: Number of a process, how many there are, and how many videos are made together.
Work = tuple[int, int, int]
REWARD, MONITOR = "reward/", "monitor/"
BEFORE = "before"


def evaluate(
    folder: RunFolder,
    run: Run,
    say: Say,
    *,
    steps: Sequence[int] = (),
    out: Path | None = None,
    share: tuple[int, int] = (0, 1),
) -> Comparison | None:
    """Compare the model of a run before and after training; write the report into its folder.

    "After" is the averaged policy of a checkpoint, the one that sampled the data last. Videos and
    scores are kept batch by batch: a call that was interrupted goes on with the same numbers, what
    is damaged is named, put aside and made again, and several processes may share the work; the one
    that finds all of it done writes the report.

    Args:
        folder: Of the run.
        run: Its settings; ``run.evaluation`` says what is generated.
        say: Shows a line.
        steps: Checkpoints to compare with the untrained model; by default the newest.
        out: Where videos, scores and report go; by default into the folder of the run.
        share: Number of this process, and how many there are.

    Returns:
        The content of ``report.json``; None if other processes are not done yet.

    Raises:
        ConfigError: If a setting does not fit the model.
        CheckpointError: If there is no such checkpoint, or it is damaged.
        PromptFileError: If the prompts cannot be read.
        SuiteError: If the suite cannot be used.
        OSError: If the report cannot be written.
    """
    suite, names = make_suite(run)
    # What cannot be read is refused before minutes are spent.
    checkpoints, curves = folder.find(steps), read_curves(folder)
    model = build_model(run.model)
    num_frames = evaluation_frames(run, model)
    check_frames(model, num_frames, "evaluation.num_frames")
    reward = build_reward(run, grouped=False).eval()
    checkpoint.restore_reward(folder, reward)
    judges = {
        name: build_judge(name, term, "evaluation.judges", run.composite.on_error)
        for name, term in run.evaluation.judges.items()
    }
    versions = {BEFORE: None, **{path.name: path for path in checkpoints}}
    made_by = protocol(run, model)
    where = _place(out or folder.path / "evaluation", made_by, suite)
    results: dict[str, Evaluation | None] = {}
    for name, path in versions.items():
        made = SuiteFolder(
            where / name,
            suite,
            fps=model.fps,
            names=names,
            protocol=made_by | {"checkpoint": None if path is None else digest_of(path)},
        )
        work = (*share, _batch_size(run))
        for line in made.mend(*work):
            say(line)
        say(_work(made, work, _when(name)))
        if path is not None:
            load_lora(model.transformer.network, path / LORA)
        _fill(made, model, run, reward, judges, work)
        results[name] = made.evaluation() if not made.todo() else None
    if any(result is None for result in results.values()):
        say("This process is done with its share; the last one to finish writes the report.")
        return None
    found = {name: _marked(result, run) for name, result in results.items() if result is not None}
    if any(result.missing for result in found.values()):
        found = keep_shared(found)
    before, *after = found.values()
    comparison = write_report(
        out or folder.path,
        before,
        after[0] if len(after) == 1 else dict(zip(list(found)[1:], after, strict=True)),
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
        details=_details(run, ", ".join(path.name for path in checkpoints)),
    )
    for line in describe(comparison):
        say(line)
    say(f"Videos and scores: {where}")
    say(f"Report: {(out or folder.path) / 'report.html'}")
    return comparison


def make_suite(run: Run) -> tuple[Suite, tuple[str, ...]]:
    """Choose the prompts of the evaluation, evenly over the list, with a seed for each video.

    Returns:
        The suite, and the names of its videos if it has any of its own (VBench's list).
    """
    settings = run.evaluation
    where = "evaluation.prompts"
    if settings.prompts.lower().endswith(".json") and any(
        PROMPT_KEY in row.values for row in prompt_rows(settings.prompts, where) or ()
    ):
        return _vbench(settings.prompts, settings.num_videos)
    prompts = prompt_list(settings.prompts, where)
    count = settings.num_videos or len(prompts)
    if settings.scenes:
        _check_scripts(prompts)
    chosen = (
        [prompts[index * len(prompts) // count] for index in range(count)]
        if count <= len(prompts)
        else list(islice(cycle(prompts), count))
    )
    seen: Counter[str] = Counter()
    seeds = []
    for prompt in chosen:
        seeds.append((name_seed(prompt, seen[prompt]) + settings.seed) % 2**63)
        seen[prompt] += 1
    return Suite(Path(settings.prompts).stem, tuple(chosen), tuple(seeds)), ()


def _check_scripts(scripts: Sequence[str]) -> None:
    for number, script in enumerate(scripts, start=1):
        try:
            parse_scenes(script)
        except ValueError as error:
            raise ConfigError(f"evaluation.prompts: script {number}: {error}") from error


def _vbench(path: str, count: int) -> tuple[Suite, tuple[str, ...]]:
    """VBench's prompts under the names and with the seeds that belong to them."""
    whole = vbench_suite(read_vbench_prompts(path))
    total = len(whole.suite)
    rows = [index * total // count for index in range(min(count, total))] or list(range(total))
    suite = Suite(
        whole.suite.name,
        tuple(whole.suite.prompts[row] for row in rows),
        tuple(whole.suite.seeds[row] for row in rows),
    )
    return suite, tuple(whole.file_names[row] for row in rows)


def protocol(run: Run, model: VideoModel) -> dict[str, Any]:  # Any: settings as JSON holds them
    """Return all settings on which the scores of a video depend."""
    settings = json.loads(to_json(run))
    evaluation = settings["evaluation"]
    return {
        "model": settings["model"],
        "rewards": settings["rewards"],
        "composite": settings["composite"],
        "judges": evaluation["judges"],
        "latent_frames": evaluation_frames(run, model),
        "scenes": evaluation["scenes"],
        "chunk": model.geometry.chunk,
        "temporal": model.geometry.temporal,
        "batch_size": 1 if run.evaluation.exact else run.evaluation.batch_size,
    }


def _place(parent: Path, made_by: dict[str, Any], suite: Suite) -> Path:  # Any: see `protocol`
    """The folder of one suite and protocol; another one gets a folder of its own."""
    content = json.dumps([made_by, suite.prompts, suite.seeds])
    name = hashlib.blake2b(content.encode(), digest_size=4).hexdigest()
    return parent / f"{suite.name}-{name}"


def _fill(
    made: SuiteFolder,
    model: VideoModel,
    run: Run,
    reward: Scorer,
    judges: dict[str, Scorer],
    work: Work,
) -> None:
    """Sample and score what this process has to and is not there."""
    settings = run.evaluation
    read = reading_scenes if settings.scenes else (lambda step: step)
    make = script_sampler if settings.scenes else sampler
    sample = make(model, evaluation_frames(run, model), run.overview)
    scorers = {name: read(judge) for name, judge in judges.items()}

    def measure(part: Suite) -> Evaluation:
        return evaluate_suite(
            sample,
            part,
            read(reward),
            fps=model.fps,
            judges=scorers,
            batch_size=batch_size,
        )

    rank, processes, batch_size = work
    steps = fill(made, measure, rank=rank, processes=processes, batch_size=batch_size)
    with progress("videos", len(made.todo(*work)) + len(made.unscored(*work))) as advance:
        for count in steps:
            advance(count)


def _marked(result: Evaluation, run: Run) -> Evaluation:
    """The same, with the rewards marked that nothing was trained on."""
    watched = (name for name, term in run.rewards.items() if not term.weight)
    return replace(result, held_out=tuple(name for name in watched if name in result.rewards))


def _batch_size(run: Run) -> int:
    """Videos that are sampled and scored together.

    One by one no number depends on the batch: the last bits of a matrix product depend on how many
    rows it has.
    """
    settings = run.evaluation
    # Scripts differ in length, and videos of different length do not fit into one batch.
    return 1 if settings.exact or settings.scenes else settings.batch_size


def _work(made: SuiteFolder, work: Work, when: str) -> str:
    """Say what this process has to do for one model."""
    again = len(made.unscored(*work))
    line = f"Sampling and scoring {len(made.todo(*work)) + again} videos {when}"
    return f"{line}, {again} of them again, as they lack a score ..." if again else f"{line} ..."


def _when(name: str) -> str:
    return "before training" if name == BEFORE else f"of {name}"


def describe(comparison: Comparison) -> list[str]:
    """One line for each score: means, paired difference, interval and what it says of how many."""
    state = " (partial)" if comparison["partial"] else ""
    lines = [
        f"{comparison['prompts']} held-out videos{state}, same prompts and noise before and after:"
    ]
    rows, least = summarise(comparison), least_prompts(comparison["level"])
    several = len(comparison["checkpoints"]) > 1
    for row in rows:
        change, wins = row.change, row.wins
        name = f"{row.model}: {row.score}" if several else row.score
        ends = ", ".join(f"{end:+.3f}" for end in change["interval"] or ())
        share = "n/a" if wins is None or wins["rate"] is None else f"{wins['rate']:.0%}"
        said = row.verdict if change["interval"] else "no verdict"
        left_out = f", {change['unscored']} videos unscored" if change["unscored"] else ""
        lines.append(
            f"  {name + (' (judge)' if row.judge else ''):<24} "
            f"{_number(change['before']):>8} -> {_number(change['after']):>8}   "
            f"{_number(change['difference'], '+')} [{ends or 'no interval'}]  wins {share}  "
            f"{said} ({change['prompts']} prompts{left_out})"
        )
    if any(row.change["prompts"] < least for row in rows):
        lines.append(
            f"  It takes {least} independent prompts to tell a change from chance: "
            "give more with --prompts and --num-videos."
        )
    return lines


def _number(value: float | None, sign: str = "") -> str:
    return "n/a" if value is None else f"{value:{sign}.3f}"


def _title(name: str, run: Run) -> str:
    """Title of a curve; rewards that nothing is trained on are marked."""
    term = run.rewards.get(name.removeprefix(REWARD))
    return name if term is None or term.weight else f"{name} (held out)"


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
