"""What `astrolabe generate` is asked to make, and what of it is there already."""

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from astrolabe.errors import ConfigError
from astrolabe.line_files import read_lines
from astrolabe_eval.errors import DamageError
from astrolabe_eval.files import append_line
from astrolabe_eval.input_files import check_file, read_bytes
from astrolabe_eval.sealed import CHANGED, file_digest, set_aside
from astrolabe_rollout.geometry import Geometry
from astrolabe_rollout.scenes import Scene

#: Settings as JSON holds them. Any: their values have many types.
Settings = dict[str, Any]

MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class Part:
    """A scene as it is made: its prompt, its length in chunks, whether a hard cut begins it."""

    prompt: str
    chunks: int
    cut: bool


@dataclass(frozen=True)
class Job:
    """One video to make."""

    name: str
    """File name without ending."""
    parts: tuple[Part, ...]
    seed: int

    @property
    def shown(self) -> list[tuple[str, bool]]:
        """Of each chunk its prompt, and whether a hard cut lies before it."""
        return [
            (part.prompt, part.cut and number > 0 and chunk == 0)
            for number, part in enumerate(self.parts)
            for chunk in range(part.chunks)
        ]

    @property
    def chunks(self) -> int:
        """Chunks of the whole video."""
        return sum(part.chunks for part in self.parts)


def make_jobs(scripts: Sequence[Sequence[Part]], seed: int, num_seeds: int) -> list[Job]:
    """Return a job for every script and seed.

    Args:
        scripts: The scenes of each video.
        seed: Of the first script's noise; scripts count up.
        num_seeds: Videos of each script; further ones count up from the seed of the last script.
    """
    jobs = []
    for round_ in range(num_seeds):
        for number, parts in enumerate(scripts):
            name = f"{number:03d}-{_slug(parts[0].prompt)}"
            own = seed + round_ * len(scripts) + number
            jobs.append(Job(name if num_seeds == 1 else f"{name}-s{own}", tuple(parts), own))
    return jobs


def scenes_to_parts(
    scenes: Iterable[Scene], geometry: Geometry, fps: float, default: int
) -> list[Part]:
    """Turn lengths in seconds into chunks."""
    return [Part(s.prompt, s.chunks(geometry, fps, default), s.cut) for s in scenes]


