"""SuiteFolder: what one model made of a suite, on disk, video by video.

Several processes may fill a folder, each its share of the samples, and any of them may be killed:
what is there is complete, and what is not is made by the next one that comes.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from astrolabe_eval.errors import SuiteError, VideoError
from astrolabe_eval.files import write_atomic
from astrolabe_eval.frames import Frames
from astrolabe_eval.mp4_boxes import check_complete
from astrolabe_eval.scoring import Evaluation
from astrolabe_eval.suites import Suite
from astrolabe_eval.video_folder import VideoFiles
from astrolabe_eval.video_io import write_mp4

#: Number of a sample in a file name; suites of more than a million prompts need more digits.
_DIGITS = 6
MANIFEST = "manifest.json"
_KINDS = ("rewards", "judges")


class SuiteFolder:
    """Videos and scores of one model on one suite.

    ``manifest.json`` says what the samples are and how they are made, ``videos/`` holds one mp4 a
    sample and ``scores/`` one JSON file a sample, which is written last; null there stands for a
    score that could not be had. Scores are those of the frames as they were made, not of the
    compressed video.

    Args:
        path: The folder; made if it is not there.
        suite: Prompts and seeds.
        fps: Frames per second of the videos.
        names: File names of the videos, one a sample; numbers by default.
        protocol: Everything else that scores depend on, such as model, checkpoint and rewards; as
            JSON holds it.

    Raises:
        SuiteError: If the folder was made for other samples or by another protocol, or the names
            are not one a sample.
        OSError: If it cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        suite: Suite,
        *,
        fps: float,
        names: Sequence[str] = (),
        protocol: Mapping[str, Any] | None = None,  # Any: what JSON holds
    ) -> None:
        self.path, self.suite, self.fps = Path(path), suite, fps
        self.protocol = dict(protocol or {})
        self.names = tuple(names) or tuple(f"{i:0{_DIGITS}d}.mp4" for i in range(len(suite)))
        if len(set(self.names)) != len(suite):
            raise SuiteError(
                f"there are {len(set(self.names))} different file names for {len(suite)} samples "
                f"of {suite.name!r}. Give each sample one of its own."
            )
        manifest = {
            "suite": suite.name,
            "fps": fps,
            "prompts": list(suite.prompts),
            "seeds": list(suite.seeds),
            "videos": list(self.names),
            "protocol": self.protocol,
        }
        file = self.path / MANIFEST
        if file.exists():
            _refuse_other(file, json.loads(json.dumps(manifest)))
        else:
            write_atomic(file, json.dumps(manifest, indent=1).encode())

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Return a folder that was made before.

        Raises:
            SuiteError: If it has no manifest, or a damaged one.
        """
        file = Path(path) / MANIFEST
        try:
            content = json.loads(file.read_text("utf-8"))
            suite = Suite(content["suite"], tuple(content["prompts"]), tuple(content["seeds"]))
            options = {"names": content["videos"], "protocol": content["protocol"]}
            return cls(path, suite, fps=content["fps"], **options)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise SuiteError(
                f"{str(path)!r} holds no evaluation ({error!r}). Give a folder with a {MANIFEST}."
            ) from error

    def video(self, index: int) -> Path:
        """Return where a sample's video is."""
        return self.path / "videos" / self.names[index]

    def todo(self, rank: int = 0, processes: int = 1) -> list[int]:
        """Return the samples of one process that are not finished, in order."""
        return [i for i in range(rank, len(self.suite), processes) if not self._row(i).exists()]

    def unscored(self, rank: int = 0, processes: int = 1) -> list[int]:
        """Return the finished samples of one process that lack a score, in order.

        They count as finished: a judge may never have an answer for them. `fill` asks again.
        """
        found = []
        for index in range(rank, len(self.suite), processes):
            try:
                row = self._read(index)
            except (SuiteError, VideoError):
                continue
            if any(math.isnan(score) for kind in _KINDS for score in row[kind].values()):
                found.append(index)
        return found

    def put(self, index: int, frames: Frames, result: Evaluation) -> None:
        """Keep a finished sample: its video, then its scores.

        Args:
            index: Number of the sample.
            frames: uint8 ``[F, 3, H, W]``.
            result: Scores of this one sample.
        """
        self.video(index).parent.mkdir(parents=True, exist_ok=True)
        write_mp4(self.video(index), np.asarray(frames), self.fps)
        row = {
            "prompt": self.suite.prompts[index],
            "seed": self.suite.seeds[index],
            "rewards": {name: _or_none(values[0]) for name, values in result.rewards.items()},
            "judges": {name: _or_none(values[0]) for name, values in result.judges.items()},
        }
        write_atomic(self._row(index), json.dumps(row, allow_nan=False).encode())

    def evaluation(self) -> Evaluation:
        """Return what is finished; what is not, or has no readable video, is listed as missing.

        Raises:
            SuiteError: If nothing is finished.
        """
        rows: dict[int, dict[str, dict[str, float]]] = {}
        missing: dict[str, str] = {}
        for index, name in enumerate(self.names):
            try:
                row = self._read(index)
                _check_names(row, next(iter(rows.values()), row))
                rows[index] = row
            except (SuiteError, VideoError) as error:
                missing[name] = str(error)
        if not rows:
            raise SuiteError(
                f"{str(self.path)!r} has no finished sample. Generate the suite first."
            )
        suite = Suite(
            self.suite.name,
            tuple(self.suite.prompts[index] for index in rows),
            tuple(self.suite.seeds[index] for index in rows),
        )
        return Evaluation(
            suite=suite,
            rewards=_columns([row["rewards"] for row in rows.values()]),
            judges=_columns([row["judges"] for row in rows.values()]),
            videos=VideoFiles([self.video(index) for index in rows]),
            fps=self.fps,
            missing=missing,
        )

    def _row(self, index: int) -> Path:
        return self.path / "scores" / f"{index:0{_DIGITS}d}.json"

    def _read(self, index: int) -> dict[str, dict[str, float]]:
        """Rewards and judges of a sample, NaN where there is no score."""
        try:
            content = json.loads(self._row(index).read_text("utf-8"))
        except FileNotFoundError:
            raise SuiteError("not finished") from None
        except ValueError as error:
            raise SuiteError(f"its scores cannot be read ({error})") from error
        row = {kind: _numbers(content, kind) for kind in _KINDS}
        if not self.video(index).is_file():
            raise VideoError("its video is gone")
        check_complete(self.video(index))
        return row


