"""Video generation as a TorchRL environment: a reset gives prompts, a step is one window.

There is no reward here and so no reward key: what a video is worth is for reward models to say once
the batch is collected; they write ``("next", "reward")``. An invented 0 could be trained on.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from tensordict import NestedKey, NonTensorData, NonTensorStack, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Composite, NonTensor, Unbounded
from torchrl.envs import EnvBase

from astrolabe_rollout.checks import kind, require
from astrolabe_rollout.keys import (
    CONTEXT,
    EMBEDS,
    FPS,
    GROUP,
    HISTORY_SEED,
    INDEX,
    LATENTS,
    METADATA,
    OVERVIEW,
    PIXELS,
    SCRIPT,
    SEED,
    STEPS,
    TEXT,
)
from astrolabe_rollout.prompts import GroupSampler, Prompt
from astrolabe_rollout.seeds import whole_number
from astrolabe_rollout.windows import WindowSchedule, prompts_of_window


@runtime_checkable
class PromptModel(Protocol):
    """What the environment needs of a video model."""

    @property
    def fps(self) -> float:
        """Pixel frames per second."""

    def text(self, prompts: list[str]) -> Tensor:
        """Embed n prompts as ``[n, L, D]``."""


class PromptEnv(EnvBase):
    """Draws groups of prompts at reset and counts the windows of their videos.

    ``reset`` writes ``("prompt", "text" | "script" | "group" | "seed" | "history_seed" |
    "embeds")``, ``("video", "fps")`` and ``("window", "index")``, 0 unless a schedule says other.
    The policy is the one that makes video: it reads those and writes ``("video", "latents")``,
    ``("video", "pixels")`` and ``("window", "context")``. ``step`` raises the index; after
    ``windows`` steps all videos are done, together.

    A draw counts as used when its videos are done. Until then ``reset`` gives the same prompts, so
    the resets that a collector makes in advance neither waste prompts nor disturb a resumed run:
    ``env.sampler.state_dict()``, taken between two batches, names the next batch. Load it before
    a collector is made, which resets the environment.

    Prompts that are rows of a table go along whole as ``("prompt","metadata")``, a dictionary for
    each video.

    Workers of a TorchRL collector whose environments are made alike draw different videos: worker
    k draws as if it had a seed and group numbers of its own, the same in every run. Samplers of
    shares (``rank``, ``world_size``) divide one draw among the workers instead.

    Args:
        prompts: Prompts to draw from, texts or rows with a ``prompt``; or a sampler of them.
        model: Gives ``text`` and ``fps``.
        group_size: Videos of a prompt, at least 2. Belongs to the sampler if one is given.
        num_prompts: Prompts of a batch; all of them by default. Belongs to the sampler likewise.
        windows: Steps of a video, at least 1; 1 by default. Belongs to the schedule if one is
            given.
        schedule: Which windows of a long video are made; by default the first ``windows``.
        scene_windows: Windows of each prompt, where prompts are scripts parted by ``|``; 0: they
            are not.
        seed: Seed of the draws. Belongs to the sampler likewise.

    Raises:
        TypeError: If the model gives no text or rate, or a number is no whole one.
        ValueError: If ``windows`` is below 1, ``group_size`` is missing, or an argument of the
            sampler or of the schedule is given beside it.
    """

    def __init__(
        self,
        prompts: GroupSampler | Sequence[Prompt],
        model: PromptModel,
        *,
        group_size: int | None = None,
        num_prompts: int | None = None,
        windows: int | None = None,
        schedule: WindowSchedule | None = None,
        scene_windows: int = 0,
        seed: int | None = None,
    ) -> None:
        require(model, PromptModel, "model")
        whole_number("scene_windows", scene_windows)
        if scene_windows < 0:
            raise ValueError(
                f"scene_windows is {scene_windows}. Set it to the windows of each prompt of a "
                "script, or to 0 where prompts are no scripts."
            )
        self.sampler = _sampler(prompts, group_size, num_prompts, seed)
        self.schedule = _schedule(windows, schedule)
        self.windows = self.schedule.windows
        self.scene_windows = scene_windows
        for script in self.sampler.prompts:
            prompts_of_window([script], 0, scene_windows)  # refuses a script that does not parse
        size = self.sampler.batch_size
        super().__init__(batch_size=[size])
        self._model = model
        self._shapes: dict[NestedKey, torch.Size] = {}  # of what the policy wrote for this video
        rows: dict[tuple[str, str], object] = {}
        if self.sampler.metadata is not None:
            rows[METADATA] = NonTensor(shape=(size,), example_data={"prompt": "a prompt"})
        self.observation_spec = _nested(
            size,
            {
                **rows,
                TEXT: NonTensor(shape=(size,), example_data="a prompt"),
                SCRIPT: NonTensor(shape=(size,), example_data="a prompt | another"),
                GROUP: Unbounded((size,), dtype=torch.int64),
                SEED: Unbounded((size,), dtype=torch.int64),
                HISTORY_SEED: Unbounded((size,), dtype=torch.int64),
                EMBEDS: Unbounded((size, -1, -1)),
                FPS: Unbounded((size,)),
                INDEX: Unbounded((size,), dtype=torch.int64),
            },
        )
        self.action_spec = _nested(
            size,
            {
                LATENTS: Unbounded((size, -1, -1, -1, -1)),
                PIXELS: Unbounded((size, -1, 3, -1, -1), dtype=torch.uint8),
            },
        )
        self.done_spec = Binary(shape=(size, 1), dtype=torch.bool)
        self.reward_spec = Composite(shape=(size,))

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: object) -> TensorDictBase:
        if tensordict is not None and not tensordict.get("_reset", torch.ones(1).bool()).all():
            raise ValueError(
                "a part of the videos cannot start anew: a batch of groups is drawn together. "
                "Reset the whole environment."
            )
        self._shapes = {}
        draw = self.sampler.peek()
        start = self.schedule.start_at(self.sampler.step)
        result = TensorDict(batch_size=self.batch_size)
        result[SCRIPT] = NonTensorStack(*draw.prompts)
        if draw.metadata is not None:
            result[METADATA] = NonTensorStack(*map(NonTensorData, draw.metadata))
        result[GROUP] = draw.groups.clone()
        result[SEED] = draw.seeds.clone()
        result[HISTORY_SEED] = draw.history_seeds.clone()
        self._show(result, draw.prompts, start)
        result[FPS] = torch.full(self.batch_size, float(self._model.fps))
        result[INDEX] = torch.full(self.batch_size, start, dtype=torch.int64)
        return result

    def _show(self, result: TensorDictBase, scripts: Sequence[str], window: int) -> None:
        """Write what the videos show in a window; equal prompts are encoded once."""
        prompts = prompts_of_window(scripts, window, self.scene_windows)
        distinct = list(dict.fromkeys(prompts))
        with torch.no_grad():
            embeds = self._model.text(distinct)  # [distinct prompts, L, D]
        if embeds.ndim != 3 or len(embeds) != len(distinct) or not embeds.is_floating_point():
            raise ValueError(
                f"the model's text() gives {kind(embeds)} for {len(distinct)} prompts. "
                f"Let it give floats [{len(distinct)}, L, D]."
            )
        result[TEXT] = NonTensorStack(*prompts)
        result[EMBEDS] = embeds[[distinct.index(prompt) for prompt in prompts]]

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        draw = self.sampler.peek()
        pairs = ((GROUP, draw.groups), (SEED, draw.seeds))
        if not all(torch.equal(tensordict[key].cpu(), drawn) for key, drawn in pairs):
            raise RuntimeError(
                "the videos are not those of the sampler's present draw: its state or seed was "
                "changed after the reset. Load the sampler's state before a collector is made, "
                "and reset the environment after set_seed."
            )
        if self.collector is not None:
            self._refuse_another_shape(tensordict)
        kept = (TEXT, SCRIPT, METADATA, GROUP, SEED, HISTORY_SEED, EMBEDS, FPS)
        result = tensordict.select(*kept, strict=False)
        result[INDEX] = tensordict[INDEX] + 1
        if self.scene_windows:
            self._show(result, self.sampler.peek().prompts, int(result[INDEX][0]))
        end = self.schedule.start_at(self.sampler.step) + self.windows
        result["done"] = (result[INDEX] >= end).unsqueeze(-1)  # [N, 1]
        if result["done"].all():
            self.sampler.advance()
        return result

    def maybe_reset(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Go on to the next window or video, without what the policy wrote for the last window.

        TorchRL would carry it along, and so keep a batch of pixels alive during the update.
        """
        return super().maybe_reset(tensordict.exclude(LATENTS, PIXELS, OVERVIEW, CONTEXT, STEPS))

    def _refuse_another_shape(self, tensordict: TensorDictBase) -> None:
        """Refuse a window that cannot be stacked with those before it."""
        for key in (LATENTS, PIXELS, CONTEXT):
            value = tensordict.get(key, None)
            if value is None:
                continue
            before = self._shapes.setdefault(key, value.shape)
            if value.shape != before:
                raise ValueError(
                    f"the policy wrote {key} {list(value.shape)} for window "
                    f"{int(tensordict[INDEX][0])} and {list(before)} for the window before: they "
                    "do not fit into one batch [videos, windows]. Let it write windows of one "
                    "shape, as StreamingPolicy does with stackable=True."
                )

    def register_collector(self, collector: Any) -> None:
        """Meet TorchRL's collector; in a worker of several, draw other videos than the others.

        Raises:
            ValueError: If two workers are given the same share of a draw.
        """
        super().register_collector(collector)
        if worker := getattr(collector, "worker_idx", None):
            self.sampler.for_worker(worker)

    def set_seed(self, seed: int | None = None, static_seed: bool = False) -> int | None:
        """Begin anew with another seed of prompts and noise, as if made with it.

        A collector that runs this environment begins anew, too; else reset it.

        Args:
            seed: A whole number.
            static_seed: Whether the next environment gets the same seed. Those that share a draw
                always do.

        Returns:
            The seed for the next environment.

        Raises:
            TypeError: If it is no whole number.
            ValueError: If it is below 0 or has more than 64 bits.
        """
        whole_number("seed", seed)
        if seed is None or seed < 0:  # the next one is made by numpy, which knows no sign
            raise ValueError(f"seed is {seed}. Give a whole number of 0 or more.")
        following: int | None = super().set_seed(seed, static_seed or self.sampler.world_size > 1)
        return following

    def _set_seed(self, seed: int | None) -> None:
        assert seed is not None
        self.sampler.set_seed(seed)
        if self.collector is not None:
            self.collector.reset()  # it holds the prompts of the last reset


