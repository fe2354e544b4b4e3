"""A folder of video files as an evaluation: which files, what each should show, their scores."""

import operator
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, overload

from astrolabe_eval.errors import SuiteError, VideoError
from astrolabe_eval.frames import Frames
from astrolabe_eval.suites import Suite, load_suite, name_seed
from astrolabe_eval.video_io import Video, read_mp4

if TYPE_CHECKING:
    from tensordict import TensorDict

#: What is looked for.
ENDINGS: Final = (".mp4", ".webm", ".mov", ".mkv", ".avi")
#: What videos of a folder should show: a suite, a text file of prompts, prompts in the order of the
#: names, or prompts by name.
Prompts = Suite | str | Path | Sequence[str] | Mapping[str, str]


class VideoFiles(Sequence[Frames]):
    """Videos that are read when they are looked at.

    Args:
        paths: mp4 files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Frames: ...
    @overload
    def __getitem__(self, index: slice) -> "VideoFiles": ...
    def __getitem__(self, index: int | slice) -> "Frames | VideoFiles":
        if isinstance(index, slice):
            return VideoFiles(self.paths[index])
        return read_mp4(self.paths[operator.index(index)]).frames


class FolderVideos(NamedTuple):
    """The videos of a folder: files, their samples, and whether prompts say what they show."""

    paths: list[Path]
    suite: Suite
    described: bool


def find_videos(folder: str | Path, prompts: Prompts | None) -> FolderVideos:
    """List the videos of a folder by name, numbers in it by their size, and what each should show.

    Hidden files are left out: they are still being written.

    Args:
        folder: It holds the files themselves; folders inside are not looked into.
        prompts: See `Evaluation.from_folder`.

    Raises:
        SuiteError: If there are no videos, or prompts and videos do not fit each other.
    """
    folder = Path(folder)
    found = folder.iterdir() if folder.is_dir() else iter(())
    paths = [
        path
        for path in sorted(found, key=_natural)
        if path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()
    ]
    if not paths:
        raise SuiteError(
            f"{str(folder)!r} {'holds no video' if folder.is_dir() else 'is no folder'}. Looked "
            f"for: {', '.join(ENDINGS)}."
        )
    if isinstance(prompts, Mapping):
        texts = [_prompt_of(path, prompts, folder) for path in paths]
    elif prompts is None:
        # VBench calls the samples of a prompt "{prompt}-{number}".
        texts = [re.sub(r"-\d+$", "", path.stem) or path.stem for path in paths]
    else:
        given = load_suite(prompts) if isinstance(prompts, (str, Path)) else prompts
        texts = list(given.prompts if isinstance(given, Suite) else given)
        if len(texts) != len(paths):
            raise SuiteError(
                f"{len(texts)} prompts for the {len(paths)} videos of {str(folder)!r}. Give one "
                "for each, in the order of their names, or a dictionary of names and prompts."
            )
        if isinstance(given, Suite):
            return FolderVideos(paths, given, True)
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise SuiteError(f"a prompt is {wrong[0]!r}, no text. Say what the video should show.")
    seen: Counter[str] = Counter()
    seeds = []
    for text in texts:
        seeds.append(name_seed(text, seen[text]))
        seen[text] += 1
    words = any(letter.isalpha() for text in texts for letter in text)
    suite = Suite(
        os.path.basename(os.path.realpath(folder)) or "videos", tuple(texts), tuple(seeds)
    )
    return FolderVideos(paths, suite, prompts is not None or words)


def read_batches(
    videos: FolderVideos, batch_size: int
) -> Iterator[tuple[list[int], "TensorDict", Mapping[int, str]]]:
    """Read videos in their order, neighbours of one size together.

    Args:
        videos: From `find_videos`.
        batch_size: Videos of a batch, at most.

    Yields:
        The numbers of the videos, a batch ``[n]`` of them as scorers read it, and the numbers of
        those before it that cannot be read, to why.
    """
    held: list[tuple[int, Video]] = []
    broken: dict[int, str] = {}
    for index, path in enumerate(videos.paths):
        try:
            video = read_mp4(path)
        except VideoError as error:
            broken[index] = str(error)
            continue
        if held and (len(held) == batch_size or held[0][1].frames.shape != video.frames.shape):
            yield [number for number, _ in held], _batch(videos, held), broken
            held, broken = [], {}
        held.append((index, video))
    if held or broken:
        yield [number for number, _ in held], _batch(videos, held), broken


def _batch(videos: FolderVideos, held: Sequence[tuple[int, Video]]) -> "TensorDict":
    import numpy as np
    import torch
    from tensordict import TensorDict

    from astrolabe_eval.keys import FPS, INDEX, PIXELS, SEED, TEXT

    batch = TensorDict(batch_size=[len(held)])
    if held:
        numbers = [number for number, _ in held]
        batch[PIXELS] = torch.from_numpy(np.stack([video.frames for _, video in held]))
        batch[FPS] = torch.tensor([video.fps for _, video in held], dtype=torch.float32)
        batch[SEED] = torch.tensor([videos.suite.seeds[number] for number in numbers])
        batch[INDEX] = torch.zeros(len(held), dtype=torch.int64)
        if videos.described:
            batch[TEXT] = [videos.suite.prompts[number] for number in numbers]
    return batch


def _prompt_of(path: Path, prompts: Mapping[str, str], folder: Path) -> str:
    for name in (path.name, path.stem):
        if name in prompts:
            return prompts[name]
    raise SuiteError(
        f"prompts say nothing of {path.name!r} in {str(folder)!r}. Give its prompt, or move the "
        "file away."
    )


def _natural(path: Path) -> tuple[list[tuple[int, int | str]], str]:
    """So that 10 comes after 9."""
    parts = re.split(r"(\d+)", path.stem)
    ordered = [(0, int(part)) if part.isdecimal() else (1, part) for part in parts if part]
    return ordered, path.name
