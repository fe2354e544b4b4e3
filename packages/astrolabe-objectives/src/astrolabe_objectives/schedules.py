"""When the behaviour policy follows the trained one, and when the reference is renewed.

Rules are plain callables, so anybody's function will do. One that changes as it is used, such as
`AdaptiveReferenceReset`, has a ``state_dict()``, which `Snapshots` saves with the copies.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from astrolabe_objectives import settings


@runtime_checkable
class StatefulRule(Protocol):
    """A rule that changes as it is used, and so belongs into a checkpoint."""

    def state_dict(self) -> Mapping[str, Any]:  # Any: the rule's own
        """Return what changes."""

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Take back what `state_dict` gave."""


@dataclass(frozen=True)
class OldDecay:
    """Share of itself that ``old`` keeps, ``γ(s) = min(start + slope · max(s - delay, 0), cap)``.

    ``old ← γ old + (1-γ) policy`` (Astrolabe, section 3.3): 0 copies the policy, 1 freezes ``old``.
    With ``every = k`` this happens after each k-th step only, and γ is 1 after the others.

    Raises:
        TypeError: If a setting is no number, or ``delay`` or ``every`` no whole one.
        ValueError: If a setting is negative or lets γ leave [0, 1], or ``every`` is below 1.

    Example:
        >>> OldDecay()(step=7)
        0.9
        >>> OldDecay(start=0.0, slope=0.001, cap=0.5)(step=200)
        0.2
        >>> [OldDecay(start=0.0, every=3)(step) for step in range(4)]  # a copy after three steps
        [1.0, 1.0, 0.0, 1.0]
    """

    start: float = 0.9
    """Share before the delay is over, in [0, 1]; table S1 of Astrolabe: 0.9 at every step."""
    slope: float = 0.0
    """Growth of the share per step."""
    delay: int = 0
    """Steps before the growth begins."""
    cap: float = 1.0
    """Largest share, in [0, 1]."""
    every: int = 1
    """Steps from one update of ``old`` to the next, 1 or more."""

    def __post_init__(self) -> None:
        for name in ("start", "cap"):
            settings.number("OldDecay", name, getattr(self, name), least=0, most=1)
        settings.number("OldDecay", "slope", self.slope, least=0)
        settings.whole("OldDecay", "delay", self.delay, least=0)
        settings.whole("OldDecay", "every", self.every, least=1)

    def __call__(self, step: int) -> float:
        """Return γ after training step ``step``, counted as the public code does, from 0."""
        if (step + 1) % self.every:
            return 1.0
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
        TypeError: If ``max_kl`` is no number, or ``max_epochs`` no whole one.
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
        if self.max_kl is not None:
            settings.number("ReferenceReset", "max_kl", self.max_kl, above=0)
        if self.max_epochs is not None:
            settings.whole("ReferenceReset", "max_epochs", self.max_epochs, least=1)

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


@dataclass
class AdaptiveReferenceReset:
    """A `ReferenceReset` whose ``max_kl`` follows how soon it is exceeded, as in the public code.

    A renewal within ``fast_epochs`` means that the threshold was too low: it rises by ``step``, to
    ``highest`` at most. A renewal for age means that it was too high: it falls, to ``lowest`` at
    least. Renewals in between leave it.

    The public code has 0.05 for ``highest``, below its own ``lowest``, so that the first fast
    renewal cuts the threshold to 0.05 instead of raising it; ``highest=0.05`` repeats that.

    Raises:
        TypeError: If a setting is no number, or a number of epochs no whole one.
        ValueError: If a threshold or ``step`` is not positive, or a number of epochs is below 1.

    Example:
        >>> reset = AdaptiveReferenceReset()
        >>> reset(kl=0.2, epochs=3), round(reset.max_kl, 6)
        (True, 0.16)
    """

    max_kl: float = 0.15
    """Mean squared distance above which the reference is renewed; changes in use."""
    max_epochs: int = 15
    """Epochs after which the reference is renewed."""
    step: float = 0.01
    """By how much the threshold rises or falls."""
    fast_epochs: int = 5
    """Epochs up to which a renewal is a fast one."""
    lowest: float = 0.1
    """Where the threshold stops falling."""
    highest: float = 0.2
    """Where the threshold stops rising; the paper names no number."""

    def __post_init__(self) -> None:
        for name in ("max_kl", "step", "lowest", "highest"):
            settings.number("AdaptiveReferenceReset", name, getattr(self, name), above=0)
        for name in ("max_epochs", "fast_epochs"):
            settings.whole("AdaptiveReferenceReset", name, getattr(self, name), least=1)

    def __call__(self, kl: float, epochs: int) -> bool:
        """Say whether to renew the reference, and move the threshold if so.

        Args:
            kl: Mean KL term of the epoch, before ``kl_coeff``.
            epochs: Epochs since the last renewal, this one included.

        Raises:
            ValueError: If ``kl`` is not finite.
        """
        renew = ReferenceReset(self.max_kl, self.max_epochs)(kl, epochs)
        if renew and epochs <= self.fast_epochs:
            self.max_kl = min(self.max_kl + self.step, self.highest)
        elif renew and epochs >= self.max_epochs:
            self.max_kl = max(self.max_kl - self.step, self.lowest)
        return renew

    def state_dict(self) -> dict[str, float]:
        """Return the present threshold."""
        return {"max_kl": self.max_kl}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take back what `state_dict` gave."""
        self.max_kl = state["max_kl"]
