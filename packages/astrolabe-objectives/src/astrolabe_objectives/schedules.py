"""When the behaviour policy follows the trained one, and when the reference is renewed.

Left out on purpose: the public code's self-adapting KL threshold. As published its bounds look
swapped (a fast reset *lowers* the threshold to 0.05, which makes the next reset faster), so the
threshold here is a fixed setting.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class OldDecay:
    """Share of itself that ``old`` keeps, ``γ(s) = min(start + slope · max(s - delay, 0), cap)``.

    ``old ← γ old + (1-γ) policy`` (Astrolabe, section 3.3): 0 copies the policy, 1 freezes ``old``.

    Raises:
        ValueError: If a setting is negative or lets γ leave [0, 1].

    Example:
        >>> OldDecay()(step=7)
        0.9
        >>> OldDecay(start=0.0, slope=0.001, cap=0.5)(step=200)
        0.2
    """

    start: float = 0.9
    """Share before the delay is over, in [0, 1]; table S1 of Astrolabe: 0.9 at every step."""
    slope: float = 0.0
    """Growth of the share per step."""
    delay: int = 0
    """Steps before the growth begins."""
    cap: float = 1.0
    """Largest share, in [0, 1]."""

    def __post_init__(self) -> None:
        for name in ("start", "cap"):
            if not 0.0 <= (value := getattr(self, name)) <= 1.0:
                raise ValueError(f"OldDecay.{name} is {value!r}. Give a share between 0 and 1.")
        for name in ("slope", "delay"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"OldDecay.{name} is {value!r}. Give 0 or more.")

    def __call__(self, step: int) -> float:
        """Return γ after training step ``step``, counted as the public code does, from 0."""
        return min(self.start + self.slope * max(step - self.delay, 0), self.cap)


#: Schedules by name: table S1, then ``decay_type`` 0, 1 and 2 of the public code.
OLD_DECAYS = {
    "constant": OldDecay(),
    "public_0": OldDecay(start=0.0),
    "public_1": OldDecay(start=0.0, slope=0.001, cap=0.5),
    "public_2": OldDecay(start=0.0, slope=0.0075, delay=75, cap=0.999),
}


@dataclass(frozen=True)
class ReferenceReset:
    """When ``reference ← policy``: the policy is far from it, or it is old (Astrolabe 3.4).

    Raises:
        ValueError: If ``max_kl`` is not positive or ``max_epochs`` is below 1.

    Example:
        >>> ReferenceReset(max_kl=0.15)(kl=0.2, epochs=1)
        True
    """

    max_kl: float | None = 0.15
    """Mean squared distance above which the reference is renewed; None: never for distance."""
    max_epochs: int | None = 15
    """Epochs after which the reference is renewed; None: never for age."""

    def __post_init__(self) -> None:
        if self.max_kl is not None and not self.max_kl > 0:
            raise ValueError(
                f"ReferenceReset.max_kl is {self.max_kl!r}. Give more than 0, or None."
            )
        if self.max_epochs is not None and self.max_epochs < 1:
            raise ValueError(
                f"ReferenceReset.max_epochs is {self.max_epochs!r}. Give 1 or more, or None."
            )

    def __call__(self, kl: float, epochs: int) -> bool:
        """Say whether to renew the reference.

        Args:
            kl: Mean KL term of the epoch, before ``kl_coeff``.
            epochs: Epochs since the last renewal, this one included.

        Raises:
            ValueError: If ``kl`` is not finite.
        """
        if not math.isfinite(kl):
            raise ValueError(
                f"the KL term is {kl}, so the policy or its reference has left the finite numbers. "
                "Lower the learning rate, or resume from an earlier step."
            )
        far = self.max_kl is not None and kl > self.max_kl
        return far or (self.max_epochs is not None and epochs >= self.max_epochs)