def switches_to_parts(script: Sequence[tuple[str, int]], total: int, chunk: int) -> list[Part]:
    """Turn prompts that begin at latent frames into scenes; inside a chunk they act at the next.

    Args:
        script: Prompts with the latent frame at which each begins.
        total: Chunks of the video.
        chunk: Latent frames of a chunk.

    Raises:
        ConfigError: If a prompt would begin after the end, or with another one.
    """
    begins = [-(-frame // chunk) for _, frame in script]
    ends = [*begins[1:], total]
    for (prompt, frame), begin, end in zip(script, begins, ends, strict=True):
        if begin >= end:
            raise ConfigError(
                f"--switch-frames: no chunk is left for {prompt!r} from latent frame {frame} on, "
                f"in a video of {total * chunk}. Make it longer with --seconds, or switch earlier."
            )
    return [
        Part(prompt, end - begin, cut=False)
        for (prompt, _), begin, end in zip(script, begins, ends, strict=True)
    ]


def batches(jobs: Sequence[Job], size: int) -> Iterator[list[Job]]:
    """Group neighbouring jobs of equal length; their scenes may differ."""
    for _, same in groupby(jobs, key=lambda job: job.chunks):
        group = list(same)
        for first in range(0, len(group), size):
            yield group[first : first + size]


def whole_batches(
    jobs: Sequence[Job], size: int, left: Collection[Job]
) -> list[tuple[list[Job], list[Job]]]:
    """Return the batches of all jobs that lack some, and which they lack.

    What is there already changes no batch, so that a call that was interrupted makes the same
    videos as one that was not.
    """
    work = [(batch, [job for job in batch if job in left]) for batch in batches(jobs, size)]
    return [(batch, lacking) for batch, lacking in work if lacking]


class Manifest:
    """What a folder of videos holds: one line of JSON a video, written when its file is complete.

    Every process writes a file of its own and reads those of all. Nothing is ever taken out.

    Args:
        folder: Where the videos are.
        common: Settings that all videos share.
        rank: Number of this process.
    """

    def __init__(self, folder: Path, common: Settings, rank: int = 0) -> None:
        self.folder, self.common = folder, common
        self.path = folder / (MANIFEST if rank == 0 else f"manifest-{rank}.jsonl")
        self.known: dict[str, Settings] = {}
        self.damaged: list[str] = []
        self.notes: list[str] = []
        self._digests: dict[str, list[tuple[Settings, str | None]]] = {}
        for path in sorted(folder.glob("manifest*.jsonl")):
            for line in read_lines(read_bytes(path)):
                entry = line.entry or {}
                if isinstance(entry.get("file"), str) and "settings" in entry:
                    self.known[entry["file"]] = entry["settings"]
                    made = self._digests.setdefault(entry["file"], [])
                    made.append((entry["settings"], entry.get("sha256")))
                else:
                    problem = line.problem or "it has no file or no settings"
                    self.damaged.append(f"line {line.number} of {path} is damaged ({problem})")

    def settings(self, job: Job) -> Settings:
        """Return all that decides what a video looks like."""
        wanted = {**self.common, "seed": job.seed, "scenes": [asdict(part) for part in job.parts]}
        decoded: Settings = json.loads(json.dumps(wanted))
        return decoded

    def missing(self, jobs: Sequence[Job], *, overwrite: bool) -> list[Job]:
        """Return the jobs whose videos are not there as they were written.

        One that was changed since is moved to ``damaged/``; ``notes`` gets a sentence about it.

        Raises:
            ConfigError: If a video is there that was made with other settings.
            OSError: If a video cannot be read.
        """
        if overwrite:
            return list(jobs)
        left, believed = [], 0
        for job in jobs:
            file, settings = f"{job.name}.mp4", self.settings(job)
            path = self.folder / file
            if not os.path.lexists(path):
                left.append(job)
                continue
            if self.known.get(file) != settings:
                why = "was made with other settings"
                if file not in self.known and self.damaged:
                    why = f"nothing is known of it: {self.damaged[0]}"
                raise ConfigError(
                    f"{str(path)!r} exists and {why}. "
                    "Choose another --out, or replace it with --overwrite."
                )
            digests = [digest for made, digest in self._digests[file] if made == settings]
            try:
                found = file_digest(path)
                believed += None in digests
                damage = None if found in digests or None in digests else CHANGED
            except DamageError as error:
                damage = str(error)
            if damage is not None:
                kept = set_aside(path, self.folder)
                self.notes.append(f"{str(path)!r} {damage}: kept as {str(kept)!r} and made again.")
                left.append(job)
        if believed:
            self.notes.append(
                f"{believed} videos in {str(self.folder)!r} were made by a version that noted no "
                "digests; they are believed as they are."
            )
        return left

    def add(self, job: Job, figures: Settings, sha256: str | None = None) -> None:
        """Note a finished video, and the digest of its file.

        Raises:
            OSError: If the line cannot be written.
        """
        entry = {"file": f"{job.name}.mp4", "settings": self.settings(job), "figures": figures}
        entry |= {"sha256": sha256} if sha256 else {}
        append_line(self.path, json.dumps(entry, ensure_ascii=False).encode())


def digest(path: Path) -> str:
    """Return a short digest of a file, to know it again."""
    check_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _slug(prompt: str) -> str:
    """A prompt as a part of a file name that every system accepts."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "video"


def share_of_work() -> tuple[int, int]:
    """Return the number of this process and how many there are; under torchrun take its GPU."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
