"""Reward-weighted regression: imitate every clip, the better ones more.

Left out on purpose: anything that pushes away from bad clips. This is the baseline that shows what
negative samples are worth.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey
from torch import Tensor

from astrolabe_objectives.anchored import AnchoredLoss, Prediction, mean_square
from astrolabe_objectives.denoising import Draw, Levels
from astrolabe_objectives.keys import WEIGHT
from astrolabe_objectives.kl import Reduction
from astrolabe_objectives.snapshots import Snapshots


class RWRLoss(AnchoredLoss):
    """Reward-weighted regression (Peters and Schaal 2007; for diffusion: DDPO, 2305.13301, sec. 5).

    Reads ``("video","latents")``, ``"advantage"``, ``("kl","selected")``, where present
    ``("noisy","seed")``, and what the network reads besides noise; writes ``loss_policy``,
    ``loss_kl`` and the metrics ``kl``, ``old_deviation``, ``policy_error``, which carry no
    gradient.

    The loss of a clip is ``w ‖v_θ - v‖²``, the norm a mean over its entries, with the weights
    ``w = exp(A / temperature)`` scaled to mean 1 over the batch that `noise` is given, then cut at
    ``weight_clip``. To it comes ``kl_coeff · L_KL`` as in every loss here. The minimiser is the
    mean of the clips that share ``x_t``, weighted by w.

    A clip of advantage exactly 0 has weight 0: it was not judged, or its group is of one quality.

    Args:
        network: Any TensorDict module that predicts clean latents from noisy ones.
        snapshots: Copies of the trained parameters: ``"old"``, and ``"reference"`` if ever a sample
            is selected for the KL term.
        sigmas: Noise levels in (0, 1], those at which the model samples.
        temperature: Advantage that makes a clip e times as heavy, above 0. Towards 0 only the best
            clip of the batch counts; a large one makes this plain self-imitation.
        weight_clip: Largest weight, above 0; 20 as in advantage-weighted regression (1910.00177).
        kl_coeff: Weight of the KL term, 0 or more.
        prediction: Space of all squared distances, ``"velocity"`` or ``"x0"``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` of the losses, see `AnchoredLoss`.
        levels: ``"one"`` or ``"all"`` noise levels per clip, see `DenoisingLoss`.
        draw: ``"list"`` or ``"uniform"`` noise levels, see `DenoisingLoss`.
        seed: Start of the stream of levels and noise.

    Raises:
        ValueError: If a setting is outside its range, or samples are selected and there is no
            snapshot ``"reference"``.
    """

    whole: ClassVar[bool] = True  # a weight is relative to the mean of all
    out_keys: ClassVar[list[str]] = [
        "loss_policy",
        "loss_kl",
        "kl",
        "old_deviation",
        "policy_error",
    ]

    def __init__(
        self,
        network: TensorDictModuleBase,
        snapshots: Snapshots,
        sigmas: Sequence[float],
        *,
        temperature: float = 1.0,
        weight_clip: float = 20.0,
        kl_coeff: float = 1e-4,
        prediction: Prediction = "velocity",
        reduction: Reduction = "mean",
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
        self._check_above_zero(temperature=temperature, weight_clip=weight_clip)
        self.temperature = temperature
        self.weight_clip = weight_clip

    @dispatch(source="keyword_keys", auto_batch_size=False)  # type: ignore[untyped-decorator]
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Return losses and metrics, float32, for samples of any batch shape."""
        noised = self.noise(tensordict)
        weight = noised[WEIGHT]  # [M]
        seen = self.compare(noised)
        error = mean_square(seen.policy - seen.clean)
        return self.outcome(seen, weight * error, policy_error=error)

    def _noise(self, batch: TensorDictBase) -> TensorDictBase:
        noised = super()._noise(batch)
        # Here, not in `forward`: the mean must be that of the whole batch, however it is split.
        weight = regression_weights(self._advantage(noised), self.temperature, self.weight_clip)
        return noised.set(WEIGHT, weight)

    def _drawn_keys(self) -> list[NestedKey]:
        return [*super()._drawn_keys(), WEIGHT]


def regression_weights(advantage: Tensor, temperature: float, weight_clip: float) -> Tensor:
    """Weight of every clip, ``exp(A / temperature)`` over its mean, cut at ``weight_clip``.

    Args:
        advantage: ``[M]``; clips of advantage 0 get weight 0 and are left out of the mean.
        temperature: Above 0.
        weight_clip: Above 0.

    Example:
        >>> regression_weights(torch.tensor([0.0, 1.0, 1.0]), temperature=1.0, weight_clip=20.0)
        tensor([0., 1., 1.])
        >>> regression_weights(torch.tensor([-9.0, 9.0]), temperature=1.0, weight_clip=1.5)
        tensor([3.0460e-08, 1.5000e+00])
    """
    judged = advantage != 0
    scaled = (advantage / temperature).masked_fill(~judged, -torch.inf)
    # A softmax of -∞ alone is not a number.
    weight = torch.where(judged, scaled.softmax(dim=0) * judged.sum(), 0.0)
    return weight.clamp(max=weight_clip)