def _schedule(windows: int | None, schedule: WindowSchedule | None) -> WindowSchedule:
    if schedule is not None:
        if windows is not None:
            raise ValueError("windows belongs to the schedule that is given. Set it there.")
        return schedule
    number = 1 if windows is None else windows
    whole_number("windows", number)
    if number < 1:
        raise ValueError(f"windows is {number}: a video has at least one. Set it to 1 or more.")
    return WindowSchedule(windows=number, length=number)


def _sampler(
    prompts: GroupSampler | Sequence[Prompt],
    group_size: int | None,
    num_prompts: int | None,
    seed: int | None,
) -> GroupSampler:
    if isinstance(prompts, GroupSampler):
        if (group_size, num_prompts, seed) != (None, None, None):
            raise ValueError(
                "group_size, num_prompts and seed belong to the sampler that is given. "
                "Set them there."
            )
        return prompts
    if group_size is None:
        raise ValueError(
            "group_size is missing: how many videos compete for a prompt. Set it to 2 or more."
        )
    return GroupSampler(
        prompts,
        num_prompts=len(prompts) if num_prompts is None else num_prompts,
        group_size=group_size,
        seed=0 if seed is None else seed,
    )


def _nested(size: int, specs: dict[tuple[str, str], object]) -> Composite:
    """Composite of two-part keys, each level with the batch size."""
    levels: dict[str, Composite] = {}
    for (thing, aspect), spec in specs.items():
        levels.setdefault(thing, Composite(shape=(size,)))[aspect] = spec
    return Composite(levels, shape=(size,))
