"""The part that all losses on judged clips share: a space of errors, and the pull to a reference.

Left out on purpose: what a loss learns from an advantage. That is one file for each objective.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor, ones_like

from astrolabe_objectives.batch import read
from astrolabe_objectives.denoising import DenoisingLoss, Draw, Levels, Predictions
from astrolabe_objectives.keys import ADVANTAGE, SELECTED
from astrolabe_objectives.kl import selective_kl
from astrolabe_objectives.snapshots import REFERENCE, Snapshots

Prediction = Literal["velocity", "x0"]


@dataclass(frozen=True)
class Comparison:
    """Predictions of one noised batch in the space of the loss; only ``policy`` has a gradient."""

    policy: Tensor
    """``[M, f, C, h, w]``, float32 like all below."""
    old: Tensor
    """Prediction with the weights that sampled the clip."""
    reference: Tensor | None
    """Prediction of the KL anchor; None where it was not needed."""
    clean: Tensor
    """What a perfect prediction of the clip would be."""
    unit: Tensor
    """``[M, 1, 1, 1, 1]``, size of 1 in this space in units of clean latents."""
    kl: Tensor
    """``L_KL``, ``[]``; 0 without a gradient when nothing is selected."""
    x0: Predictions
    """The same predictions as clean latents."""


class AnchoredLoss(DenoisingLoss):
    """Base of losses that learn from advantages and are held to a reference.

    To what `DenoisingLoss` reads come ``"advantage"`` and ``("kl","selected")``. A subclass calls
    `noise`, then `compare`, and returns `outcome`: its own ``loss_policy``, with
    ``loss_kl = kl_coeff · L_KL`` (`selective_kl` against the snapshot ``"reference"``) and the
    metrics ``kl`` and ``old_deviation`` that all objectives share.

    Args:
        network: Any TensorDict module that predicts clean latents from noisy ones.
        snapshots: Copies of the trained parameters: ``"old"``, and ``"reference"`` if ever a sample
            is selected for the KL term.
        sigmas: Noise levels in (0, 1], those at which the model samples.
        kl_coeff: Weight of the KL term, 0 or more.
        prediction: Space of all squared distances. ``"velocity"`` is the paper's; ``"x0"``, the
            public code's, weighs a clip by σ² relative to it.
        levels: ``"one"`` or ``"all"`` noise levels per clip, see `DenoisingLoss`.
        draw: ``"list"`` or ``"uniform"`` noise levels, see `DenoisingLoss`.
        seed: Start of the stream of levels and noise.

    Raises:
        ValueError: If a setting is outside its range, or samples are selected and there is no
            snapshot ``"reference"``.
    """

    @dataclass
    class _AcceptedKeys(DenoisingLoss._AcceptedKeys):
        """Keys that `set_keys` can rename, besides those of `DenoisingLoss`.

        Attributes:
            advantage: How much better than its group a clip is.
            selected: Where the policy is held to the reference.
        """

        advantage: NestedKey = ADVANTAGE
        selected: NestedKey = SELECTED

    default_keys: ClassVar[type] = _AcceptedKeys
    #: What `outcome` returns without metrics; a subclass that adds some lists all of them.
    out_keys: ClassVar[list[str]] = ["loss_policy", "loss_kl", "kl", "old_deviation"]

    def __init__(
        self,
        network: TensorDictModuleBase,
        snapshots: Snapshots,
        sigmas: Sequence[float],
        *,
        kl_coeff: float = 1e-4,
        prediction: Prediction = "velocity",
        levels: Levels = "one",
        draw: Draw = "list",
        seed: int = 0,
    ) -> None:
        super().__init__(network, snapshots, sigmas, levels=levels, draw=draw, seed=seed)
        if not kl_coeff >= 0:
            raise ValueError(f"{self._name} got kl_coeff={kl_coeff!r}. Give 0 or more.")
        if prediction not in get_args(Prediction):
            raise ValueError(
                f"{self._name} got prediction={prediction!r}. Choose from {get_args(Prediction)}."
            )
        self.kl_coeff = kl_coeff
        self.prediction: Prediction = prediction

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _check_above_zero(self, **settings: float) -> None:
        for name, value in settings.items():
            if not value > 0:
                raise ValueError(f"{self._name} got {name}={value!r}. Give more than 0.")

    def _own_keys(self) -> list[NestedKey]:
        return [*super()._own_keys(), self.tensor_keys.advantage, self.tensor_keys.selected]

    def _advantage(self, batch: TensorDictBase) -> Tensor:
        advantage: Tensor = read(batch, self.tensor_keys.advantage, self._name)
        return advantage.reshape(-1)  # [M]

    def compare(self, noised: TensorDictBase, *, reference: bool = False) -> Comparison:
        """Predict a noised batch ``[M]`` with old, reference and policy, in this order.

        Args:
            noised: What `noise` returned, flattened.
            reference: Whether the loss itself needs the reference, whatever is selected.
        """
        selected = read(noised, self.tensor_keys.selected, self._name).reshape(-1)  # [M]
        x0 = self.predict(noised, reference=reference or self._needs_reference(selected))
        clean = noised[self.tensor_keys.latents].float()
        if self.prediction == "x0":
            policy, old, anchor, unit = x0.policy, x0.old, x0.reference, ones_like(x0.sigma)
        else:
            policy, old, clean = (
                to_velocity(x0.noisy, values, x0.sigma) for values in (x0.policy, x0.old, clean)
            )
            anchor, unit = x0.reference, x0.sigma
            anchor = None if anchor is None else to_velocity(x0.noisy, anchor, x0.sigma)
        kl = policy.new_zeros(()) if anchor is None else selective_kl(policy, anchor, selected)
        return Comparison(policy, old, anchor, clean, unit, kl, x0)

    def outcome(self, seen: Comparison, policy: Tensor, **metrics: Tensor) -> TensorDict:
        """Losses and metrics, ``[]`` each.

        Args:
            seen: What `compare` returned.
            policy: ``loss_policy``.
            metrics: More of them, whose gradient is cut off.
        """
        return TensorDict(
            {
                "loss_policy": policy,
                "loss_kl": self.kl_coeff * seen.kl,
                "kl": seen.kl.detach(),
                "old_deviation": (seen.policy.detach() - seen.old).square().mean(),
                **{name: value.detach() for name, value in metrics.items()},
            }
        )

    def _needs_reference(self, selected: Tensor) -> bool:
        if not selected.any():
            # Ranks that share parameters must all run the same passes, needed or not.
            return self.snapshots.sharded and REFERENCE in self.snapshots.names
        if REFERENCE not in self.snapshots.names:
            raise ValueError(
                f"samples are selected for the KL term, but the snapshots are "
                f"{self.snapshots.names}. Add {REFERENCE!r}, or RankDisagreement(mode='none')."
            )
        return True


def to_velocity(noisy: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """Velocity of the straight path from ``x0`` to noise, ``v = (x_t - x_0) / σ``."""
    return (noisy - x0) / sigma


def mean_square(error: Tensor) -> Tensor:
    """Mean square of each clip's entries, ``[M, ...]`` to ``[M]``."""
    return error.square().flatten(1).mean(dim=1)
