"""The errors of this package that are no plain ``ValueError`` or ``TypeError``."""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # errors are named where torch must not be imported yet
    from torch import Tensor

#: What is raised by reading a file of settings and taking it apart, if it is damaged.
UNREADABLE: Final = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)


class WeightsError(FileNotFoundError):
    """Weights of a reward are missing, damaged or made for another network."""


class VideoError(ValueError):
    """A video file that is missing, cut short, no video, or not to be shown as it is stored."""


class UnscoredError(ValueError):
    """A reward answered with numbers that are not finite, and does not declare that it may.

    Args:
        what: Which reward, and for which videos.
        scores: All that it answered, float32 ``[N]``.
    """

    def __init__(self, what: str, scores: "Tensor") -> None:
        super().__init__(
            f"{what}. Look at these videos, or set on_error='invalid' in CompositeReward to leave "
            "them out."
        )
        self.what, self.scores = what, scores


class RewardError(ValueError):
    """A reward declares or returns what no reward may: a fault of its code, of no single video."""
