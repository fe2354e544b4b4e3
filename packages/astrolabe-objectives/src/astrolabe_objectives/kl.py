"""The penalty that holds the policy back where the rewards disagree."""

from typing import Literal

from torch import Tensor, compiler, where
from torch import bool as bool_

Reduction = Literal["mean", "sum", "none"]


def selective_kl(
    policy: Tensor, reference: Tensor, selected: Tensor, reduction: Reduction = "mean"
) -> Tensor:
    """Mean squared distance to the reference over the selected samples.

    ``L_KL = mean over selected i of ‖v_θ - v_ref‖²`` (Astrolabe, section 3.4 and algorithm 1, lines
    28-30), with the norm taken as a mean over the entries of a clip. Between two Gaussians of equal
    width this is their KL divergence up to a factor.

    Args:
        policy: Predictions ``[M, ...]`` that carry the gradient.
        reference: Predictions ``[M, ...]`` of the reference.
        selected: bool ``[M]``.
        reduction: ``"mean"`` over the selected samples, their ``"sum"``, or ``"none"``.

    Raises:
        TypeError: If ``selected`` is not of bools.

    Returns:
        A scalar; 0 without a gradient when nothing is selected. With ``"none"`` ``[M]``, 0 where
        not selected.

    Example:
        >>> import torch
        >>> policy, reference = torch.ones(2, 3), torch.zeros(2, 3)
        >>> selective_kl(policy, reference, torch.tensor([True, False]))
        tensor(1.)
        >>> selective_kl(policy, reference, torch.tensor([False, False]))
        tensor(0.)
    """
    if selected.dtype != bool_:
        raise TypeError(
            f"selective_kl got selected of {str(selected.dtype).removeprefix('torch.')}. "
            "Give bool [M]."
        )
    if reduction == "mean" and not compiler.is_compiling():
        if not selected.any():
            return policy.new_zeros(())
        # Rows are chosen, not multiplied by 0: a row that is not finite must not reach the mean.
        return (policy[selected] - reference[selected]).square().mean()
    rows = selected.view(-1, *[1] * (policy.ndim - 1))
    each = where(rows, policy - reference, 0.0).square().flatten(1).mean(dim=1)  # [M]
    if reduction == "none":
        return each
    return each.sum() if reduction == "sum" else each.sum() / selected.sum().clamp(min=1)
