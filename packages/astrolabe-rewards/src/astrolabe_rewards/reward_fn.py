"""Rewards as other programs call them: on files, and as the reward functions of other trainers."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from tensordict import NestedKey, NonTensorData, NonTensorStack, TensorDict, TensorDictBase
from torch import Tensor

from astrolabe_rewards.errors import VideoError
from astrolabe_rewards.keys import FPS, GROUP, METADATA, PIXELS, TEXT
from astrolabe_rewards.video_input import as_pixels, split
from astrolabe_rewards.wiring import Rewired

#: Scores by name, one for each video in their order; NaN where there is none.
Scores = dict[str, list[float]]
#: How flow_grpo calls the weighted sum, and this project's evaluations do.
AVERAGE, TOTAL = "avg", "total"


class Portable(Rewired):
    """What `Reward` and `CompositeReward` offer to loops that know no TensorDict."""

    def as_reward_fn(
        self, *, fps: float | None = None, detailed: bool | None = None, batch_size: int = 8
    ) -> Callable[..., Any]:
        """Return this reward as flow_grpo and TRL call theirs.

        The function is called in one of two ways, and answers each in kind.

        ``fn(images, prompts, metadata, only_strict=True)`` (``flow_grpo.rewards``; ``DDPOTrainer``
        of TRL): returns ``(scores, info)``. Scores are a list of floats, or, if ``detailed``, a
        dict of such lists: every term's under its name and the sum's under ``"avg"``, which
        flow_grpo trains on. A video that could not be scored is NaN. ``info`` has all scores by
        name in ``"scores"`` and how many videos have no score in ``"unscored"``.
        ``only_strict`` changes nothing here; ``ref_images`` are refused, as no reward of this
        package looks at them.

        ``fn(prompts=..., completions=..., **columns)`` (``GRPOTrainer`` of TRL): the completions
        are the videos; returns a list of floats, None where a video could not be scored. Columns
        with one entry for each video are its metadata.

        Videos are a list of paths, arrays, tensors, pictures of Pillow or lists of frames, or one
        array or tensor ``[N, F, 3, H, W]`` or, of pictures, ``[N, 3, H, W]``; uint8, or floating in
        [0, 1]; arrays also with the channels last. They may differ in size and length. Prompts are
        texts or chats. Metadata, one dictionary for each video, reach rewards that read
        ``("prompt","metadata")``. With ``normalise="group"``, videos of equal prompts compete.

        Args:
            fps: Frames per second of videos that do not say it: files do, and ``"fps"`` of a
                video's metadata does.
            detailed: Whether scores are given by name; None: those of a `CompositeReward` are.
            batch_size: Videos of one size that are scored together.

        Raises:
            ValueError: If an option is out of its range. The function raises it, or TypeError, for
                videos and prompts that are none, do not fit each other or have no frame rate, and
                if what is read is not given.
        """
        if fps is not None:
            _checked_rate("fps", fps)
        by_name = self._total_key() is not None if detailed is None else detailed
        total = AVERAGE if self._total_key() is not None else next(iter(self._score_keys()))

        def reward_fn(
            images: Any = None,  # Any: see `as_pixels`
            prompts: Any = None,
            metadata: Any = None,
            ref_images: Any = None,
            only_strict: bool = True,
            *,
            completions: Any = None,
            **columns: Any,
        ) -> Any:
            if completions is not None:
                videos = [_shown_in(each) for each in split(completions)]
                notes = _rows(self._wired[0], len(videos), metadata, columns)
                found = self._score_all(videos, prompts, notes, fps, batch_size, AVERAGE)
                return [None if math.isnan(score) else score for score in found[total]]
            if columns:
                raise TypeError(
                    f"{self._wired[0]}: {', '.join(columns)} mean nothing here. Call it as "
                    "fn(images, prompts, metadata) or fn(prompts=..., completions=...)."
                )
            if ref_images is not None:
                raise ValueError(f"{self._wired[0]}: ref_images are given, and nothing reads them.")
            videos = split(images)
            found = self._score_all(videos, prompts, metadata, fps, batch_size, AVERAGE)
            info = {"scores": found, "unscored": sum(map(math.isnan, found[total]))}
            return (found if by_name else found[total]), info

        reward_fn.__name__ = reward_fn.__qualname__ = "+".join(self._score_keys())
        return reward_fn

    def score_files(
        self,
        paths: Iterable[str | os.PathLike[str]],
        prompts: Sequence[str] | None = None,
        *,
        batch_size: int = 8,
    ) -> Scores:
        """Score video files; needs PyAV (extra ``video``).

        Args:
            paths: Of the files.
            prompts: What each should show; None where nothing reads prompts.
            batch_size: Videos that are scored together, if they are of one size.

        Returns:
            Name to one score for each file, in their order; NaN where there is none. The sum of a
            `CompositeReward` is called ``"total"``.

        Raises:
            ModuleNotFoundError: If PyAV is not installed.
            TypeError: If paths or prompts are no lists of texts.
            ValueError: If there are not as many prompts as files, none where they are read, or
                something is read that files do not have.
            VideoError: If a file cannot be read.
        """
        files = split(paths)
        for index, file in enumerate(files):
            if not isinstance(file, (str, os.PathLike)):
                raise TypeError(f"paths[{index}] is a {type(file).__name__}. Give paths of files.")
        return self._score_all(files, prompts, None, None, batch_size, TOTAL)

    def _score_keys(self) -> dict[str, NestedKey]:
        """Name of each score to where it is written."""
        raise NotImplementedError

    def _total_key(self) -> NestedKey | None:
        """Where the sum of the scores is written, if there is one."""
        return None

    def _needed(self) -> list[NestedKey]:
        """Entries that a batch must have to be scored."""
        raise NotImplementedError

    def _check_given(self, whole: TensorDictBase, call: str) -> None:
        """Refuse videos without what is read beside them, in the words of who hands them over."""

        def missing(batch: TensorDictBase) -> list[NestedKey]:
            shown = self.shown(batch)
            return [key for key in self._needed() if shown.get(key, None) is None]

        probe = whole[:1].clone()
        probe[PIXELS], probe[FPS] = torch.zeros(1, 1, 3, 1, 1, dtype=torch.uint8), torch.ones(1)
        lacking = missing(probe)
        if not lacking:
            return
        described = _described(self._wired[0], 1, [""], [{}])
        if len(missing(probe.clone().update(described.select(TEXT, GROUP)))) < len(lacking):
            raise ValueError(
                f"{self._wired[0]}: prompts are read, and {call} got none. Give it prompts, one "
                "text for each video."
            )
        if call != "score_files" and not missing(probe.clone().update(described)):
            raise ValueError(
                f"{self._wired[0]}: metadata are read, and {call} got none. Give it metadata, one "
                "dictionary for each video."
            )
        raise ValueError(
            f"{self._wired[0]}: {lacking} are read, which {call} cannot give. Make a batch that "
            "has them, a TensorDict, and call the reward on it."
        )

    def _score_part(self, part: TensorDictBase) -> TensorDictBase:
        """Write the scores of some videos."""
        scored: TensorDictBase = self(part)
        return scored

    def _sum_up(self, whole: TensorDictBase) -> TensorDictBase:
        """Write what follows from the scores of all videos."""
        return whole

    def _score_all(
        self,
        videos: list[Any],  # Any: see `as_pixels`
        prompts: Any,
        metadata: Any,
        fps: float | None,
        batch_size: int,
        total: str,
    ) -> Scores:
        """All scores of videos of any sizes, by name."""
        who = self._wired[0]
        given = _listed("metadata", metadata) if metadata is not None and len(metadata) else []
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size!r}. Give a whole number of at least 1.")
        whole = _described(who, len(videos), prompts, given)
        if videos:  # before minutes are spent on reading them
            self._check_given(whole, "score_files" if total == TOTAL else "the reward function")
        keys = self._score_keys()
        rows: list[dict[NestedKey, Tensor]] = [{} for _ in videos]
        waiting: dict[tuple[object, ...], list[tuple[int, Tensor, float]]] = {}

        def score(part: list[tuple[int, Tensor, float]]) -> None:
            chosen = [index for index, _, _ in part]
            batch = whole[torch.tensor(chosen)]
            batch[PIXELS] = torch.stack([pixels for _, pixels, _ in part])
            batch[FPS] = torch.tensor([rate for _, _, rate in part], device=batch[PIXELS].device)
            found = self._score_part(self.shown(batch))
            written = [key for key in self.out_keys if found.get(key, None) is not None]
            for place, index in enumerate(chosen):
                rows[index] = {key: found[key][place].cpu() for key in written}

        for index, video in enumerate(videos):
            pixels, rate = _read(who, index, video)
            said = given[index].get("fps", fps) if given else fps
            rate = rate or _rate(who, index, said, len(pixels))
            same = waiting.setdefault((*pixels.shape, pixels.device), [])
            same.append((index, pixels, rate))
            if len(same) == batch_size:
                score(same)
                same.clear()
        for same in waiting.values():
            if same:
                score(same)
        for key in rows[0] if rows else ():
            whole[key] = torch.stack([row[key] for row in rows])
        whole = self._sum_up(self.shown(whole)) if rows else whole
        if (sum_key := self._total_key()) is not None:
            keys = {**keys, total: sum_key}
        return {name: whole[key].flatten().tolist() if rows else [] for name, key in keys.items()}


def _described(who: str, count: int, prompts: Any, rows: list[Any]) -> TensorDictBase:
    """A batch of so many videos with their prompts and metadata, and no pixels yet."""
    batch = TensorDict(batch_size=[count])
    if prompts is not None:
        texts = [
            _text(who, index, prompt) for index, prompt in enumerate(_listed("prompts", prompts))
        ]
        if len(texts) != count:
            raise ValueError(
                f"{who}: {len(texts)} prompts for {count} videos. Give one prompt for each; a "
                "single video of many frames is a list in the list: [frames]."
            )
        batch[TEXT] = texts
        numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        batch[GROUP] = torch.tensor([numbers[text] for text in texts])
    if _checked_rows(who, count, rows):
        batch[METADATA] = NonTensorStack(*(NonTensorData(dict(row)) for row in rows))
    return batch


def _rows(who: str, count: int, metadata: Any, columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Metadata of each video of a trainer that hands over the columns of its table."""
    if columns.get("fps") is not None:
        columns = {**columns, "fps": _listed("fps", columns["fps"])}
        if len(columns["fps"]) != count:
            raise ValueError(f"{who}: fps has {len(columns['fps'])} entries for {count} videos.")
    kept = {
        name: column
        for name, column in columns.items()
        if isinstance(column, (list, tuple)) and len(column) == count
    }
    told = (
        _checked_rows(who, count, _listed("metadata", () if metadata is None else metadata))
        or [{}] * count
    )
    return [{**{name: kept[name][row] for name in kept}, **told[row]} for row in range(count)]


