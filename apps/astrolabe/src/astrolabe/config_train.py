"""Settings of what is learned from them: the optimiser, the copies of the policy, the processes."""

from dataclasses import dataclass
from typing import Literal

from astrolabe.limits import check_numbers


@dataclass(frozen=True)
class Snapshots:
    """How the behaviour policy ("old") and the reference follow the trained policy."""

    old_decay: float = 0.9
    """Share of itself that "old" keeps after a step, in [0, 1]."""
    old_slope: float = 0.0
    """Growth of that share per step."""
    old_delay: int = 0
    """Steps before the growth begins."""
    old_cap: float = 1.0
    """Largest share."""
    old_every: int = 1
    """Steps between two times that "old" follows; with ``old_decay`` 0 it is then copied."""
    reference_max_kl: float = 0.15
    """The reference is renewed when the KL term exceeds this; 0: never for distance."""
    reference_max_epochs: int = 15
    """The reference is renewed after so many steps; 0: never for age."""
    reference_adaptive: bool = False
    """Whether the largest KL term falls after each renewal for age, and rises after hasty ones."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.reference_adaptive and not (self.reference_max_kl and self.reference_max_epochs):
            raise ValueError(
                "reference_adaptive needs both limits. Set snapshots.reference_max_kl and "
                "snapshots.reference_max_epochs above 0."
            )


@dataclass(frozen=True)
class Train:
    """The optimiser and what it sees."""

    steps: int = 100
    """Steps: batches that are sampled, scored and learned from."""
    seed: int = 0
    """Seed of prompts, noise, adapter and shuffling."""
    updates: int = 1
    """Optimiser steps on each batch."""
    micro_batch: int = 8
    """Windows that go through the network together; changes memory and speed, not results."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, a third more time."""
    lr: float = 1e-5
    """Learning rate of AdamW."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's two moments."""
    eps: float = 1e-8
    """AdamW's ε."""
    weight_decay: float = 1e-4
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    noise_levels: Literal["warped", "unwarped", "uniform"] = "warped"
    """Train at the levels of sampling, at ``denoising_steps / 1000`` as the public code does, or
    uniformly between the least and the largest level of sampling."""
    context: Literal["clean", "attached", "noisy"] = "clean"
    """What a chunk sees of earlier ones: clean (the paper), clean with gradient (full
    back-propagation), or noisy (the public code)."""
    mask: Literal["chunk", "frame"] = "chunk"
    """Denoise chunk by chunk as in sampling, or frame by frame as the public code does."""

    def __post_init__(self) -> None:
        check_numbers(self)


@dataclass(frozen=True)
class Distributed:
    """How the processes of torchrun share a run; no result depends on it."""

    base: Literal["replicated", "sharded"] = "replicated"
    """Whether each process holds the frozen weights whole (DDP), or a part of them (FSDP2)."""
    lora: Literal["replicated", "sharded"] = "replicated"
    """The same of adapter, optimiser and snapshots; sharded only with a sharded base."""
    shard_ranks: int = 0
    """Processes that share one copy of a sharded base; it divides their number. 0: all."""
    rollout_ranks: int = 0
    """Processes, the last ones, that sample and score for the others, which then only learn. 0: all
    do both. They sample while the others learn if ``rollout.lag`` is 1."""
    timeout: float = 1800.0
    """Seconds without progress after which a process counts as hung and the run ends."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.lora == "sharded" and self.base == "replicated":
            raise ValueError(
                "lora is 'sharded' but base is 'replicated'. Set distributed.base to 'sharded' too."
            )
        if self.rollout_ranks and self.base == "sharded":
            raise ValueError(
                f"rollout_ranks is {self.rollout_ranks} but base is 'sharded', whose ranks must "
                "all make the same passes. Set one of them to its default."
            )
