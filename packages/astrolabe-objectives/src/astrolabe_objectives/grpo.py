"""Policy gradient on the steps of a few-step sampler, which are Gaussian as they are.

Left out on purpose: 1) no SDE sampler, the consistency sampler already draws fresh noise at every
step; 2) no stored log-probabilities, "old" is at hand and computes them by the same code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey
from torch import Tensor

from astrolabe_objectives.anchored import AnchoredLoss, Prediction, mean_square
from astrolabe_objectives.denoising import Levels
from astrolabe_objectives.keys import NEXT, NEXT_SIGMA, STEPS
from astrolabe_objectives.kl import Reduction
from astrolabe_objectives.noise import as_level, seeded, told
from astrolabe_objectives.samples import read_latents, read_seeds
from astrolabe_objectives.snapshots import Snapshots


class CMGRPOLoss(AnchoredLoss):
    """Clipped policy gradient on the consistency sampler's own kernel (CM-GRPO, 2605.15190).

    Reads ``("steps","latents")``, ``("video","latents")``, ``"advantage"``, ``("kl","selected")``,
    where present ``("noisy","seed")``, and what the network reads besides noise; writes
    ``loss_policy``, ``loss_kl`` and the metrics ``kl``, ``old_deviation``, ``ratio``,
    ``clipped_fraction``, ``step_residual``, which carry no gradient. With a seed it is the step of
    a clip that follows from it.

    A sampler goes from ``x`` at level σ to ``x' = (1 - σ') x_0(x) + σ' ε`` at the next level σ', so
    the step has the density ``N((1 - σ') x_0(x), σ'² I)``. With ``ρ`` the exponential of how much
    more likely the policy makes the step that was taken than ``old``, as a mean over its entries
    (as Flow-GRPO, 2505.05470, and DanceGRPO, 2505.07818, do), the loss of a step is
    ``-min(ρ A, clip(ρ, 1 - ε, 1 + ε) A)`` (PPO). To it comes ``kl_coeff · L_KL``. Chunks that were
    sampled one after the other are one step together if the network, as in sampling, sees the clean
    chunks before each.

    Coming from Flow-GRPO's public trainer: it leaves out samples of advantage 0 before it forms
    batches, so its loss is a mean over the others; here it is over all, which is theirs times the
    share of the others. Its KL term is that of the step's two Gaussians, ``‖Δμ‖² / 2σ'²``,
    and acts on every sample; here it is ‖Δv‖², or ‖Δx_0‖² = σ² ‖Δv‖² of
    ``prediction="x0"``, which their term weighs with ``((1 - σ') / σ')² / 2``. Its steps are those
    of an SDE that is added to the sampler; ours are the sampler's own, so the ratios differ.

    The last level is not trained: from there the sampler goes to the clean clip without noise.

    While the policy equals ``old`` ρ is 1. ``step_residual``, the mean square of the noise that
    ``old`` takes the steps to have had, is near 1 if the steps, their levels and ``old`` belong
    together.

    Args:
        network: Any TensorDict module that predicts clean latents from noisy ones.
        snapshots: Copies of the trained parameters: ``"old"``, which sampled the steps, and
            ``"reference"`` if ever a sample is selected for the KL term.
        sigmas: The K noise levels that the sampler visits, falling, in (0, 1]; at least 2.
        ratio_clip: ``ε``, above 0. Ratios of a mean log-probability lie close to 1: Flow-GRPO and
            DanceGRPO take 1e-4.
        advantage_clip: Largest absolute advantage, above 0.
        kl_coeff: Weight of the KL term, 0 or more.
        prediction: Space of KL term and deviation, ``"velocity"`` or ``"x0"``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` of the losses, see `AnchoredLoss`.
        levels: ``"one"`` draws one of the K-1 steps per clip; ``"all"`` takes all of them.
        seed: Start of the stream of steps.

    Raises:
        ValueError: If a setting is outside its range, samples are selected and there is no snapshot
            ``"reference"``, or the batch holds another number of steps than there are levels.
    """

    @dataclass
    class _AcceptedKeys(AnchoredLoss._AcceptedKeys):
        """Keys that `set_keys` can rename, besides those of `AnchoredLoss`.

        Attributes:
            steps: States that the sampler visited.
        """

        steps: NestedKey = STEPS

    default_keys: ClassVar[type] = _AcceptedKeys
    out_keys: ClassVar[list[str]] = [
        "loss_policy",
        "loss_kl",
        "kl",
        "old_deviation",
        "ratio",
        "clipped_fraction",
        "step_residual",
    ]

    def __init__(
        self,
        network: TensorDictModuleBase,
        snapshots: Snapshots,
        sigmas: Sequence[float],
        *,
        ratio_clip: float = 1e-4,
        advantage_clip: float = 5.0,
        kl_coeff: float = 1e-4,
        prediction: Prediction = "velocity",
        reduction: Reduction = "mean",
        levels: Levels = "one",
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
            seed=seed,
        )
        self._check_above_zero(ratio_clip=ratio_clip, advantage_clip=advantage_clip)
        if len(self.sigmas) < 2 or any(later >= sigma for sigma, later in pairwise(self.sigmas)):
            raise ValueError(
                f"CMGRPOLoss got sigmas={self.sigmas!r}. Give two or more falling levels, those "
                "of the sampler: a step goes from one to the next."
            )
        self.ratio_clip = ratio_clip
        self.advantage_clip = advantage_clip

    @dispatch(source="keyword_keys", auto_batch_size=False)  # type: ignore[untyped-decorator]
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Return losses and metrics, float32, for samples of any batch shape."""
        noised = self.noise(tensordict)
        advantage = self._advantage(noised).clamp(-self.advantage_clip, self.advantage_clip)
        after = noised[NEXT].float()  # [M, *event]
        sigma = as_level(noised[NEXT_SIGMA], after).float()
        seen = self.compare(noised)
        shift = (1 - sigma) * (seen.x0.policy - seen.x0.old) / sigma
        residual = (after - (1 - sigma) * seen.x0.old) / sigma
        ratio = log_ratio(shift, residual).exp()  # [M]
        clipped = ratio.clamp(1 - self.ratio_clip, 1 + self.ratio_clip)
        gain = torch.minimum(ratio * advantage, clipped * advantage)
        return self.outcome(
            seen,
            -gain,
            ratio=ratio,
            clipped_fraction=(gain < ratio * advantage).float(),
            step_residual=mean_square(residual),
        )

    def _noise(self, batch: TensorDictBase) -> TensorDictBase:
        """Choose steps of clips ``[M]``; nothing is noised, the sampler did."""
        steps = read_latents(batch, self.tensor_keys.steps, self._name, finite=True)
        event = batch[self.tensor_keys.latents].shape[1:]
        count = len(self.sigmas)
        if steps.shape[1:] != (count, *event):
            raise ValueError(
                f"{self.tensor_keys.steps!r} is {tuple(steps.shape)} with the batch flattened, not "
                f"[M, K, *event] with one state {tuple(event)} for each of the K={count} levels "
                f"{self.sigmas}. Give CMGRPOLoss the levels that the sampler visited."
            )
        clips = len(steps)
        batch = batch.exclude(self.tensor_keys.steps)
        rows = torch.arange(clips)
        if self.levels == "all":
            rows = rows.repeat(count - 1)
            step = torch.arange(count - 1).repeat_interleave(clips)
            batch = batch[rows]
        else:
            step = self._draw_steps(clips, read_seeds(batch, self.tensor_keys.seed, self._name))
        grid = torch.tensor(self.sigmas)
        level = grid[step].to(steps.device)
        batch.set(self.tensor_keys.noisy, steps[rows, step])
        batch.set(self.tensor_keys.sigma, told(level, event))  # [M, f], or [M]
        batch.set(NEXT, steps[rows, step + 1])
        return batch.set(NEXT_SIGMA, grid[step + 1].to(steps.device))

    def _draw_steps(self, clips: int, seeds: Tensor | None) -> Tensor:
        """One of the K-1 steps for each clip, ``[M]``."""
        steps = len(self.sigmas) - 1
        if seeds is None:
            return torch.randint(steps, (clips,), generator=self._source.generator)
        drawn = [torch.randint(steps, (1,), generator=generator) for generator in seeded(seeds)]
        return torch.tensor(drawn, dtype=torch.int64)

    def _drawn_keys(self) -> list[NestedKey]:
        return [*super()._drawn_keys(), NEXT, NEXT_SIGMA]

    def _own_keys(self) -> list[NestedKey]:
        return [*super()._own_keys(), self.tensor_keys.steps]


def log_ratio(shift: Tensor, residual: Tensor) -> Tensor:
    """Mean over the entries of ``log N(x'; μ + shift) - log N(x'; μ)`` at unit variance.

    Written as one product, which is exactly 0 for no shift and keeps the digits that the difference
    of two log-densities would lose.

    Args:
        shift: How far the policy moves the mean, in standard deviations, ``[M, ...]``.
        residual: ``x' - μ`` in standard deviations, ``[M, ...]``.

    Returns:
        ``[M]``.

    Example:
        >>> log_ratio(torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [2.0]]))
        tensor([0.0000, 1.5000])
    """
    return (shift * (residual - shift / 2)).flatten(1).mean(dim=1)
