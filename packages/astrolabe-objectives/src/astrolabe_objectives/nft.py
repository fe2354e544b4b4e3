"""Negative-aware fine-tuning on the forward process: learn from good and bad clips alike.

Left out on purpose: 1) no likelihoods, so no SDE sampler; 2) no importance ratio, the clips come
from the "old" snapshot; 3) no value network, the group mean is the baseline.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey
from torch import Tensor

from astrolabe_objectives.batch import read
from astrolabe_objectives.denoising import DenoisingLoss, Levels, Predictions
from astrolabe_objectives.keys import ADVANTAGE, SELECTED
from astrolabe_objectives.kl import selective_kl
from astrolabe_objectives.snapshots import REFERENCE, Snapshots

Prediction = Literal["velocity", "x0"]


class NFTLoss(DenoisingLoss):
    """Forward-process negative-aware fine-tuning (Astrolabe eq. 1, 2; DiffusionNFT, 2509.16117).

    Reads ``("video","latents")``, ``"advantage"``, ``("kl","selected")`` and what the network reads
    besides noise; writes ``loss_policy``, ``loss_kl`` and the metrics ``kl``, ``old_deviation``,
    ``policy_positive``, ``policy_negative``, which carry no gradient.

    With ``r = clip(A / A_max, -1, 1) / 2 + ½``, the velocity ``v = (x_t - x_0) / σ`` of the
    straight path, and two implicit policies ``v± = v_old ± β (v_θ - v_old)`` the loss of a clip is
    ``r ‖v+ - v‖² + (1-r) ‖v- - v‖²``, the norm a mean over its entries. To it comes
    ``kl_coeff · L_KL``, with `selective_kl` against the snapshot ``"reference"``.

    Where the data come from ``old``, its minimiser is ``v_old + (2/β) α (v_pos - v_old)`` with
    ``α = E[r | x_t]`` and ``v_pos`` the mean velocity of the clips weighted by r (DiffusionNFT,
    theorem 3.2). While the policy equals ``old`` both implicit policies have the same error.

    Args:
        network: Any TensorDict module that predicts clean latents from noisy ones.
        snapshots: Copies of the trained parameters: ``"old"``, and ``"reference"`` if ever a sample
            is selected for the KL term.
        sigmas: Noise levels in (0, 1], those at which the model samples.
        beta: ``β``, step between old and implicit policies, above 0. Astrolabe: 1.0; its public
            presets: 0.1.
        kl_coeff: Weight of the KL term, 0 or more.
        advantage_clip: ``A_max``, in standard deviations, above 0.
        prediction: Space of all squared distances. ``"velocity"`` is the paper's; ``"x0"``, the
            public code's, weighs a clip by σ² relative to it.
        adaptive: Divide each squared error by the detached mean ``|x0± - x_0|`` of its clip, as
            DiffusionNFT does. With few coarse steps this explodes (Astrolabe, fig. 8b): for
            ablations only.
        levels: ``"one"`` or ``"all"`` noise levels per clip, see `DenoisingLoss`.
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
    out_keys: ClassVar[list[str]] = [
        "loss_policy",
        "loss_kl",
        "kl",
        "old_deviation",
        "policy_positive",
        "policy_negative",
    ]

    def __init__(
        self,
        network: TensorDictModuleBase,
        snapshots: Snapshots,
        sigmas: Sequence[float],
        *,
        beta: float = 1.0,
        kl_coeff: float = 1e-4,
        advantage_clip: float = 5.0,
        prediction: Prediction = "velocity",
        adaptive: bool = False,
        levels: Levels = "one",
        seed: int = 0,
    ) -> None:
        super().__init__(network, snapshots, sigmas, levels=levels, seed=seed)
        for name, value in (("beta", beta), ("advantage_clip", advantage_clip)):
            if not value > 0:
                raise ValueError(f"NFTLoss got {name}={value!r}. Give more than 0.")
        if not kl_coeff >= 0:
            raise ValueError(f"NFTLoss got kl_coeff={kl_coeff!r}. Give 0 or more.")
        if prediction not in get_args(Prediction):
            raise ValueError(
                f"NFTLoss got prediction={prediction!r}. Choose from {get_args(Prediction)}."
            )
        self.beta = beta
        self.kl_coeff = kl_coeff
        self.advantage_clip = advantage_clip
        self.prediction: Prediction = prediction
        self.adaptive = adaptive

    @dispatch  # type: ignore[untyped-decorator]  # tensordict ships no types
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Return losses and metrics, float32 ``[]`` each, for clips of any batch shape."""
        noised = self.noise(tensordict)
        weight = positive_weight(
            read(noised, self.tensor_keys.advantage, "NFTLoss").reshape(-1), self.advantage_clip
        )  # [M]
        selected = read(noised, self.tensor_keys.selected, "NFTLoss").reshape(-1)  # [M]
        predictions = self.predict(noised, reference=self._needs_reference(selected))
        policy, old, reference, clean, unit = self._in_space(
            predictions, noised[self.tensor_keys.latents].float()
        )
        positive, negative = implicit_errors(
            policy, old, clean, self.beta, unit if self.adaptive else None
        )
        kl = (
            policy.new_zeros(()) if reference is None else selective_kl(policy, reference, selected)
        )
        return TensorDict(
            {
                "loss_policy": (weight * positive + (1 - weight) * negative).mean(),
                "loss_kl": self.kl_coeff * kl,
                "kl": kl.detach(),
                "old_deviation": (policy.detach() - old).square().mean(),
                "policy_positive": positive.detach().mean(),
                "policy_negative": negative.detach().mean(),
            }
        )

    def _own_keys(self) -> list[NestedKey]:
        return [*super()._own_keys(), self.tensor_keys.advantage, self.tensor_keys.selected]

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

    def _in_space(
        self, predictions: Predictions, latents: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
        """Policy, old, reference and target in the space of the loss, and its unit in x0 units."""
        p = predictions
        if self.prediction == "x0":
            return p.policy, p.old, p.reference, latents, torch.ones_like(p.sigma)
        policy, old, target = (
            to_velocity(p.noisy, x0, p.sigma) for x0 in (p.policy, p.old, latents)
        )
        reference = None if p.reference is None else to_velocity(p.noisy, p.reference, p.sigma)
        return policy, old, reference, target, p.sigma


def positive_weight(advantage: Tensor, advantage_clip: float) -> Tensor:
    """Probability that a clip is a good one, ``r = clip(A / A_max, -1, 1) / 2 + ½`` in [0, 1].

    Example:
        >>> positive_weight(torch.tensor([-9.0, 0.0, 2.5]), advantage_clip=5.0)
        tensor([0.0000, 0.5000, 0.7500])
    """
    return (advantage / advantage_clip).clamp(-1, 1) / 2 + 0.5


def to_velocity(noisy: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """Velocity of the straight path from ``x0`` to noise, ``v = (x_t - x_0) / σ``."""
    return (noisy - x0) / sigma


def implicit_errors(
    policy: Tensor, old: Tensor, target: Tensor, beta: float, adaptive_unit: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Squared errors of the implicit policies ``v± = v_old ± β (v_θ - v_old)`` (Astrolabe eq. 1).

    Args:
        policy: ``v_θ``, ``[M, ...]``, with the gradient.
        old: ``v_old``, ``[M, ...]``.
        target: ``v`` of the clip, ``[M, ...]``.
        beta: ``β``, above 0.
        adaptive_unit: None, or the size of 1 here in units of clean latents, ``[M, 1, ...]``; then
            each error is divided by its detached mean absolute error in those units.

    Returns:
        Mean squared error of the positive and of the negative policy, ``[M]`` each.
    """
    # This form, not (1-β) v_old + β v_θ: both errors are then exactly equal while v_θ = v_old.
    step = beta * (policy - old)
    errors = (old + step - target, old - step - target)
    squares = [error.square().flatten(1).mean(dim=1) for error in errors]  # [M]
    if adaptive_unit is not None:
        # 1e-5 as in the public code of DiffusionNFT.
        sizes = [(error.detach().abs() * adaptive_unit).flatten(1).mean(dim=1) for error in errors]
        squares = [
            square / size.clamp(min=1e-5) for square, size in zip(squares, sizes, strict=True)
        ]
    return squares[0], squares[1]
