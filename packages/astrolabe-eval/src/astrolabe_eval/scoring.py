"""Score generated videos and keep what a comparison needs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from astrolabe_eval.errors import SuiteError
from astrolabe_eval.frames import Frames
from astrolabe_eval.generation import Progress, Step, check_step, generate
from astrolabe_eval.keys import FPS, PIXELS, REWARD, SCORE, VALID
from astrolabe_eval.rows import as_row, check_mapping
from astrolabe_eval.suites import Suite
from astrolabe_eval.torch_extra import require_torch
from astrolabe_eval.video_folder import Prompts, VideoFiles, find_videos, read_batches

if TYPE_CHECKING:
    from tensordict import TensorDict

#: Name of the combined reward among the scores.
TOTAL = "total"

#: Score name to float64 ``[n]``, in the order of the suite; ``"total"`` is the combined reward.
#: NaN: the sample could not be scored.
Scores: TypeAlias = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one model did on one suite; entry ``i`` of everything belongs to prompt ``i``.

    Attributes:
        suite: The prompts and seeds.
        rewards: Scores of the reward that was trained on, ``"total"`` among them. NaN, here and
            in ``judges``, where a sample could not be scored: reports leave it out and count it.
        judges: Scores that nothing was trained on. Empty: there was no judge.
        videos: ``uint8 [F, 3, H, W]`` each; any sequence, so also one that reads files. Empty: a
            report shows no pictures.
        fps: Frames per second of the videos.
        held_out: Names of rewards that were watched while training but have no part in the total.
            Judges are held out anyway and need not be named.
        missing: Name of each sample that was left out or is not finished, to why. Not empty: the
            evaluation is partial, and a report says so and lists them.
    """

    suite: Suite
    rewards: Scores
    judges: Scores = field(default_factory=dict)
    videos: Sequence[Frames] = ()
    fps: float = 8.0
    held_out: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        scorer: Step,
        *,
        prompts: Prompts | None = None,
        judges: Mapping[str, Step] | None = None,
        batch_size: int = 8,
    ) -> Self:
        """Score the video files of a folder.

        Two folders pair up, video by video, if the prompts of their files are the same: give both
        the same names, or the same prompts.

        Args:
            folder: Of the files: mp4, webm, mov, mkv or avi, in the order of their names, numbers
                by their size.
            scorer: As in :func:`evaluate_suite`.
            prompts: What the videos should show: as many prompts as files in the order of the
                files, a text file of them, a `Suite`, or a dictionary of file names to prompts.
                None: the names say it, as those of VBench do (``"{prompt}-{number}.mp4"``); names
                without a letter are no prompts, and scorers get none.
            judges: As in :func:`evaluate_suite`.
            batch_size: Neighbours of one size that are scored together, at most.

        Returns:
            Scores in the order of the names; videos are read again when they are looked at. A file
            that cannot be read is listed in ``missing``.

        Raises:
            SuiteError: If there is no video, none can be read, or prompts and files do not fit.
            ValueError: As in :func:`score_suite`, or if ``batch_size`` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}. Use 1 or more.")
        require_torch("Evaluation.from_folder")
        videos = find_videos(folder, prompts)
        rewards: list[Scores] = []
        judged: list[Scores] = []
        kept: list[int] = []
        rates: list[float] = []
        missing: dict[str, str] = {}
        for numbers, batch, broken in read_batches(videos, batch_size):
            missing |= {videos.paths[number].name: why for number, why in broken.items()}
            if numbers:
                rewards.append(_with_total(score_suite([batch.copy()], scorer)))
                judged.append(_judge(batch, judges or {}))
                rates += batch[FPS].tolist()
                kept += numbers
        if not kept:
            raise SuiteError(
                f"no video of {str(folder)!r} can be read: {next(iter(missing.values()))}"
            )
        suite = videos.suite
        return cls(
            suite=Suite(
                suite.name,
                tuple(suite.prompts[number] for number in kept),
                tuple(suite.seeds[number] for number in kept),
            ),
            rewards=_join(rewards),
            judges=_join(judged),
            videos=VideoFiles([videos.paths[number] for number in kept]),
            fps=max(set(rates), key=rates.count),
            missing=missing,
        )

    def __post_init__(self) -> None:
        if not isinstance(self.suite, Suite):
            raise TypeError(f"suite is a {type(self.suite).__name__}. Give Suite(name, prompts).")
        if not 0 < self.fps < math.inf:
            raise ValueError(f"fps is {self.fps!r}. Use more than 0 frames per second.")
        for kind in ("rewards", "judges"):
            rows = getattr(self, kind)
            if not isinstance(rows, Mapping):
                raise TypeError(
                    f"{kind} is a {type(rows).__name__}. Give names with one number for each "
                    "prompt: {'total': [0.5, 0.7]}."
                )
            # Lists and tensors are welcome; what is kept cannot change under a comparison.
            given = {name: as_row(f"{kind}[{name!r}]", row) for name, row in rows.items()}
            object.__setattr__(self, kind, given)
        if isinstance(self.held_out, str):
            raise TypeError(f"held_out is {self.held_out!r}. Give a tuple of names.")
        if TOTAL not in self.rewards:
            raise ValueError(f"rewards has no {TOTAL!r}, only {sorted(self.rewards)}. Add it.")
        if wrong := sorted(set(self.held_out) - (self.rewards.keys() - {TOTAL})):
            raise ValueError(
                f"held_out names {wrong[0]!r}, which is no part of the rewards "
                f"{sorted(self.rewards.keys() - {TOTAL})}. Judges need not be named."
            )
        if twice := sorted(self.rewards.keys() & self.judges.keys()):
            raise ValueError(f"{twice[0]!r} is both a reward and a judge. Rename the judge.")
        lengths = {f"rewards[{name!r}]": len(row) for name, row in self.rewards.items()}
        lengths |= {f"judges[{name!r}]": len(row) for name, row in self.judges.items()}
        if len(self.videos):
            lengths["videos"] = len(self.videos)
        for name, length in lengths.items():
            if length != len(self.suite):
                raise ValueError(
                    f"{name} has {length} entries for {len(self.suite)} prompts. "
                    "Give one for each prompt, in the order of the suite."
                )


def score_suite(batches: "Iterable[TensorDict]", scorer: Step) -> Scores:
    """Score batches of videos.

    Args:
        batches: Each ``[n]`` with what ``scorer`` reads, as from :func:`generate`.
        scorer: Returns the batch with some of ``("score", name)`` and ``("next","reward")``.

    Returns:
        ``("score", name)`` under its name and ``("next","reward")`` as ``"total"``, each float64
        with one number for each sample, in order. NaN where the scorer wrote NaN, and for a total
        whose ``("next","valid")`` it wrote as false: such a sample could not be scored.

    Raises:
        ModuleNotFoundError: Without torch and tensordict, the extra ``torch``.
        TypeError: If ``scorer`` is none, or returns something else.
        ValueError: If nothing was scored, a score is infinite, not one number for each sample, or
            the names change between batches.
    """
    require_torch("score_suite")
    import torch

    check_step("scorer", scorer)

    parts: list[Scores] = []
    for batch in batches:
        with torch.no_grad():
            scores = _collect(scorer(batch), len(batch))
        if parts and scores.keys() != parts[0].keys():
            raise ValueError(
                f"The scorer wrote {sorted(scores)} for one batch and {sorted(parts[0])} for the "
                "first. Write the same names each time."
            )
        parts.append(scores)
    if not parts:
        raise ValueError("There are no batches to score. Generate a suite first.")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def evaluate_suite(
    sample: Step,
    suite: Suite,
    scorer: Step,
    *,
    fps: float,
    judges: Mapping[str, Step] | None = None,
    batch_size: int = 8,
    keep_videos: bool = True,
    on_progress: Progress | None = None,
) -> Evaluation:
    """Generate a suite and score it, batch by batch.

    Args:
        sample: The model, as in :func:`generate`.
        suite: The prompts and seeds.
        scorer: The reward that was trained on: writes ``("next","reward")``, or one score, which
            is then the total too.
        fps: Frames per second of the model's videos.
        judges: Scorers that nothing was trained on. One that writes one number is shown under the
            name given here, one that writes more as ``name/score``.
        batch_size: Samples generated and scored together.
        keep_videos: Keep all pixels in memory, for a report with pictures.
        on_progress: Told after each batch is generated and scored.

    Returns:
        Scores and videos in the order of the suite.

    Raises:
        ValueError: As in :func:`generate` and :func:`score_suite`.
    """
    rewards: list[Scores] = []
    judged: list[Scores] = []
    videos: list[Frames] = []
    for batch in generate(sample, suite, fps=fps, batch_size=batch_size, on_progress=on_progress):
        # Each scorer gets the batch as the model left it: it must not see what another one wrote.
        rewards.append(_with_total(score_suite([batch.copy()], scorer)))
        judged.append(_judge(batch, judges or {}))
        if keep_videos:
            videos.extend(batch[PIXELS].cpu().numpy())
    return Evaluation(
        suite=suite, rewards=_join(rewards), judges=_join(judged), videos=videos, fps=fps
    )


def _with_total(scores: Scores) -> Scores:
    """Scores with their total: that of a scorer with one number is this number."""
    if TOTAL not in scores and len(scores) != 1:
        raise ValueError(
            f"The scorer wrote {sorted(scores)} and no ('next', 'reward'), so there is no total. "
            "Let it write that entry: their weighted sum."
        )
    return scores if TOTAL in scores else {TOTAL: next(iter(scores.values())), **scores}


def _judge(batch: "TensorDict", judges: Mapping[str, Step]) -> Scores:
    check_mapping("judges", judges, "names with scorers")
    found: Scores = {}
    for name, judge in judges.items():
        scores = score_suite([batch.copy()], judge)
        if len(scores) == 1:
            found[name] = next(iter(scores.values()))
        else:
            found |= {f"{name}/{part}": row for part, row in scores.items()}
    return found


def _join(parts: list[Scores]) -> Scores:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _collect(batch: "TensorDict", count: int) -> Scores:
    """The scores in one batch, each float64 ``[count]``."""
    import torch
    from tensordict import TensorDict, TensorDictBase

    if not isinstance(batch, TensorDictBase):
        raise TypeError(
            f"The scorer returned a {type(batch).__name__}. Return the batch with its scores."
        )
    if not isinstance(batch.get(SCORE, TensorDict()), TensorDictBase):
        raise TypeError(
            "The scorer wrote 'score' itself. Write ('score', name): scores have names."
        )
    entries = dict(batch[SCORE].items()) if SCORE in batch.keys() else {}  # noqa: SIM118
    if REWARD in batch.keys(include_nested=True):
        entries[TOTAL] = batch[REWARD]
    if not entries:
        raise ValueError(
            "The scorer wrote neither ('score', name) nor ('next', 'reward'). "
            "Return the batch with at least one of them."
        )
    scores: Scores = {}
    for name, values in entries.items():
        if not isinstance(values, torch.Tensor) or values.is_complex():
            kind = values.dtype if isinstance(values, torch.Tensor) else type(values).__name__
            raise TypeError(f"Score {name!r} is a {kind}. Write a tensor with one number for each.")
        row = values.detach().to("cpu", torch.float64).reshape(-1).numpy()
        if len(row) != count:
            raise ValueError(
                f"Score {name!r} has shape {tuple(values.shape)} for {count} samples. "
                "Write one number for each."
            )
        if np.isinf(row).any():
            bad = int(np.flatnonzero(np.isinf(row))[0])
            raise ValueError(
                f"Score {name!r} is {row[bad]} for sample {bad} of a batch. Mend the scorer, or "
                "let it write NaN for what it cannot score."
            )
        scores[name] = row
    if TOTAL in scores and VALID in batch.keys(include_nested=True):
        valid = batch[VALID].detach().cpu().reshape(-1).numpy()
        scores[TOTAL] = np.where(valid, scores[TOTAL], np.nan)
    return scores
