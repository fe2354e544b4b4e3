"""Every setting of a run, with every default of the project.

Plain frozen dataclasses: a custom loop can make them without a file and without pydantic. Defaults
are those of the paper (arXiv 2603.17051, table S1) unless the text of a field says otherwise; a
recipe holds what differs from them. Values are checked here, types in `astrolabe.load`.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from astrolabe.config_logging import Logging
from astrolabe.config_rewards import Advantage, Composite, Disagreement, Guard, RewardTerm
from astrolabe.limits import above_zero, at_least, share

__all__ = [
    "Advantage",
    "Composite",
    "Disagreement",
    "Distributed",
    "Evaluation",
    "Guard",
    "Logging",
    "Lora",
    "Part",
    "RewardTerm",
    "Rollout",
    "Run",
    "Snapshots",
    "Train",
]


@dataclass(frozen=True)
class Part:
    """A pluggable part: its name and the arguments of its constructor."""

    name: str
    """Name in an entry point group (see `astrolabe parts`), or ``module:attribute``."""
    options: dict[str, Any] = field(default_factory=dict)  # Any: the constructor says what it takes
    """Keyword arguments of the constructor."""


@dataclass(frozen=True)
class Lora:
    """The adapter that is trained; all else is frozen."""

    rank: int = 256
    """Rank of the two factors, at least 1."""
    alpha: int = 256
    """The adapter is scaled by ``alpha / rank``."""
    precision: Literal["base", "float32"] = "base"
    """In which the adapter is multiplied; its weights, gradients and optimiser stay float32."""
    start: str = ""
    """An adapter to go on from, by path or hub id: a folder of peft or diffusers, or a file of any
    program, such as LongLive's ``lora.pt``; each of its layers must have this rank and alpha, as it
    states them. Empty: start from none."""

    def __post_init__(self) -> None:
        at_least("rank", self.rank, 1)
        at_least("alpha", self.alpha, 1)


@dataclass(frozen=True)
class Rollout:
    """How videos are sampled."""

    prompts: str = "tiny_train"
    """A file as of ``evaluation.prompts``, or the name of a packaged list (`astrolabe parts`)."""
    num_prompts: int = 48
    """Prompts of a step."""
    group_size: int = 24
    """Videos of a prompt, which compete; at least 2."""
    num_frames: int = 21
    """Latent frames of a window, a whole number of chunks."""
    windows: int = 1
    """Windows of a video that a step trains, one after the other."""
    length: int = 0
    """Windows of the whole video; those before the trained ones are only rolled out, once for each
    prompt. 0: no more than are trained."""
    start: Literal["first", "last", "uniform", "choice"] = "first"
    """Where in the video the trained windows lie; the same on all processes."""
    starts: tuple[int, ...] = ()
    """Windows at which ``choice`` may start."""
    curriculum: tuple[tuple[int, int], ...] = ()
    """Pairs of a step and the length from then on, from step 0 and growing; replaces ``length``."""
    commit: Literal["random", "best", "each"] = "random"
    """Which candidate of a group the next window goes on from: one for all, or each from itself."""
    scene_windows: int = 0
    """Windows of each prompt, where prompts are scripts parted by ``|``; 0: they are not."""
    overview: int = 16
    """Frames, spread evenly, that rewards of ``scope = "video"`` see of the whole video so far."""
    batch_size: int = 0
    """Videos sampled and scored together; 0: all of a step. No result depends on it."""
    overlap: bool = True
    """Score these while the next are sampled, both by the same policy; needs a ``batch_size``."""
    lag: int = 0
    """Steps by which the policy that samples is behind "old": 0, or 1, so that processes that only
    sample (``distributed.rollout_ranks``) make the next videos while the others learn."""

    def __post_init__(self) -> None:
        at_least("num_prompts", self.num_prompts, 1)
        at_least("num_frames", self.num_frames, 1)
        at_least("windows", self.windows, 1)
        at_least("batch_size", self.batch_size, 0)
        at_least("length", self.length, 0)
        at_least("scene_windows", self.scene_windows, 0)
        at_least("overview", self.overview, 2)
        if self.lag not in (0, 1):
            raise ValueError(f"lag is {self.lag}. Set it to 0 or 1.")
        if self.group_size < 2:
            raise ValueError(
                f"group_size is {self.group_size}: the advantage of a lone sample is always 0. "
                "Set it to 2 or more."
            )
        videos = self.num_prompts * self.group_size
        if self.batch_size and videos % self.batch_size:
            raise ValueError(
                f"batch_size is {self.batch_size}, which does not divide the {videos} videos of a "
                "step. Choose a divisor."
            )
        uneven = self.batch_size % self.group_size and self.group_size % max(self.batch_size, 1)
        if self.batch_size and uneven and self.shared:
            raise ValueError(
                f"batch_size is {self.batch_size} and groups of {self.group_size} share a history. "
                "Choose a divisor or a multiple of group_size."
            )
        if self.batch_size % self.group_size and self.commits:
            raise ValueError(
                f"batch_size is {self.batch_size}, which parts groups of {self.group_size}, but "
                f"commit is {self.commit!r}: the next window goes on from one candidate of a "
                "whole group. Choose a multiple of group_size."
            )

    @property
    def commits(self) -> bool:
        """Whether a window goes on from one candidate of each group, which is drawn together."""
        return self.windows > 1 and self.commit != "each"

    @property
    def shared(self) -> bool:
        """Whether the candidates of a group share what lies before their window."""
        longer = max(self.length, *(length for _, length in self.curriculum), 0) > self.windows
        return longer or self.commits


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
        share("old_decay", self.old_decay)
        share("old_cap", self.old_cap)
        for name in ("old_slope", "old_delay", "reference_max_kl", "reference_max_epochs"):
            at_least(name, getattr(self, name), 0)
        at_least("old_every", self.old_every, 1)
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
        for name in ("steps", "updates", "micro_batch"):
            at_least(name, getattr(self, name), 1)
        above_zero("lr", self.lr)
        above_zero("max_grad_norm", self.max_grad_norm)
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}. Take a number from 0 to {2**32 - 1}.")


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
        at_least("shard_ranks", self.shard_ranks, 0)
        at_least("rollout_ranks", self.rollout_ranks, 0)
        above_zero("timeout", self.timeout)
        if self.lora == "sharded" and self.base == "replicated":
            raise ValueError(
                "lora is 'sharded' but base is 'replicated'. Set distributed.base to 'sharded' too."
            )
        if self.rollout_ranks and self.base == "sharded":
            raise ValueError(
                f"rollout_ranks is {self.rollout_ranks} but base is 'sharded', whose ranks must "
                "all make the same passes. Set one of them to its default."
            )


@dataclass(frozen=True)
class Evaluation:
    """The report before and after, on prompts that are not trained on."""

    prompts: str = "tiny_heldout"
    """A packaged list, a text file with one prompt per line, a .csv, .tsv, .jsonl or .json with
    "prompt", or VBench's ``VBench_full_info.json``, whose videos then have VBench's own names."""
    num_videos: int = 128
    """Videos of each model, evenly over the prompts; prompts are repeated with other noise if they
    run out. 0: each prompt once, and all videos of VBench's list."""
    num_frames: int = 0
    """Latent frames of a video; 0: as in training."""
    seconds: float = 0.0
    """Length of a video instead, to the nearest chunk; 0: ``num_frames``."""
    scenes: bool = False
    """Whether prompts are scripts of scenes, ``a cat wakes[10s] | it runs[10s]``; one without a
    length takes that of a video. Rewards read the prompts of all scenes, one after the other."""
    batch_size: int = 32
    """Videos kept together; what is finished is never made again."""
    exact: bool = True
    """Sample and score videos one by one, so that no number depends on ``batch_size``; large models
    lose no time by it."""
    seed: int = 0
    """Another one gives other noise. That of a video follows from its prompt, from how often the
    prompt came before, and from this; not from its place in the list."""
    judges: dict[str, RewardTerm] = field(default_factory=dict)
    """Scores that are never trained on; weights mean nothing here."""
    at_end: bool = True
    """Write the report when training ends."""

    def __post_init__(self) -> None:
        if self.num_videos == 1:
            raise ValueError("num_videos is 1. Set it to 2 or more, or to 0 for all prompts.")
        at_least("num_videos", self.num_videos, 0)
        at_least("num_frames", self.num_frames, 0)
        at_least("seconds", self.seconds, 0)
        if self.seconds and self.num_frames:
            raise ValueError("num_frames and seconds are both given. Set one of them to 0.")
        at_least("batch_size", self.batch_size, 1)
        at_least("seed", self.seed, 0)


