"""Settings of what is kept of a run."""

from dataclasses import dataclass, field
from typing import Any, Literal

from astrolabe.limits import check_numbers


@dataclass(frozen=True)
class Logging:
    """What is kept of a run."""

    checkpoint_every: int = 10
    """Steps between checkpoints; there is always one at the end."""
    keep: int = 2
    """Newest checkpoints to keep."""
    keep_best: int = 0
    """Checkpoints to keep besides: those after the steps of the highest total reward."""
    samples_every: int = 10
    """Steps between sample videos; 0: none."""
    samples: int = 4
    """Videos of each of these times: the best and the worst of half as many groups."""
    backends: tuple[Literal["csv", "tensorboard", "wandb", "mlflow", "trackio"], ...] = ()
    """Trackers to use beside metrics.jsonl."""
    tracker_options: dict[str, dict[str, Any]] = field(default_factory=dict)  # Any: of each its own
    """Arguments of each tracker by its name: those of TorchRL's logger, and of ``wandb.init`` or
    ``trackio.init``; such as ``wandb.offline``, ``wandb.project``, ``mlflow.tracking_uri``."""

    def shows(self, step: int) -> bool:
        """Whether videos of a step, counted from 1, are kept."""
        every = self.samples_every
        return bool(every) and (step == 1 or step % every == 0)

    def __post_init__(self) -> None:
        check_numbers(self)
        unused = [name for name in self.tracker_options if name not in self.backends]
        if unused:
            raise ValueError(
                f"tracker_options has {unused[0]!r}, which is not among logging.backends "
                f"({', '.join(self.backends) or 'none'}). Add it there, or remove its options."
            )
