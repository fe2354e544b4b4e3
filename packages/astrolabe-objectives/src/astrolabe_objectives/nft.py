"""Negative-aware fine-tuning on the forward process: learn from good and bad clips alike.

Left out on purpose: 1) no likelihoods, so no SDE sampler; 2) no importance ratio, the clips come
from the "old" snapshot; 3) no value network, the group mean is the baseline.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor

from astrolabe_objectives import settings
from astrolabe_objectives.anchored import AnchoredLoss, Prediction, mean_square
from astrolabe_objectives.denoising import Draw, Levels
from astrolabe_objectives.kl import Reduction
from astrolabe_objectives.rounding import rounding
from astrolabe_objectives.snapshots import Snapshots


class NFTLoss(AnchoredLoss):
    """Forward-process negative-aware fine-tuning (Astrolabe eq. 1, 2; DiffusionNFT, 2509.16117).

    Reads ``("video","latents")``, ``"advantage"``, ``("kl","selected")``, where present
    ``("noisy","seed")``, and what the network reads besides noise; writes ``loss_policy``,
    ``loss_kl`` and the metrics ``kl``, ``old_deviation``, ``policy_positive``,
    ``policy_negative``, which carry no gradient.

    With ``r = clip(A / A_max, -1, 1) / 2 + ½``, the velocity ``v = (x_t - x_0) / σ`` of the
    straight path, and two implicit policies ``v± = v_old ± β (v_θ - v_old)`` the loss of a clip is
    ``r ‖v+ - v‖² + (1-r) ‖v- - v‖²``, the norm a mean over its entries. To it comes
    ``kl_coeff · L_KL``, with `selective_kl` against the snapshot ``"reference"``.

    Where the data come from ``old``, its minimiser is ``v_old + (2/β) α (v_pos - v_old)`` with
    ``α = E[r | x_t]`` and ``v_pos`` the mean velocity of the clips weighted by r (DiffusionNFT,
    theorem 3.2). While the policy equals ``old`` both implicit policies have the same error.

    Coming from DiffusionNFT's public trainer: its policy loss is ``A_max / β`` times this one with
    ``adaptive=True, prediction="x0"``, 5 times at β = 1 and 50 times at β = 0.1. AdamW does not
    mind, but the KL term does: its weight w there is ``kl_coeff = w β / A_max`` here, and
    unchanged it would weigh 5 to 50 times more. It takes the KL term over all samples
    (``RankDisagreement(mode="uniform")``) and of velocities, whatever the space of its policy loss;
    of ``prediction="x0"`` it is σ² times that. A limit on the norm of the gradient acts on the sum
    that is scaled.

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
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` of the losses, see `AnchoredLoss`.
        levels: ``"one"`` or ``"all"`` noise levels per clip, see `DenoisingLoss`.
        draw: ``"list"`` or ``"uniform"`` noise levels, see `DenoisingLoss`.
        seed: Start of the stream of levels and noise.

    Raises:
        ValueError: If a setting is outside its range, or samples are selected and there is no
            snapshot ``"reference"``.
    """

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
        reduction: Reduction = "mean",
        adaptive: bool = False,
        levels: Levels = "one",
        draw: Draw = "list",
        seed: int = 0,
    ) -> None:
        super().__init__(
            network,
            snapshots,
            sigmas,
            kl_coeff=kl_coeff,
            prediction=prediction,
            reduction=reduction,
            levels=levels,
            draw=draw,
            seed=seed,
        )
        self._check_above_zero(beta=beta, advantage_clip=advantage_clip)
        settings.switch(self._name, "adaptive", adaptive)
        self.beta = beta
        self.advantage_clip = advantage_clip
        self.adaptive = adaptive

    @dispatch(source="keyword_keys", auto_batch_size=False)  # type: ignore[untyped-decorator]
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Return losses and metrics, float32, for samples of any batch shape."""
        noised = self.noise(tensordict)
        weight = positive_weight(self._advantage(noised), self.advantage_clip)  # [M]
        seen = self.compare(noised)
        positive, negative = implicit_errors(
            seen.policy, seen.old, seen.clean, self.beta, seen.unit if self.adaptive else None
        )
        return self.outcome(
            seen,
            weight * positive + (1 - weight) * negative,
            policy_positive=positive,
            policy_negative=negative,
        )


def positive_weight(advantage: Tensor, advantage_clip: float) -> Tensor:
    """Probability that a clip is a good one, ``r = clip(A / A_max, -1, 1) / 2 + ½`` in [0, 1].

    Example:
        >>> import torch
        >>> positive_weight(torch.tensor([-9.0, 0.0, 2.5]), advantage_clip=5.0)
        tensor([0.0000, 0.5000, 0.7500])
    """
    return (advantage / advantage_clip).clamp(-1, 1) / 2 + 0.5


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
            each error is divided by its detached mean absolute error in those units, which counts
            as no less than 1e-5, nor than the rounding of the target.

    Returns:
        Mean squared error of the positive and of the negative policy, ``[M]`` each.
    """
    # This form, not (1-β) v_old + β v_θ: both errors are then exactly equal while v_θ = v_old.
    step = beta * (policy - old)
    errors = (old + step - target, old - step - target)
    squares = [mean_square(error) for error in errors]  # [M]
    if adaptive_unit is not None:

        def size(values: Tensor) -> Tensor:
            return (values.detach().abs() * adaptive_unit).flatten(1).mean(dim=1)

        # 1e-5 as in the public code of DiffusionNFT.
        floor = rounding(size(target)).to(target.dtype).clamp(min=1e-5)
        squares = [
            square / torch.maximum(size(error), floor)
            for square, error in zip(squares, errors, strict=True)
        ]
    return squares[0], squares[1]