def _checked_rows(who: str, count: int, rows: list[Any]) -> list[Any]:
    if rows and (len(rows) != count or not all(isinstance(row, Mapping) for row in rows)):
        raise ValueError(
            f"{who}: metadata are {len(rows)} entries for {count} videos. Give one dictionary "
            "for each, or none."
        )
    return rows


def _listed(what: str, values: Any) -> list[Any]:
    """A list, tuple or array as a list; not a text or a mapping, which would fall apart."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise TypeError(
            f"{what}: {values!r:.80} is a {type(values).__name__}. Give a list, one for each video."
        )
    return list(values)


def _read(who: str, index: int, video: Any) -> tuple[Tensor, float | None]:
    try:
        return as_pixels(video)
    except (TypeError, ValueError) as error:
        kinds = (VideoError, TypeError, ValueError)
        kind = next(each for each in kinds if isinstance(error, each))
        raise kind(f"{who}: video {index}: {error}") from error


def _rate(who: str, index: int, fps: Any, frames: int) -> float:
    """The rate of a video that is no file; a single frame needs none."""
    if fps is None:
        if frames == 1:
            return 1.0
        raise ValueError(
            f"{who}: video {index} has {frames} frames and no rate. Give as_reward_fn(fps=16), or "
            "'fps' in its metadata."
        )
    return _checked_rate(f"{who}: fps of video {index}", fps)


def _checked_rate(what: str, fps: Any) -> float:
    if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps < math.inf:
        raise ValueError(f"{what} is {fps!r}. Give frames per second, above 0.")
    return float(fps)


def _text(who: str, index: int, prompt: Any) -> str:
    """The text of a prompt, which may be a chat: what the user said last."""
    if isinstance(prompt, str):
        return str(prompt)  # numpy's texts are no plain ones
    if isinstance(prompt, Sequence) and all(isinstance(turn, Mapping) for turn in prompt):
        said = [turn.get("content") for turn in prompt if turn.get("role") == "user"]
        last = said[-1] if said else None
        if isinstance(last, Sequence) and not isinstance(last, str):
            last = " ".join(part["text"] for part in last if part.get("type") == "text")
        if isinstance(last, str):
            return last
    raise TypeError(f"{who}: prompt {index} is {prompt!r:.80}. Give a text, or a chat with one.")


def _shown_in(completion: Any) -> Any:
    """The video of a completion, which may be the answer of a chat."""
    if not (isinstance(completion, Sequence) and completion and isinstance(completion[0], Mapping)):
        return completion
    content = completion[-1].get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        found = [part[part["type"]] for part in content if part.get("type") in ("video", "image")]
        content = found[0] if len(found) == 1 else None
    if content is None:
        raise TypeError(f"a completion has no video or several: {completion!r:.80}. Give one.")
    return content
