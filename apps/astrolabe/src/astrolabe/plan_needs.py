"""What is known of a run before it starts: its share of work, sizes, and traced figures."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar, cast

import torch
from torch import nn

from astrolabe.config import Run
from astrolabe.plan_model import Blueprint, blueprint, weight_bytes
from astrolabe.plan_passes import Figures, along, decoding, learning, sampling
from astrolabe.plan_rewards import RewardNeeds, reward_needs
from astrolabe_rollout.lora import add_lora, trainable_parameters

Found = TypeVar("Found")


@dataclass(frozen=True)
class Share:
    """What one process has to do in a step.

    Attributes:
        videos: It samples.
        batch: Of them at a time.
        windows: It learns from.
        micro_batch: Of them at a time.
        updates: Optimiser steps.
    """

    videos: int
    batch: int
    windows: int
    micro_batch: int
    updates: int

    @property
    def batches(self) -> int:
        """Batches of videos."""
        return -(-self.videos // self.batch)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of all optimiser steps."""
        return self.updates * -(-(self.windows // self.updates) // self.micro_batch)


@dataclass(frozen=True)
class Sizes:
    """Bytes and numbers of a model and its adapter.

    Attributes:
        base: Bytes of the transformer's own weights.
        block: Bytes of one of its blocks.
        codec: Bytes of the video codec.
        parameters: Numbers in the transformer.
        trained: Numbers in the adapter.
        frame: Bytes of keys and values of a latent frame.
        latent: Numbers in a latent frame.
        picture: Bytes of a pixel frame.
        context: Latent frames that a window sees before it.
        window: Pixel frames of a window.
        chunk: Latent frames of a chunk.
        steps: Noise levels at which a chunk is sampled.
    """

    base: int
    block: int
    codec: int
    parameters: int
    trained: int
    frame: int
    latent: int
    picture: int
    context: int
    window: int
    chunk: int
    steps: int


class Needs:
    """What a run needs; what was found once is kept, also for other settings that share it.

    Args:
        run: The settings.
        gpus: Processes, each with a GPU of its own.
    """

    def __init__(self, run: Run, gpus: int = 1) -> None:
        self.run, self.gpus = run, gpus
        self._found: dict[str, Any] = {}  # Any: results of many kinds

    def of(self, run: Run) -> "Needs":
        """The same for other settings."""
        other = Needs(run, self.gpus)
        other._found = self._found
        return other

    @cached_property
    def model(self) -> Blueprint:
        """The model."""
        return blueprint(self.run.model)

    @property
    def ranks(self) -> int:
        """Processes that share one copy of the base."""
        settings = self.run.distributed
        return (settings.shard_ranks or self.gpus) if settings.base == "sharded" else 1

    @cached_property
    def share(self) -> Share:
        """What one process does."""
        rollout, train = self.run.rollout, self.run.train
        videos = rollout.num_prompts * rollout.group_size // self.gpus
        windows = videos * rollout.windows
        batch = min(rollout.batch_size or videos, videos)
        micro_batch = min(train.micro_batch, max(windows // train.updates, 1))
        return Share(videos, batch, windows, micro_batch, train.updates)

    @property
    def overlapped(self) -> bool:
        """Whether a batch is scored while the next one is sampled."""
        rollout = self.run.rollout
        return rollout.overlap and rollout.commit != "best" and self.share.batches > 1

    @cached_property
    def sizes(self) -> Sizes:
        """Sizes of model and adapter."""
        settings = (self.run.lora.rank, self.run.rollout.num_frames)
        return self._once(_sizes, self._shape, *settings, of=partial(_sizes, self.run, self.model))

    @cached_property
    def rewards(self) -> list[RewardNeeds]:
        """Rewards, in their order."""
        return reward_needs(self.run, self.sizes.window)

    def sampled(self, window: int | None = None) -> Figures:
        """Figures of sampling a batch of videos.

        Args:
            window: Number of the window; by default one with a history, if there is one.
        """
        shared = self.run.rollout.shared
        number = int(shared) if window is None else window
        count = partial(self._sampled, number)
        if not (shared and number):
            return count(1) * self.share.batch
        group = min(self.run.rollout.group_size, self.share.batch)
        # A history and its candidates, as many times as there are groups.
        return of_size(count, group) * (self.share.batch / group)

    def history(self) -> Figures:
        """What one window more of the history of a batch's groups computes."""
        group = min(self.run.rollout.group_size, self.share.batch)
        more = self._sampled(2, 1) + self._sampled(1, 1) * -1
        return more * (self.share.batch / group)

    def decoded(self) -> Figures:
        """Figures of decoding a chunk of a batch of videos."""
        one, two = self._once(decoding, self._shape, of=partial(decoding, self.model))
        return along(one, two, self.share.batch - 1)

    def learned(self) -> Figures:
        """Figures of learning from a micro-batch."""
        return of_size(self._learned, self.share.micro_batch)

    @property
    def _shape(self) -> str:
        """What decides about the shapes of the model."""
        part = self.run.model
        options = {name: value for name, value in part.options.items() if name != "text_device"}
        return repr((part.name, options))

    @property
    def _course(self) -> tuple[object, ...]:
        """What decides how a video goes on."""
        rollout = self.run.rollout
        lengths = (rollout.num_frames, rollout.windows, rollout.length, rollout.curriculum)
        return (*lengths, rollout.commit, rollout.scene_windows)

    def _sampled(self, window: int, videos: int) -> Figures:
        # The rank of the adapter is left out: that it is asked for first is the run's own.
        run = self.run
        settings = (self._course, run.overview, run.lora.precision, run.objective)
        count = partial(sampling, run, self.model, videos, window)
        return self._once(sampling, self._shape, *settings, window, videos, of=count)

    def _learned(self, windows: int) -> Figures:
        run, train = self.run, self.run.train
        settings = (
            *(self._course, run.objective, run.lora),
            *(train.noise_levels, train.context, train.mask, train.gradient_checkpointing),
        )
        count = partial(learning, run, self.model, windows)
        return self._once(learning, self._shape, *settings, windows, of=count)

    def _once(
        self, what: Callable[..., Found], *settings: object, of: Callable[[], Found]
    ) -> Found:
        """Return what was found with these settings before, or find it."""
        key = repr((what.__name__, settings))
        if key not in self._found:
            self._found[key] = of()
        found: Found = self._found[key]
        return found


def of_size(count: Callable[[int], Figures], size: int) -> Figures:
    """Figures of a batch: from two on they grow evenly; one alone needs fewer copies."""
    return count(size) if size <= 2 else along(count(2), count(3), size - 2)


def _sizes(run: Run, plan: Blueprint) -> Sizes:
    model = plan.build()
    transformer, geometry = model.transformer, model.geometry
    network: Any = transformer.network  # diffusers types its blocks no further than nn.Module
    base, block = weight_bytes(network), weight_bytes(network.blocks[0])
    parameters = sum(value.numel() for value in network.parameters())
    with torch.device("meta"):
        add_lora(network, rank=run.lora.rank, alpha=run.lora.alpha)
    width = transformer.head_dim * network.config.num_attention_heads
    item = network.patch_embedding.weight.element_size()
    height, across = geometry.latent_size
    return Sizes(
        base=base,
        block=block,
        codec=weight_bytes(cast(nn.Module, model.codec)),
        parameters=parameters,
        trained=sum(value.numel() for value in trainable_parameters(network).values()),
        frame=2 * transformer.layers * geometry.tokens * width * item,
        latent=geometry.channels * height * across,
        picture=3 * geometry.height * geometry.width,
        context=geometry.context,
        window=geometry.pixel_frames(run.rollout.num_frames),
        chunk=geometry.chunk,
        steps=len(model.sigmas),
    )
