"""Settings of how videos are sampled."""

from dataclasses import dataclass
from typing import Literal

from astrolabe.limits import COUNT, between, check_numbers


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
        check_numbers(self)
        if self.group_size < 2:
            raise ValueError(
                f"group_size is {self.group_size}: the advantage of a lone sample is always 0. "
                "Set it to 2 or more."
            )
        videos = self.num_prompts * self.group_size
        between("num_prompts * group_size * windows", videos * self.windows, 1, COUNT)
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
