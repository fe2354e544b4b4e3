"""Direct preference optimisation: the best clip of a group against its worst.

Left out on purpose: everything between the two. The advantage only says which clip is which.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey
from torch import Tensor
from torch.nn.functional import logsigmoid

from astrolabe_objectives.anchored import AnchoredLoss, Prediction, mean_square
from astrolabe_objectives.batch import group_ids
from astrolabe_objectives.denoising import Draw, Levels
from astrolabe_objectives.keys import GROUP, INDEX, PAIR
from astrolabe_objectives.kl import Reduction
from astrolabe_objectives.rounding import tied
from astrolabe_objectives.snapshots import REFERENCE, Snapshots


class DPOLoss(AnchoredLoss):
    """Diffusion-DPO (2311.12908, eq. 14) on the best and the worst clip of every group.

    Reads ``("video","latents")``, ``"advantage"``, ``("kl","selected")``, ``("prompt","group")``,
    where present ``("window","index")`` and ``("noisy","seed")``, and what the network reads
    besides noise; writes ``loss_policy``, ``loss_kl`` and the metrics ``kl``, ``old_deviation``,
    ``best_error``, ``worst_error``, ``preference_accuracy``, which carry no gradient.

    Both clips of a pair are noised with the same σ and ε, drawn from the seed of the best one if
    there are seeds. With ``e = ‖v - v_clip‖²`` (a mean over the entries) the implicit reward of a
    clip is ``-(β/2) (e_θ - e_ref)``, and the loss of a pair ``-log sigmoid`` of the best clip's
    reward minus the worst one's. To it comes ``kl_coeff · L_KL`` over the selected clips of the
    pairs. While the policy equals the reference the loss is log 2.

    Coming from Diffusion-DPO's public trainer: it has the same ``-β/2`` and means over the entries,
    with β from 2000 to 5000, but its errors are of the predicted noise, and pairs are given. The
    error of a velocity is 1 / (1 - σ)² times that of noise, so a β does not carry over at once.

    `noise` picks the pairs and returns ``[P, 2]``, best and worst: whoever splits a batch splits
    it by pairs, so a micro-batch of m goes through the network as 2m clips. Pairs are made inside
    the batch that `noise` is given: if that is only a part of what was sampled, the extremes of a
    group may lie elsewhere. Clips of advantage exactly 0, which were not judged or are average, are
    in no pair. A batch without any pair gives one clip against itself, which teaches nothing: its
    metrics of pairs are NaN.

    Args:
        network: Any TensorDict module that predicts clean latents from noisy ones.
        snapshots: Copies of the trained parameters, ``"old"`` and ``"reference"``.
        sigmas: Noise levels in (0, 1], those at which the model samples.
        beta: ``β``, how closely the policy is held to the reference, above 0; 2000 as in
            Diffusion-DPO for errors that are means over the entries.
        kl_coeff: Weight of the KL term, 0 or more.
        prediction: Space of all squared distances, ``"velocity"`` or ``"x0"``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` of the losses, see `AnchoredLoss`.
        levels: ``"one"`` or ``"all"`` noise levels per pair, see `DenoisingLoss`.
        draw: ``"list"`` or ``"uniform"`` noise levels, see `DenoisingLoss`.
        seed: Start of the stream of levels and noise.

    Raises:
        ValueError: If a setting is outside its range, there is no snapshot ``"reference"``, or a
            noised batch is not one of pairs.
    """

    @dataclass
    class _AcceptedKeys(AnchoredLoss._AcceptedKeys):
        """Keys that `set_keys` can rename, besides those of `AnchoredLoss`.

        Attributes:
            group: Clips compete if these are equal, and so are those of ``index``.
            index: Windows of a video, see ``group``; may be missing.
        """

        group: NestedKey = GROUP
        index: NestedKey = INDEX

    default_keys: ClassVar[type] = _AcceptedKeys
    whole: ClassVar[bool] = True  # pairs are of any two samples
    out_keys: ClassVar[list[str]] = [
        "loss_policy",
        "loss_kl",
        "kl",
        "old_deviation",
        "best_error",
        "worst_error",
        "preference_accuracy",
    ]

    def __init__(
        self,
        network: TensorDictModuleBase,
        snapshots: Snapshots,
        sigmas: Sequence[float],
        *,
        beta: float = 2000.0,
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
        self._check_above_zero(beta=beta)
        if REFERENCE not in snapshots.names:
            raise ValueError(
                f"DPOLoss measures rewards from a reference, but the snapshots are "
                f'{snapshots.names}. Make them with Snapshots(network, "old", "reference").'
            )
        self.beta = beta

    def _optional_keys(self) -> list[NestedKey]:
        return [*super()._optional_keys(), self.tensor_keys.index]

    def noise(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Pick the pairs of a batch and add noise, the same to both clips of a pair.

        A batch that holds noise already keeps it.

        Returns:
            A new TensorDict ``[P, 2]``, best and worst of P pairs; with ``levels="all"`` every pair
            comes once for each level.

        Raises:
            KeyError: If the batch lacks an entry.
            TypeError: If an entry is of a wrong kind.
            ValueError: If an entry is not of the batch, an advantage not finite, or a seed not in
                [0, 2³²).
        """
        if self._is_noised(tensordict):
            return tensordict
        batch = self._samples(tensordict)  # [M]
        keys, advantage = self.tensor_keys, self._advantage(batch)
        ids = group_ids(batch, keys.group, keys.index, self._name, like=advantage)
        pairs = best_and_worst(advantage, ids)
        return self._noise(batch[pairs].set(PAIR, pairs))

    @dispatch(source="keyword_keys", auto_batch_size=False)  # type: ignore[untyped-decorator]
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Return losses and metrics, float32, for samples or for pairs from `noise`."""
        noised = self.noise(tensordict)
        if noised.ndim != 2 or noised.shape[1] != 2:
            raise ValueError(
                f"DPOLoss got a noised batch of shape {tuple(noised.shape)}, not of pairs [P, 2]. "
                "Give it the clips, or parts along the first dimension of what its noise() returns."
            )
        seen = self.compare(noised.reshape(-1), reference=True)
        assert seen.reference is not None
        error = mean_square(seen.policy - seen.clean)  # [2 P]
        reward = -self.beta / 2 * (error - mean_square(seen.reference - seen.clean))
        best, worst = reward.view(-1, 2).unbind(1)
        best_error, worst_error = error.view(-1, 2).mean(dim=0)
        chosen, other = noised[PAIR].unbind(-1)
        alone = (chosen == other).all()  # no reading of it: a GPU would wait
        metrics = {
            "best_error": best_error,
            "worst_error": worst_error,
            "preference_accuracy": (best > worst).float().mean(),
        }
        return self.outcome(
            seen,
            -logsigmoid(best - worst),
            **{name: torch.where(alone, math.nan, value) for name, value in metrics.items()},
        )

    def _drawn_keys(self) -> list[NestedKey]:
        return [*super()._drawn_keys(), PAIR]

    def _own_keys(self) -> list[NestedKey]:
        return [*super()._own_keys(), self.tensor_keys.group]


def best_and_worst(advantage: Tensor, ids: Tensor) -> Tensor:
    """Rows of the highest and the lowest advantage of every group that has two different ones.

    Advantages that differ by rounding alone are not different.

    Args:
        advantage: ``[M]``; clips of advantage 0 are passed over.
        ids: ``[M]`` or ``[M, K]``, equal for clips that compete.

    Returns:
        int64 ``[P, 2]``; the first clip twice if there is no pair.

    Example:
        >>> advantage = torch.tensor([1.0, -1.0, 0.0, -2.0, 3.0, 2.0])
        >>> best_and_worst(advantage, torch.tensor([7, 7, 7, 7, 8, 8])).tolist()
        [[0, 3], [4, 5]]
    """
    _, group = torch.unique(ids, dim=0, return_inverse=True)
    judged = advantage != 0
    pairs = []
    for one in group[judged].unique():
        rows = ((group == one) & judged).nonzero().squeeze(1)
        pair = torch.stack([rows[advantage[rows].argmax()], rows[advantage[rows].argmin()]])
        if not tied(advantage[pair]):
            pairs.append(pair)
    return torch.stack(pairs) if pairs else group.new_zeros(1, 2)
