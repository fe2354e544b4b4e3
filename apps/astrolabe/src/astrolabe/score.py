"""One call of `astrolabe score`, from what was typed to the scores of video files."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDict

from astrolabe.compose_rewards import Scorer, build_term
from astrolabe.errors import ConfigError
from astrolabe.reward_choice import choose_terms
from astrolabe.screen import echo, one_line
from astrolabe.video_list import find_prompts, find_videos
from astrolabe.view import progress, written
from astrolabe_eval import Video, VideoError, read_mp4
from astrolabe_eval.agreement import LEAST
from astrolabe_eval.agreement_report import write_agreement
from astrolabe_eval.files import check_place, write_atomic
from astrolabe_eval.tables import csv_cell
from astrolabe_rewards import CompositeReward, Reward
from astrolabe_rewards.cache import CachedReward

FORMATS = (".csv", ".jsonl")


@dataclass(frozen=True)
class Request:
    """What was typed."""

    videos: Sequence[Path]
    """Files, and folders that are searched."""
    prompts: Sequence[str] = ()
    prompt_file: Path | None = None
    rewards: Sequence[str] = ()
    """As in `choose_terms`, like the next two and ``allow_code``."""
    recipes: Sequence[str] = ()
    overrides: Sequence[str] = ()
    batch_size: int = 8
    cache: Path | None = None
    out: Path | None = None
    report: Path | None = None
    allow_code: bool = False


@dataclass
class Scored:
    """One video and what came of it."""

    path: Path
    prompt: str
    scores: dict[str, float] = field(default_factory=dict)
    """NaN where a reward could not score the video; empty if it could not be read."""
    error: str = ""


def perform(request: Request, say: Callable[[str], None]) -> int:
    """Score what is asked for; the scores of each video are said as soon as they are known.

    Returns:
        The exit code: 0, or 1 if some videos could not be scored; those are listed.

    Raises:
        ConfigError: If something typed does not fit.
        OSError: If what is asked for cannot be written.
        VideoError: If a file is missing, or no video at all could be scored.
        WeightsError: If a reward's weights are not there.
    """
    terms = choose_terms(
        request.rewards, request.recipes, request.overrides, allow_code=request.allow_code
    )
    rewards = {name: build_term(name, term) for name, term in terms.items()}
    videos = find_videos(request.videos)
    prompts = find_prompts(videos, request.prompts, request.prompt_file)
    _check(request, videos, prompts, rewards)
    if request.cache is not None:
        folder = request.cache
        rewards = {
            name: CachedReward(reward, folder) if isinstance(reward, Reward) else reward
            for name, reward in rewards.items()
        }
    results = [Scored(*pair) for pair in zip(videos, prompts, strict=True)]
    reward = CompositeReward(
        {name: (term, 1.0) for name, term in rewards.items()}, on_error="invalid"
    )
    _show(score_videos(results, reward, request.batch_size), len(results), say)
    failed = [result for result in results if result.error]
    if not any(score == score for result in results for score in result.scores.values()):
        raise VideoError(failed[0].error)
    if request.out is not None:
        write_scores(request.out, results, list(rewards))
        say(f"Scores: {request.out}")
    if request.report is not None:
        _report(request.report, results, rewards, say)
    if failed:
        echo(_summary(results, list(rewards)), err=True)
    return int(bool(failed))


def score_videos(
    results: Sequence[Scored], reward: CompositeReward, batch_size: int
) -> Iterator[Scored]:
    """Fill in the scores of video files, those of equal shape together.

    No more than twice ``batch_size`` videos are held at once.

    Args:
        results: Paths and prompts; scores and errors are written into them.
        reward: Its terms give the scores.
        batch_size: Videos scored together.

    Yields:
        Each of ``results`` when it is done, in another order if shapes differ.
    """
    waiting: dict[tuple[int, ...], list[tuple[Scored, Video]]] = {}
    for result in results:
        try:
            video = read_mp4(result.path)
        except (VideoError, OSError) as error:
            result.error = str(error)
            yield result
            continue
        shape = video.frames.shape
        waiting.setdefault(shape, []).append((result, video))
        if len(waiting[shape]) == batch_size:
            yield from _score(waiting.pop(shape), reward)
        elif sum(map(len, waiting.values())) >= 2 * batch_size:
            yield from _score(waiting.pop(next(iter(waiting))), reward)
    for batch in waiting.values():
        yield from _score(batch, reward)


def write_scores(path: Path, results: Sequence[Scored], names: Sequence[str]) -> None:
    """Write all scores as CSV, or as JSON Lines if ``path`` ends in ``.jsonl``.

    A row has the path, the prompt, one column for each reward (empty or null where there is no
    score), and what went wrong, if anything. In CSV, texts are as `csv_cell` makes them.
    """
    rows = [
        {
            "path": str(result.path),
            "prompt": result.prompt,
            **{name: _number(result.scores.get(name, math.nan)) for name in names},
            "error": result.error or None,
        }
        for result in results
    ]
    if path.suffix.lower() == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        table = io.StringIO(newline="")
        writer = csv.writer(table)
        for cells in (["path", "prompt", *names, "error"], *(row.values() for row in rows)):
            writer.writerow([csv_cell(x) if isinstance(x, str) else x for x in cells])
        text = table.getvalue()
    write_atomic(path, text.encode("utf-8", "backslashreplace"))


def _score(videos: list[tuple[Scored, Video]], reward: CompositeReward) -> list[Scored]:
    """Score videos of one shape."""
    results = [result for result, _ in videos]
    batch = TensorDict(batch_size=[len(videos)])
    batch["prompt", "text"] = [result.prompt for result in results]
    batch["video", "pixels"] = torch.from_numpy(np.stack([video.frames for _, video in videos]))
    batch["video", "fps"] = torch.tensor([video.fps for _, video in videos], dtype=torch.float32)
    reward.score(batch)
    for index, result in enumerate(results):
        result.scores = {name: float(batch["score", name][index]) for name in reward.rewards}
        silent = [name for name, score in result.scores.items() if score != score]
        if silent:
            result.error = f"{str(result.path)!r} could not be scored by {', '.join(silent)}."
    return results


def _check(
    request: Request, videos: Sequence[Path], prompts: Sequence[str], rewards: Mapping[str, Scorer]
) -> None:
    """Refuse what cannot end well, before anything is scored."""
    if request.out is not None and request.out.suffix.lower() not in FORMATS:
        raise ConfigError(
            f"--out {str(request.out)!r} ends in neither of {', '.join(FORMATS)}. Rename it."
        )
    if request.report is not None and (len(rewards) < 2 or len(videos) < LEAST):
        raise ConfigError(
            f"--report compares rewards over videos: {len(rewards)} rewards and {len(videos)} "
            f"videos are too few. Give 2 and {LEAST} or more."
        )
    for place in (request.out, request.report and request.report / "agreement.html"):
        if place is not None:
            check_place(place)
    for video in videos:
        if not video.is_file():
            raise VideoError(f"There is no video file {str(video)!r}. Check the path.")
    readers = [name for name, reward in rewards.items() if getattr(reward, "needs_text", False)]
    for video, prompt in zip(videos, prompts, strict=True):
        if readers and not prompt.strip():
            raise ConfigError(
                f"{readers[0]} compares a video with its prompt, and {str(video)!r} has none. "
                "Give --prompt, or --prompts with a file of paths and prompts."
            )


def _show(scored: Iterator[Scored], count: int, say: Callable[[str], None]) -> None:
    """Say the scores of each video, and show on a terminal how far it is."""
    with progress("scoring", count) as advance:
        for result in scored:
            if result.scores:
                numbers = "  ".join(
                    f"{name} {written(score, '.4f')}" for name, score in result.scores.items()
                )
                say(f"{one_line(result.path)}  {numbers}")
            if result.error and count > 1:
                echo(f"skipped: {one_line(result.error)}", err=True)
            advance(1)


def _report(
    folder: Path,
    results: Sequence[Scored],
    rewards: Mapping[str, Scorer],
    say: Callable[[str], None],
) -> None:
    """Write how the rewards agree over the videos that could be read."""
    read = [result for result in results if result.scores]
    if len(read) < LEAST:
        echo(f"No report: it needs {LEAST} videos that can be read.", err=True)
        return
    write_agreement(
        folder,
        {name: [result.scores[name] for result in read] for name in rewards},
        [str(result.path) for result in read],
        prompts=[result.prompt for result in read],
        read=lambda index: read_mp4(read[index].path),
        details={name: getattr(reward, "unit", "its own unit") for name, reward in rewards.items()},
    )
    say(f"Report: {folder / 'agreement.html'}")


def _summary(results: Sequence[Scored], names: Sequence[str]) -> str:
    """How many videos lack a score, and by which reward."""
    failed = sum(bool(result.error) for result in results)
    read = [result.scores for result in results if result.scores]
    lacking = {name: sum(math.isnan(scores[name]) for scores in read) for name in names}
    parts = ", ".join(f"{count} by {name}" for name, count in lacking.items() if count)
    by = f" ({parts})" if parts else ""
    return f"{failed} of {len(results)} videos could not be scored{by}."


def _number(score: float) -> float | None:
    return score if math.isfinite(score) else None
