"""Every setting of a run, with every default of the project.

Plain frozen dataclasses: a custom loop can make them without a file and without pydantic. Defaults
are those of the paper (arXiv 2603.17051, table S1) unless the text of a field says otherwise; a
recipe holds what differs from them. Values are checked here, types in `astrolabe.load`.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from astrolabe.config_logging import Logging
from astrolabe.config_rewards import Advantage, Composite, Disagreement, Guard, RewardTerm
from astrolabe.config_rollout import Rollout
from astrolabe.config_train import Distributed, Snapshots, Train
from astrolabe.limits import check_numbers

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
        check_numbers(self)


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
    """Videos sampled and scored together, unless ``exact``; what is finished is kept, and a batch
    that was interrupted is made again, so that no digit changes."""
    exact: bool = True
    """Sample and score videos one by one, whatever ``batch_size`` is, so that no number depends on
    it; large models lose no time by it."""
    seed: int = 0
    """Another one gives other noise. That of a video follows from its prompt, from how often the
    prompt came before, and from this; not from its place in the list."""
    judges: dict[str, RewardTerm] = field(default_factory=dict)
    """Scores that are never trained on; weights mean nothing here."""
    at_end: bool = True
    """Write the report when training ends."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.num_videos == 1:
            raise ValueError("num_videos is 1. Set it to 2 or more, or to 0 for all prompts.")
        if self.seconds and self.num_frames:
            raise ValueError("num_frames and seconds are both given. Set one of them to 0.")


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
