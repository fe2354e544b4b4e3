"""SuiteFolder: what one model made of a suite, on disk, video by video.

Several processes may fill a folder, each its share of the samples, and any of them may be killed.
Every file is sealed: what is there is exactly what was written, or it is made again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from astrolabe_eval.errors import DamageError, SuiteError, VideoError
from astrolabe_eval.files import write_atomic
from astrolabe_eval.frames import Frames
from astrolabe_eval.mp4_boxes import check_complete
from astrolabe_eval.scoring import Evaluation
from astrolabe_eval.sealed import (
    CHANGED,
    MISSING,
    check_file,
    file_digest,
    read_sealed,
    seal,
    set_aside,
)
from astrolabe_eval.suite_manifest import MANIFEST, describe, difference, identity_of, read_manifest
from astrolabe_eval.suite_rows import Row, columns, odd_rows, read_row, row_bytes
from astrolabe_eval.suites import Suite
from astrolabe_eval.video_folder import VideoFiles
from astrolabe_eval.video_io import write_mp4

#: Number of a sample in a file name; suites of more than a million prompts need more digits.
_DIGITS = 6
VIDEOS, SCORES = "videos", "scores"


class _Damage(NamedTuple):
    """A file of a sample that is not what was written."""

    path: Path
    why: str

    def below(self, root: Path) -> str:
        """Say it in words, short of the path of ``root``."""
        return f"{self.path.relative_to(root)} {self.why}"


class SuiteFolder:
    """Videos and scores of one model on one suite.

    ``manifest.json`` says what the samples are and how they are made, ``videos/`` holds one mp4 a
    sample and ``scores/`` one JSON file a sample, which is written last; null there stands for a
    score that could not be had. Scores are those of the frames as they were made, not of the
    compressed video. Each JSON file ends with its digest, and that of scores has the digests of
    manifest and video; what does not fit is moved to ``damaged/`` by `mend` and made again by
    `fill`. Folders of earlier versions have no digests: they are read, and `mend` says so.

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
        OSError: If it cannot be read or written.
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
        self._digests: dict[tuple[Path, int, int, int], str] = {}
        self._lines: list[str] = []
        self._named: set[Path] = set()
        self._told = False
        self._identity, self._plain = self._claim()

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Return a folder that was made before.

        Raises:
            SuiteError: If it has no manifest, or a damaged one.
            OSError: If that cannot be read.
        """
        file = Path(path) / MANIFEST
        try:
            content, _ = read_manifest(file)
            suite = Suite(content["suite"], tuple(content["prompts"]), tuple(content["seeds"]))
            options = {"names": content["videos"], "protocol": content["protocol"]}
            return cls(path, suite, fps=content["fps"], **options)
        except DamageError as error:
            raise SuiteError(
                f"{str(path)!r} holds no evaluation that can be read: its {MANIFEST} {error}. Give "
                "a folder that has one."
            ) from error
        except (TypeError, ValueError) as error:  # of a version that sealed nothing
            raise SuiteError(
                f"{str(path)!r} holds no evaluation that can be read: its {MANIFEST} describes "
                f"none ({error}). Give a folder that has one."
            ) from error

    def video(self, index: int) -> Path:
        """Return where a sample's video is."""
        return self.path / VIDEOS / self.names[index]

    def todo(self, rank: int = 0, processes: int = 1, batch_size: int = 1) -> list[int]:
        """Return the samples of one process that are not there as they were written, in order.

        Args:
            rank: Number of the process.
            processes: How many share the work.
            batch_size: As in `fill`.
        """
        own = self._own(rank, processes, batch_size)
        return [index for index in own if not isinstance(self._read(index), Row)]

    def unscored(self, rank: int = 0, processes: int = 1, batch_size: int = 1) -> list[int]:
        """Return the finished samples of one process that lack a score, in order.

        They count as finished: a judge may never have an answer for them. `fill` asks again.

        Args:
            rank: As in `todo`, like the others.
            processes: How many share the work.
            batch_size: As in `fill`.
        """
        rows = {index: self._read(index) for index in self._own(rank, processes, batch_size)}
        return [index for index, row in rows.items() if isinstance(row, Row) and not row.whole]

    def damage(self) -> dict[Path, str]:
        """Return the files that are not what was written, to why; nothing is moved.

        Raises:
            OSError: If a file cannot be read.
        """
        found = (self._read(index) for index in range(len(self.suite)))
        return dict(each for each in found if isinstance(each, _Damage))

    def mend(self, rank: int = 0, processes: int = 1, batch_size: int = 1) -> list[str]:
        """Move the damaged files of one process's samples to ``damaged/``, to be made again.

        Args:
            rank: As in `todo`, like the others.
            processes: How many share the work.
            batch_size: As in `fill`.

        Returns:
            A sentence for each damaged file; one if some files are of a version without seals.

        Raises:
            OSError: If a file cannot be read or moved.
        """
        for place in (self.path / VIDEOS, self.path / SCORES):
            if place.exists() and not place.is_dir():
                self._set_aside(place, "is no folder")
        plain = 0
        for index in self._own(rank, processes, batch_size):
            found = self._read(index)
            if isinstance(found, Row):
                plain += found.video is None
            elif found is not None:
                self._set_aside(*found)
        if plain and not self._told:
            self._told = True
            self._lines.append(
                f"{plain} samples of {str(self.path)!r} were made by a version that sealed no "
                "files; they are believed as they are."
            )
        lines, self._lines = self._lines, []
        return lines

    def put(self, index: int, frames: Frames, result: Evaluation) -> None:
        """Keep a finished sample: its video, then its scores.

        Args:
            index: Number of the sample.
            frames: uint8 ``[F, 3, H, W]``.
            result: Scores of this one sample.
        """
        video = self.video(index)
        video.parent.mkdir(parents=True, exist_ok=True)
        write_mp4(video, np.asarray(frames), self.fps)
        prompt, seed = self.suite.prompts[index], self.suite.seeds[index]
        digest = self._digest(video)
        write_atomic(self._row(index), row_bytes(prompt, seed, result, self._identity, digest))

    def evaluation(self) -> Evaluation:
        """Return what is finished; what is not, or is damaged, is listed as missing.

        Raises:
            SuiteError: If nothing is finished.
            OSError: If a file cannot be read.
        """
        rows: dict[int, Row] = {}
        missing: dict[str, str] = {}
        for index, name in enumerate(self.names):
            found = self._read(index)
            if isinstance(found, Row):
                rows[index] = found
            else:
                missing[name] = "not finished" if found is None else found.below(self.path)
        for index, why in odd_rows(rows).items():
            missing[self.names[index]] = why
            del rows[index]
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
            rewards=columns([row.rewards for row in rows.values()]),
            judges=columns([row.judges for row in rows.values()]),
            videos=VideoFiles([self.video(index) for index in rows]),
            fps=self.fps,
            missing=missing,
        )

    def batches(self, rank: int, processes: int, batch_size: int) -> list[range]:
        """Return the samples of one process, batch by batch.

        They follow from the suite alone, not from what is finished or how many processes there are:
        the last bits of a score may depend on the batch.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}. Use 1 or more.")
        count = len(self.suite)
        starts = range(rank * batch_size, count, processes * batch_size)
        return [range(start, min(start + batch_size, count)) for start in starts]

    def _own(self, rank: int, processes: int, batch_size: int) -> list[int]:
        return [index for batch in self.batches(rank, processes, batch_size) for index in batch]

    def _row(self, index: int) -> Path:
        return self.path / SCORES / f"{index:0{_DIGITS}d}.json"

    def _read(self, index: int) -> Row | _Damage | None:
        """The scores of a sample that is whole; what is not; None if there is nothing of it."""
        file, video = self._row(index), self.video(index)
        prompt, seed = self.suite.prompts[index], self.suite.seeds[index]
        try:
            row = read_row(read_sealed(file), prompt, seed, self._identity, plain=self._plain)
        except DamageError as error:
            damage = _Damage(file, str(error))
        else:
            return self._wrong(video, row) or row
        if damage.why != MISSING:
            return damage
        try:
            check_file(video)
        except DamageError as error:
            return None if str(error) == MISSING else _Damage(video, str(error))
        return damage  # removed, or a kill came between the two files

    def _wrong(self, video: Path, row: Row) -> _Damage | None:
        """In what a video is not the one that was scored."""
        try:
            if row.video is not None and self._digest(video) != row.video:
                return _Damage(video, CHANGED)
            check_file(video)
            check_complete(video)
        except DamageError as error:
            return _Damage(video, str(error))
        except VideoError:
            return _Damage(video, "is cut short")
        return None

    def _digest(self, video: Path) -> str:
        """The digest of a video, computed once for as long as it is not touched."""
        check_file(video)
        state = video.stat()
        key = (video, state.st_ino, state.st_size, state.st_mtime_ns)
        if key not in self._digests:
            self._digests[key] = file_digest(video)
        return self._digests[key]

    def _claim(self) -> tuple[str, bool]:
        """Write the manifest, or see that the one that is there is ours.

        Returns:
            Its digest, and whether it is of a version that sealed nothing.
        """
        wanted = describe(self.suite, self.fps, self.names, self.protocol)
        identity, file = identity_of(wanted), self.path / MANIFEST
        try:
            found, sealed = read_manifest(file)
            other = difference(found, wanted)
            if other is None:
                return identity_of(found), not sealed
            if not self._has_rows_of(identity):
                raise SuiteError(
                    f"{str(file)!r} was made with {other}. Choose another folder, or remove this "
                    "one."
                )
            self._set_aside(file, "belongs to another evaluation")
        except DamageError as error:
            if str(error) != MISSING or self._rows():
                self._set_aside(file, str(error))
        write_atomic(file, seal(wanted, indent=1))
        return identity, False

    def _rows(self) -> list[Path]:
        return sorted((self.path / SCORES).glob("[0-9]*.json"))

    def _has_rows_of(self, identity: str) -> bool:
        """Whether there are scores of a manifest."""
        for file in self._rows():
            try:
                entries, sealed = read_sealed(file)
            except DamageError:
                continue
            if sealed and entries.get("folder") == identity:
                return True
        return False

    def _set_aside(self, path: Path, why: str) -> None:
        """Move a damaged file away, and note a sentence about it."""
        try:
            kept = f"kept as {str(set_aside(path, self.path))!r} and "
        except FileNotFoundError:  # it was removed, or another process was quicker
            kept = ""
            if path in self._named:
                return
        self._named.add(path)
        self._lines.append(f"{str(path)!r} {why}: {kept}made again.")