@dataclass(frozen=True)
class Run:
    """One training run."""

    model: Part = field(default_factory=lambda: Part("tiny"))
    """The model that is aligned."""
    rewards: dict[str, RewardTerm] = field(default_factory=dict)
    """Terms of the composite reward by the name of their score; at least one with a weight."""
    composite: Composite = field(default_factory=Composite)
    objective: Part = field(default_factory=lambda: Part("nft"))
    """The loss."""
    lora: Lora = field(default_factory=Lora)
    rollout: Rollout = field(default_factory=Rollout)
    advantage: Advantage = field(default_factory=Advantage)
    disagreement: Disagreement = field(default_factory=Disagreement)
    snapshots: Snapshots = field(default_factory=Snapshots)
    train: Train = field(default_factory=Train)
    guard: Guard = field(default_factory=Guard)
    distributed: Distributed = field(default_factory=Distributed)
    evaluation: Evaluation = field(default_factory=Evaluation)
    logging: Logging = field(default_factory=Logging)

    @property
    def overview(self) -> int:
        """Frames of the overviews to make; 0: no reward reads them."""
        terms = self.rewards.values()
        return self.rollout.overview if any(term.scope == "video" for term in terms) else 0

    def __post_init__(self) -> None:
        weighted = [name for name, term in self.rewards.items() if term.weight]
        if not weighted:
            raise ValueError(
                "rewards has no term with a weight. Add one, for example "
                "`--set rewards.sharpness_vq.weight=1`."
            )
        if "total" in self.rewards:
            raise ValueError("rewards.total is the name of the weighted sum. Rename the term.")
        for where, name in (
            ("advantage.reward", self.advantage.reward),
            ("disagreement.primary", self.disagreement.primary),
        ):
            if name != "total" and name not in self.rewards:
                raise ValueError(
                    f"{where} is {name!r}, which is no reward of this run. "
                    f"Choose from: total, {', '.join(self.rewards)}."
                )
        alone = len(weighted) == 1 and self.disagreement.mode == "selective"
        if alone:
            raise ValueError(
                f"disagreement.mode is 'selective' but {weighted[0]!r} is the only reward, so none "
                "can disagree. Add a second one, or set disagreement.mode to 'uniform' or 'none'."
            )
        if self.guard.action == "raise_kl" and self.disagreement.mode == "none":
            raise ValueError(
                "guard.action is 'raise_kl' but disagreement.mode is 'none', so there is no KL "
                "term to raise. Set disagreement.mode to 'selective' or 'uniform', or guard.action "
                "to 'warn' or 'stop'."
            )
        for name, judge in self.evaluation.judges.items():
            if judge.scope == "video":
                raise ValueError(
                    f"evaluation.judges.{name}.scope is 'video', but a judge sees whole videos "
                    "anyway. Leave it out."
                )
        twice = sorted(self.rewards.keys() & self.evaluation.judges.keys())
        if twice:
            raise ValueError(
                f"evaluation.judges.{twice[0]} is a reward of this run too, and a judge must not "
                "be trained on. Remove it from one of the two."
            )
        judging = self.rollout.commit == "best" and self.composite.normalise == "running"
        if self.distributed.rollout_ranks and judging:
            raise ValueError(
                "distributed.rollout_ranks is set, and rollout.commit 'best' compares by the "
                "running statistics of composite.normalise, which processes that learn keep. "
                "Choose another commit or another normalise."
            )
        videos = self.rollout.num_prompts * self.rollout.group_size * self.rollout.windows
        if videos % self.train.updates:
            raise ValueError(
                f"train.updates is {self.train.updates}, which does not divide the {videos} "
                "windows of a step. Choose a divisor."
            )
