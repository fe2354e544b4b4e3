"""Prompts: reading them from a file, and drawing groups of them for training.

The only state of a `GroupSampler` is the number of draws it has made. Everything else follows from
the seed, so that an interrupted run goes on exactly, also on another number of processes.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from astrolabe_rollout.prompt_files import read_rows


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


class Draw(NamedTuple):
    """The videos that are sampled together, one entry each.

    Attributes:
        prompts: What to show; the videos of a group follow one another.
        groups: int64 [n], equal for videos that compete for one prompt, unique in a run.
        seeds: int64 [n] in [0, 2³²), seed of a video's noise, never twice in a run.
        history_seeds: int64 [n] in [0, 2³²), seed of what a group shares before its window.
    """

    prompts: list[str]
    groups: Tensor
    seeds: Tensor
    history_seeds: Tensor


class GroupSampler:
    """Draws prompts without replacement and repeats each into a group of competing videos.

    The prompts are shuffled anew for every pass over them (epoch). A draw that reaches into the
    next epoch first takes prompts it does not hold yet, so a prompt comes twice in one draw only if
    there are fewer prompts than ``num_prompts``.

    With several processes every one makes the same draw and keeps its own share of the videos, in
    the order of the ranks; a group may then span processes.

    Args:
        prompts: The prompts to draw from.
        num_prompts: Groups of a draw, over all processes, at least 1.
        group_size: Videos of a group, at least 2.
        seed: Seed of the order of prompts and of the noise seeds.
        rank: This process, in [0, ``world_size``).
        world_size: Number of processes; it must divide ``num_prompts * group_size``.
        batch_size: Videos that this process draws at a time; by default its whole share. A smaller
            number takes the same videos in several draws, for machines that cannot hold all.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> sampler = GroupSampler(["a cat", "a dog"], num_prompts=1, group_size=2, seed=1)
        >>> [sampler.draw().prompts for _ in range(2)]
        [['a cat', 'a cat'], ['a dog', 'a dog']]
    """

    def __init__(
        self,
        prompts: Sequence[str],
        *,
        num_prompts: int,
        group_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        batch_size: int | None = None,
    ) -> None:
        if isinstance(prompts, str) or not prompts:
            raise ValueError(
                f"prompts is {prompts!r}. Give a list of at least one prompt, for example from "
                "read_prompts(path)."
            )
        if num_prompts < 1:
            raise ValueError(
                f"num_prompts is {num_prompts}: a draw needs a prompt. Set it to 1 or more."
            )
        if group_size < 2:
            raise ValueError(
                f"group_size is {group_size}: the advantage of a lone sample is always 0. "
                "Set rollout.group_size to 2 or more."
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
        if share % (batch_size or share):
            raise ValueError(
                f"batch_size is {batch_size}, which does not divide the {share} videos of a "
                "process. Choose a divisor."
            )
        self.prompts = list(prompts)
        self.num_prompts = num_prompts
        self.group_size = group_size
        self.seed = seed
        self.batch_size = batch_size or share
        #: Draws in which this process gets its share of a step.
        self.parts = share // self.batch_size
        self._share = slice(rank * share, (rank + 1) * share)
        self._steps, self._part = 0, 0  # finished steps, and parts of the next one
        self._whole: Draw | None = None  # this process's share of the step
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
        prompts, *numbers = self._whole
        return Draw(prompts[part], *(column[part] for column in numbers))

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
        self._steps, self._part, self._whole = int(state["draws"]), 0, None
        self._indices = self._endless_indices()
        # Replaying costs about a microsecond a prompt and leaves a counter as the only state.
        for _ in islice(self._indices, self._steps * self.num_prompts):
            pass

    def _identity(self) -> dict[str, int | str]:
        digest = hashlib.sha256("\n".join(self.prompts).encode()).hexdigest()
        return {
            "num_prompts": self.num_prompts,
            "group_size": self.group_size,
            "seed": self.seed,
            "prompts_sha256": digest,
        }

    def _endless_indices(self) -> Iterator[int]:
        """Prompt indices, epoch after epoch; within a draw they differ as long as they can."""
        waiting: list[int] = []
        generator = torch.Generator().manual_seed(self.seed)
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
        first = self._steps * self.num_prompts
        groups = range(first, first + self.num_prompts)
        videos = [
            (self.prompts[index], group, noise_seed(self.seed, group * self.group_size + member))
            for index, group in zip(islice(self._indices, self.num_prompts), groups, strict=True)
            for member in range(self.group_size)
        ]
        prompts, group_ids, seeds = zip(*videos[self._share], strict=True)
        # Of another run's seed, so that a history never has the noise of a candidate.
        histories = [noise_seed(self.seed + 1, group * self.group_size) for group in group_ids]
        return Draw(list(prompts), *map(torch.tensor, (group_ids, seeds, histories)))


def noise_seed(seed: int, video: int) -> int:
    """Seed of the noise of the ``video``-th video of a run, in [0, 2³²).

    Torch's CPU generator uses only the low 32 bits of a seed. Hence a one-to-one mix of 32 bits
    (the finaliser of MurmurHash3): equal seeds first come after 2³² videos, whereas random 32-bit
    numbers would collide, by the birthday paradox, within about 77 000.

    Args:
        seed: Seed of the run.
        video: Number of the video in the run, 0 or more.
    """
    return _mix(_mix(seed) + video)


def _mix(number: int) -> int:
    """Map [0, 2³²) one-to-one onto itself, neighbours far apart (fmix32 of MurmurHash3)."""
    number &= 0xFFFFFFFF
    number = (number ^ (number >> 16)) * 0x85EBCA6B & 0xFFFFFFFF
    number = (number ^ (number >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
    return number ^ (number >> 16)