def fill(
    folder: SuiteFolder,
    evaluate: Callable[[Suite], Evaluation],
    *,
    rank: int = 0,
    processes: int = 1,
    batch_size: int = 8,
) -> Iterator[int]:
    """Make the samples that a folder lacks, batch by batch.

    Those that could not be scored the last time come after them and are made and scored again: what
    failed may answer now. What has no score once more stays without.

    Args:
        folder: Where they go.
        evaluate: Makes and scores a few samples, with their videos (`evaluate_suite`).
        rank: Number of this process.
        processes: How many share the work; each takes every so-manieth sample.
        batch_size: Samples made together, which are lost together if the process is killed.

    Yields:
        How many samples were kept, after each batch.
    """
    todo = folder.todo(rank, processes) + folder.unscored(rank, processes)
    for start in range(0, len(todo), batch_size):
        chosen = todo[start : start + batch_size]
        prompts, seeds = folder.suite.prompts, folder.suite.seeds
        part = Suite(
            folder.suite.name, tuple(prompts[i] for i in chosen), tuple(seeds[i] for i in chosen)
        )
        found = evaluate(part)
        for place, index in enumerate(chosen):
            folder.put(index, found.videos[place], _one(found, part, place))
        yield len(chosen)


def _one(found: Evaluation, suite: Suite, place: int) -> Evaluation:
    """The result of one sample of a batch."""
    return Evaluation(
        suite=Suite(suite.name, suite.prompts[place : place + 1], suite.seeds[place : place + 1]),
        rewards={name: row[place : place + 1] for name, row in found.rewards.items()},
        judges={name: row[place : place + 1] for name, row in found.judges.items()},
    )


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:  # Any: float64 [n]
    names = rows[0].keys()
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in names}


def _or_none(score: float) -> float | None:
    """A score as JSON can hold it."""
    return None if math.isnan(score) else float(score)


def _numbers(content: object, kind: str) -> dict[str, float]:
    """The scores of one kind in a file; null, and the NaN of other writers, is NaN."""
    scores = content.get(kind) if isinstance(content, dict) else None
    if not isinstance(scores, dict):
        raise SuiteError(f"its scores cannot be read (they have no {kind!r})")
    for name, score in scores.items():
        known = isinstance(score, int | float) and not isinstance(score, bool)
        if score is not None and not (known and not math.isinf(score)):
            raise SuiteError(f"its score {name!r} is {score!r}, which is not finite")
    return {name: math.nan if score is None else float(score) for name, score in scores.items()}


def _check_names(
    row: Mapping[str, Mapping[str, float]], first: Mapping[str, Mapping[str, float]]
) -> None:
    for kind in _KINDS:
        if row[kind].keys() != first[kind].keys():
            raise SuiteError(
                f"its {kind} are {sorted(row[kind])}, those of others {sorted(first[kind])}"
            )


def _refuse_other(file: Path, wanted: Mapping[str, Any]) -> None:  # Any: what JSON holds
    try:
        found = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise SuiteError(f"{str(file)!r} cannot be read ({error}). Remove its folder.") from error
    for name, value in wanted.items():
        if found.get(name) != value:
            raise SuiteError(
                f"{str(file)!r} was made with another {name}: {_short(found.get(name))}, now "
                f"{_short(value)}. Choose another folder, or remove this one."
            )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
