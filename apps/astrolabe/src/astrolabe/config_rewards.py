"""Settings of what is rewarded, and of what keeps a policy from gaming it."""

from dataclasses import dataclass, field
from typing import Any, Literal

from astrolabe.limits import check_numbers


@dataclass(frozen=True)
class RewardTerm:
    """One term of the composite reward; its key in ``[rewards]`` names its score."""

    weight: float = 1.0
    """Factor in the sum; 0 only watches the score."""
    name: str = ""
    """Name of the part; empty: the same as the key."""
    options: dict[str, Any] = field(default_factory=dict)  # Any: the constructor says what it takes
    """Keyword arguments of the constructor."""
    scope: Literal["window", "video"] = "window"
    """Score the window that is trained, or ``rollout.overview`` frames of the whole video so far,
    its history included."""
    mean: float = 0.0
    """Subtracted from the score before the sum, if ``composite.normalise`` is ``fixed``."""
    std: float = 1.0
    """The score is divided by it before the sum, if ``composite.normalise`` is ``fixed``."""

    def __post_init__(self) -> None:
        check_numbers(self)


@dataclass(frozen=True)
class Composite:
    """How the rewards become one number."""

    normalise: Literal["none", "fixed", "running", "group"] = "none"
    """Sum scores as they are (the paper), in the fixed units of each term, in running ones, or as
    z-scores among the videos of a prompt; a report, which has no groups, then sums in fixed units.
    """
    on_error: Literal["raise", "invalid"] = "raise"
    """Stop at a score that cannot be had, or leave that video out."""


@dataclass(frozen=True)
class Advantage:
    """What counts as better than the other videos of the prompt."""

    reward: str = "total"
    """``total``: the weighted sum (section 3.3); a reward's name: that one alone (algorithm 1)."""
    std: Literal["global", "group", "none"] = "global"
    """Divide by the standard deviation of the batch, of the group, or not at all."""
    mode: Literal["reward", "leave_one_out", "rank", "per_reward"] = "reward"
    """Compare rewards with the group's mean, with the mean of the others, by rank, or each reward
    by itself before they are summed (as GDPO does)."""


@dataclass(frozen=True)
class Disagreement:
    """Where the KL penalty acts."""

    mode: Literal["selective", "uniform", "none"] = "selective"
    """On samples whose rewards disagree, on all, or on none."""
    primary: str = "total"
    """The score that might be gamed: ``total``, or a reward's name."""
    rank_scope: Literal["batch", "group"] = "batch"
    """Rank the whole batch (algorithm 1), or each group by itself."""
    sign: Literal["paper", "public"] = "paper"
    """``public`` repeats the flipped sign of the public code, for comparison."""


@dataclass(frozen=True)
class Guard:
    """What watches that the policy does not game its rewards, and that numbers are numbers.

    There is an alarm when the trained reward rises while a held-out one falls: a term of
    ``[rewards]`` with weight 0, which nothing is trained on.
    """

    action: Literal["warn", "raise_kl", "stop", "off"] = "warn"
    """At an alarm: tell, tell and raise the KL coefficient, tell and stop, or watch nothing."""
    kl_factor: float = 5.0
    """``raise_kl`` multiplies the objective's ``kl_coeff`` by it (the paper tried 1e-4, 5e-4)."""
    window: int = 30
    """Steps over which a trend is judged; the first alarm may come after half of them."""
    margin: float = 3.0
    """Standard deviations by which both trends must differ from chance."""
    min_fall: float = 0.25
    """Least fall of the held-out reward, in its standard deviations inside a group."""
    max_skipped: int = 3
    """Steps in a row with a loss or gradient that is not finite, or without a video that could be
    scored, after which the run stops; the updates concerned are skipped, and batches kept whose
    loss was not finite."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if not self.kl_factor > 1:
            raise ValueError(f"kl_factor is {self.kl_factor}. Set it above 1.")
