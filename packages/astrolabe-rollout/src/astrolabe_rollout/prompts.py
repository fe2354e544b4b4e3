"""Prompts: reading them from a file, and drawing groups of them for training.

The only state of a `GroupSampler` is the number of draws it has made. Everything else follows from
the seed, so that an interrupted run goes on exactly, also on another number of processes.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from astrolabe_rollout.prompt_files import PROMPT, read_rows
from astrolabe_rollout.seeds import noise_seed, whole_number, whole_seed

#: Numbers of groups that each worker of a collector has for itself.
GROUPS_OF_A_WORKER = 2**40
#: What to show; or a row of a table, which has that under ``prompt`` and its metadata beside it.
Prompt = str | Mapping[str, Any]


def read_prompts(path: str | Path) -> list[str]:
    """Read a file of prompts; see `astrolabe_rollout.prompt_files` for its forms.

    Args:
        path: Text in UTF-8 with one prompt a line, or a ``.csv``, ``.tsv``, ``.jsonl`` or ``.json``
            with a ``prompt`` in each row or object.

    Returns:
        The prompts in the order of the file, without surrounding white space. Never empty.

    Raises:
        PromptFileError: If the file is missing, unreadable, without a prompt, not UTF-8, or one of
            its prompts is missing, empty or no text; with file, line and column.
    """
    return [row.text() for row in read_rows(path)]


def read_prompt_table(path: str | Path) -> list[dict[str, Any]]:
    """Read a file of prompts with their other columns, the metadata that rewards may need.

    Args:
        path: As of `read_prompts`.

    Returns:
        For each prompt its row by column, in lower case: ``prompt`` as `read_prompts` gives it, all
        else as it stands in the file (texts of a table, any value of JSON).

    Raises:
        PromptFileError: As of `read_prompts`.
    """
    return [{**row.values, PROMPT: row.text()} for row in read_rows(path)]


class Draw(NamedTuple):
    """The videos that are sampled together, one entry each.

    Attributes:
        prompts: What to show; the videos of a group follow one another.
        groups: int64 [n], equal for videos that compete for one prompt, unique in a run.
        seeds: int64 [n] in [0, 2³²), seed of a video's noise, never twice in a run.
        history_seeds: int64 [n] in [0, 2³²), seed of what a group shares before its window.
        metadata: The row of each prompt, if prompts are rows.
    """

    prompts: list[str]
    groups: Tensor
    seeds: Tensor
    history_seeds: Tensor
    metadata: list[dict[str, Any]] | None = None


class GroupSampler:
    """Draws prompts without replacement and repeats each into a group of competing videos.

    The prompts are shuffled anew for every pass over them (epoch). A draw that reaches into the
    next epoch first takes prompts it does not hold yet, so a prompt comes twice in one draw only if
    there are fewer prompts than ``num_prompts``.

    With several processes every one makes the same draw and keeps its own share of the videos, in
    the order of the ranks; a group may then span processes.

    Args:
        prompts: The prompts to draw from: texts, or rows such as ``{"prompt": "two cats", "count":
            2}``, whose metadata go along with each video.
        num_prompts: Groups of a draw, over all processes, at least 1.
        group_size: Videos of a group, at least 2.
        seed: Seed of the order of prompts and of the noise seeds.
        rank: This process, in [0, ``world_size``).
        world_size: Number of processes; it must divide ``num_prompts * group_size``.
        batch_size: Videos that this process draws at a time; by default its whole share. A smaller
            number takes the same videos in several draws, for machines that cannot hold all.

    Raises:
        TypeError: If a prompt is neither text nor row, or a number is no whole one.
        ValueError: If an argument is outside its range.

    Example:
        >>> sampler = GroupSampler(["a cat", "a dog"], num_prompts=1, group_size=2, seed=1)
        >>> [sampler.draw().prompts for _ in range(2)]
        [['a cat', 'a cat'], ['a dog', 'a dog']]
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        num_prompts: int,
        group_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        batch_size: int | None = None,
    ) -> None:
        if isinstance(prompts, str | Mapping) or not prompts:
            raise ValueError(
                f"prompts is {prompts!r}. Give a list of at least one prompt, for example from "
                "read_prompts(path)."
            )
        for name, number in (
            ("num_prompts", num_prompts),
            ("group_size", group_size),
            ("rank", rank),
            ("world_size", world_size),
            ("batch_size", 1 if batch_size is None else batch_size),
        ):
            whole_number(name, number)
        if num_prompts < 1:
            raise ValueError(
                f"num_prompts is {num_prompts}: a draw needs a prompt. Set it to 1 or more."
            )
        if group_size < 2:
            raise ValueError(
                f"group_size is {group_size}: the advantage of a lone sample is always 0. "
                "Set it to 2 or more."
            )
        if not 0 <= rank < world_size:
            raise ValueError(
                f"rank is {rank} with world_size {world_size}. Ranks run from 0 to world_size - 1."
            )
        if num_prompts * group_size % world_size:
            raise ValueError(
                f"{num_prompts} prompts times group_size {group_size} cannot be shared evenly by "
                f"{world_size} processes. Make num_prompts a multiple of {world_size}."
            )
        share = num_prompts * group_size // world_size
        if share % (batch_size or share) or (batch_size or share) < 1:
            raise ValueError(
                f"batch_size is {batch_size}, which does not divide the {share} videos of a "
                "process. Choose a divisor."
            )
        self.prompts = [_text(place, prompt) for place, prompt in enumerate(prompts)]
        #: Rows of the prompts, if any of them is one.
        self.metadata = _rows(prompts)
        self.num_prompts = num_prompts
        self.group_size = group_size
        self.seed = whole_seed(seed)
        self.rank, self.world_size = rank, world_size
        self.worker = 0
        self.batch_size = batch_size or share
        #: Draws in which this process gets its share of a step.
        self.parts = share // self.batch_size
        self._share = slice(rank * share, (rank + 1) * share)
        self._steps, self._part = 0, 0  # finished steps, and parts of the next one
        self._whole: Draw | None = None  # this process's share of the step
        self._indices = self._endless_indices()

    def set_seed(self, seed: int) -> None:
        """Begin anew with another seed, as a sampler that was made with it does.

        Raises:
            TypeError: If it is no whole number.
            ValueError: If it has more than 64 bits.
        """
        self.seed = whole_seed(seed)
        self._begin()

    def for_worker(self, worker: int) -> None:
        """Draw other videos than the workers before this one, which may be made in the same way.

        A sampler that is given no share of the processes' draws gets a seed and group numbers of
        the worker's own, the same in every run. Worker 0 draws what a sampler alone does.

        Args:
            worker: Number of the worker, as `torchrl.collectors.MultiSyncCollector` counts them.

        Raises:
            ValueError: If it is given the share of a worker before it.
        """
        if self.world_size > 1 and self.rank < worker:
            raise ValueError(
                f"worker {worker} of a collector draws the share of rank {self.rank}, as another "
                "worker does: both would make the same videos. Give each a rank of its own, "
                "[partial(make_env, rank) for rank in range(n)], or none of them any."
            )
        self.worker = 0 if self.world_size > 1 else worker
        self._begin()

    def _begin(self) -> None:
        self._steps, self._part, self._whole = 0, 0, None
        self._indices = self._endless_indices()

    def draw(self) -> Draw:
        """Return the next ``batch_size`` videos of this process and go on."""
        current = self.peek()
        self.advance()
        return current

    def peek(self) -> Draw:
        """Return what `draw` would, without going on: the same at every call."""
        if self._whole is None:
            self._whole = self._make_draw()
        part = slice(self._part * self.batch_size, (self._part + 1) * self.batch_size)
        prompts, groups, seeds, histories, metadata = self._whole
        return Draw(
            prompts[part],
            groups[part],
            seeds[part],
            histories[part],
            None if metadata is None else metadata[part],
        )

    def advance(self) -> None:
        """Go on to the next draw."""
        self.peek()
        self._part += 1
        if self._part == self.parts:
            self._whole, self._part = None, 0
            self._steps += 1

    @property
    def step(self) -> int:
        """Number of the step that the next draw belongs to, from 0."""
        return self._steps

    def state_dict(self) -> dict[str, int | str]:
        """Return the number of finished steps, with what must be equal for it to mean the same.

        Raises:
            ValueError: If a step has begun: its other parts would be lost.
        """
        if self._part:
            raise ValueError(
                f"{self._part} of {self.parts} parts of a step are drawn. "
                "Save the sampler between two steps."
            )
        return {"draws": self._steps, **self._identity()}

    def load_state_dict(self, state: Mapping[str, int | str]) -> None:
        """Go to the place where ``state`` was taken.

        Args:
            state: From `state_dict` of a sampler with the same prompts, counts and seed; the number
                of processes and the size of a draw may differ.

        Raises:
            ValueError: If the sampler that made ``state`` had other settings.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise ValueError(
                    f"the sampler's saved state has {name} {state.get(name)!r}, this sampler has "
                    f"{value!r}. Resume with the settings and the prompt file of the saved run."
                )
        self._begin()
        self._steps = int(state["draws"])
        # Replaying costs about a microsecond a prompt and leaves a counter as the only state.
        for _ in islice(self._indices, self._steps * self.num_prompts):
            pass

    def _identity(self) -> dict[str, int | str]:
        text = "\n".join(self.prompts)
        if self.metadata is not None:
            text += "\n" + json.dumps(self.metadata, sort_keys=True, default=str)
        return {
            "num_prompts": self.num_prompts,
            "group_size": self.group_size,
            "seed": self._own_seed,
            "prompts_sha256": hashlib.sha256(text.encode()).hexdigest(),
        }

    @property
    def _own_seed(self) -> int:
        """The seed, or what a worker that shares it makes of it."""
        return noise_seed(self.seed + 2, self.worker) if self.worker else self.seed

    def _endless_indices(self) -> Iterator[int]:
        """Prompt indices, epoch after epoch; within a draw they differ as long as they can."""
        waiting: list[int] = []
        generator = torch.Generator().manual_seed(self._own_seed)
        while True:
            taken: set[int] = set()
            for _ in range(self.num_prompts):
                if not waiting:
                    waiting = torch.randperm(len(self.prompts), generator=generator).tolist()
                # From the end, where taking an entry out costs nothing.
                free = (i for i in reversed(range(len(waiting))) if waiting[i] not in taken)
                index = waiting.pop(next(free))
                taken.add(index)
                if len(taken) == len(self.prompts):
                    taken.clear()
                yield index

    def _make_draw(self) -> Draw:
        seed, first = self._own_seed, self._steps * self.num_prompts
        groups = range(first, first + self.num_prompts)
        videos = [
            (index, group, noise_seed(seed, group * self.group_size + member))
            for index, group in zip(islice(self._indices, self.num_prompts), groups, strict=True)
            for member in range(self.group_size)
        ]
        indices, numbers, seeds = zip(*videos[self._share], strict=True)
        # Of another run's seed, so that a history never has the noise of a candidate.
        histories = [noise_seed(seed + 1, number * self.group_size) for number in numbers]
        return Draw(
            [self.prompts[index] for index in indices],
            torch.tensor(numbers) + self.worker * GROUPS_OF_A_WORKER,
            torch.tensor(seeds),
            torch.tensor(histories),
            # Copies: what a reward writes into one must not show in another video's.
            None if self.metadata is None else [deepcopy(self.metadata[i]) for i in indices],
        )


def _text(place: int, prompt: Prompt) -> str:
    text = prompt.get(PROMPT) if isinstance(prompt, Mapping) else prompt
    if not isinstance(text, str):
        raise TypeError(
            f"prompts[{place}] is {prompt!r}: neither a text nor a row with a text under "
            f'{PROMPT!r}. Give "a cat" or {{"prompt": "a cat", "breed": "manx"}}.'
        )
    if not text.strip():
        raise ValueError(f"prompts[{place}] is {text!r}. Remove it, or say what is to be shown.")
    return text


def _rows(prompts: Sequence[Prompt]) -> list[dict[str, Any]] | None:
    if not any(isinstance(prompt, Mapping) for prompt in prompts):
        return None
    return [dict(one) if isinstance(one, Mapping) else {PROMPT: one} for one in prompts]
