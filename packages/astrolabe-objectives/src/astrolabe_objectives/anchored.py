"""The part that all losses on judged samples share: a space of errors, and the pull to a reference.

Left out on purpose: what a loss learns from an advantage. That is one file for each objective.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor

from astrolabe_objectives import settings
from astrolabe_objectives.batch import read_numbers
from astrolabe_objectives.denoising import DenoisingLoss, Draw, Levels, Predictions
from astrolabe_objectives.keys import ADVANTAGE, SELECTED
from astrolabe_objectives.kl import Reduction, selective_kl
from astrolabe_objectives.samples import size_of
from astrolabe_objectives.snapshots import REFERENCE, Snapshots

Prediction = Literal["velocity", "x0"]


@dataclass(frozen=True)
class Comparison:
    """Predictions of one noised batch in the space of the loss; only ``policy`` has a gradient."""

    policy: Tensor
    """``[M, *event]``, float32 like all below."""
    old: Tensor
    """Prediction with the weights that sampled the data."""
    reference: Tensor | None
    """Prediction of the KL anchor; None where it was not needed."""
    clean: Tensor
    """What a perfect prediction of the sample would be."""
    unit: Tensor
    """``[M, 1, ...]``, size of 1 in this space in units of clean latents."""
    kl: Tensor
    """``L_KL``, ``[]``, or ``[M]`` with ``reduction="none"``; 0 when nothing is selected."""
    mean_kl: Tensor
    """The same as a mean over the selected samples, ``[]``, without a gradient."""
    x0: Predictions
    """The same predictions as clean latents."""


class AnchoredLoss(DenoisingLoss):
    """Base of losses that learn from advantages and are held to a reference.

    To what `DenoisingLoss` reads come ``"advantage"`` and ``("kl","selected")``, which may be
    missing where no sample can be selected: ``kl_coeff`` is 0, or there is no snapshot
    ``"reference"``. A subclass calls `noise`, then `compare`, and returns `outcome`: its own
    ``loss_policy``, with ``loss_kl = kl_coeff · L_KL`` (`selective_kl` against the snapshot
    ``"reference"``) and the metrics ``kl`` and ``old_deviation`` that all objectives share.

    With ``reduction="mean"`` ``loss_policy`` is the mean over the samples (of `DPOLoss`: pairs) and
    ``loss_kl`` over the selected ones; ``"sum"`` is their sum, ``"none"`` gives one number for each
    row that `noise` returns, 0 in ``loss_kl`` where it is not selected. Metrics are means always.
    Samples that TorchRL marks as padding are left out of all of it, see `noise`; weights of a
    prioritised buffer are not used.

    Args:
        network: Any TensorDict module that predicts clean latents from noisy ones.
        snapshots: Copies of the trained parameters: ``"old"``, and ``"reference"`` if ever a sample
            is selected for the KL term.
        sigmas: Noise levels in (0, 1], those at which the model samples.
        kl_coeff: Weight of the KL term, 0 or more.
        prediction: Space of all squared distances. ``"velocity"`` is the paper's; ``"x0"``, the
            public code's, weighs a sample by σ² relative to it.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` of the losses.
        levels: ``"one"`` or ``"all"`` noise levels per sample, see `DenoisingLoss`.
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
            advantage: How much better than its group a sample is.
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
        reduction: Reduction = "mean",
        levels: Levels = "one",
        draw: Draw = "list",
        seed: int = 0,
    ) -> None:
        self._kl_coeff = 0.0  # checked below: keys depend on it
        super().__init__(network, snapshots, sigmas, levels=levels, draw=draw, seed=seed)
        self.kl_coeff = kl_coeff
        settings.choice(self._name, "prediction", prediction, get_args(Prediction))
        settings.choice(self._name, "reduction", reduction, get_args(Reduction))
        self.prediction: Prediction = prediction
        self.reduction: Reduction = reduction

    @property
    def kl_coeff(self) -> float:
        """Weight of the KL term, 0 or more; at 0 ``("kl","selected")`` may be missing."""
        return self._kl_coeff

    @kl_coeff.setter
    def kl_coeff(self, value: float) -> None:
        settings.number(self._name, "kl_coeff", value, least=0)
        self._kl_coeff = value
        self._set_in_keys()

    def _optional_keys(self) -> list[NestedKey]:
        selected = self.tensor_keys.selected
        return [*super()._optional_keys(), *([] if selected in self.in_keys else [selected])]

    def _check_above_zero(self, **values: float) -> None:
        for name, value in values.items():
            settings.number(self._name, name, value, above=0)

    def _own_keys(self) -> list[NestedKey]:
        marks = self.kl_coeff > 0 and REFERENCE in self.snapshots.names
        selected = [self.tensor_keys.selected] if marks else []
        return [*super()._own_keys(), self.tensor_keys.advantage, *selected]

    def _batch_size(self, tensordict: TensorDictBase) -> torch.Size:
        return size_of(tensordict, self.tensor_keys.advantage, self._name)

    def _samples(self, tensordict: TensorDictBase) -> TensorDictBase:
        batch = super()._samples(tensordict)
        if not torch.compiler.is_compiling():
            self._check_finite(batch)
            self._check_devices(batch, self._selected(batch))
        return batch

    def _check_finite(self, batch: TensorDictBase) -> None:
        key = self.tensor_keys.advantage
        bad = ~read_numbers(batch, key, self._name).isfinite()
        if not bad.is_meta and bad.any():
            raise ValueError(
                f"{self._name} reads {key!r}, which is not finite for {int(bad.sum())} of "
                f"{len(bad)} samples, first for number {int(bad.nonzero()[0])}. Give 0 to samples "
                "without a score, as GroupAdvantage does, or leave them out."
            )

    def _check_devices(self, batch: TensorDictBase, selected: Tensor) -> None:
        at = batch[self.tensor_keys.latents].device
        if at.type == "meta":  # shapes alone are traced: small numbers may be real
            return
        advantage = self._advantage(batch)
        for key, value in (
            (self.tensor_keys.advantage, advantage),
            (self.tensor_keys.selected, selected),
        ):
            if value.device != at:
                raise ValueError(
                    f"{self._name} reads {key!r} on {value.device}, and "
                    f"{self.tensor_keys.latents!r} on {at}. Move the batch as a whole, with "
                    "batch.to(...)."
                )

    def _advantage(self, batch: TensorDictBase) -> Tensor:
        advantage: Tensor = batch[self.tensor_keys.advantage]
        return advantage.reshape(-1)  # [M]

    def _selected(self, batch: TensorDictBase) -> Tensor:
        """Where the policy is held to the reference, bool ``[M]``."""
        key = self.tensor_keys.selected
        if key not in self.in_keys and batch.get(key, None) is None:
            advantage = self._advantage(batch)
            return advantage.new_zeros(advantage.shape, dtype=torch.bool)
        if batch.get(key, None) is None:
            raise KeyError(
                f"{self._name} reads {key!r}, which this batch does not hold: where the policy is "
                "held to the reference. Run RankDisagreement first, or set kl_coeff=0."
            )
        return read_numbers(batch, key, self._name, kind="bool")

    def compare(self, noised: TensorDictBase, *, reference: bool = False) -> Comparison:
        """Predict a noised batch ``[M]`` with old, reference and policy, in this order.

        Args:
            noised: What `noise` returned, flattened.
            reference: Whether the loss itself needs the reference, whatever is selected.
        """
        selected = self._selected(noised)
        x0 = self.predict(noised, reference=reference or self._needs_reference(selected))
        clean = noised[self.tensor_keys.latents].float()
        if self.prediction == "x0":
            policy, old, anchor, unit = x0.policy, x0.old, x0.reference, torch.ones_like(x0.sigma)
        else:
            policy, old, clean = (
                to_velocity(x0.noisy, values, x0.sigma) for values in (x0.policy, x0.old, clean)
            )
            anchor, unit = x0.reference, x0.sigma
            anchor = None if anchor is None else to_velocity(x0.noisy, anchor, x0.sigma)
        if anchor is None:
            mean = policy.new_zeros(())
            kl = policy.new_zeros(selected.shape) if self.reduction == "none" else mean
        else:
            kl = selective_kl(policy, anchor, selected, self.reduction)
            mean = kl if self.reduction == "mean" else selective_kl(policy, anchor, selected)
        return Comparison(policy, old, anchor, clean, unit, kl, mean.detach(), x0)

    def outcome(self, seen: Comparison, policy: Tensor, **metrics: Tensor) -> TensorDict:
        """Losses and metrics, ``[]`` each but for losses with ``reduction="none"``.

        Args:
            seen: What `compare` returned.
            policy: ``loss_policy`` of each sample, ``[M]``; a loss that only ever is a mean may
                give that, ``[]``.
            metrics: More of them, whose gradient is cut off; their mean is taken.

        Raises:
            ValueError: If ``policy`` is a mean, and another ``reduction`` was asked for.
        """
        if policy.ndim == 0 and self.reduction != "mean":
            raise ValueError(
                f"{self._name} has reduction={self.reduction!r}, but gives outcome() the mean of "
                "its loss. Give it the loss of each sample, [M]."
            )
        return TensorDict(
            {
                "loss_policy": _reduced(policy, self.reduction),
                "loss_kl": self.kl_coeff * seen.kl,
                "kl": seen.mean_kl,
                "old_deviation": (seen.policy.detach() - seen.old).square().mean(),
                **{name: value.detach().mean() for name, value in metrics.items()},
            }
        )

    def _needs_reference(self, selected: Tensor) -> bool:
        if torch.compiler.is_compiling():  # which passes are run cannot depend on values
            return self.tensor_keys.selected in self.in_keys
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
    """Mean square of each sample's entries, ``[M, ...]`` to ``[M]``."""
    return error.square().flatten(1).mean(dim=1)


def _reduced(each: Tensor, reduction: Reduction) -> Tensor:
    if reduction == "none":
        return each
    return each.sum() if reduction == "sum" else each.mean()
