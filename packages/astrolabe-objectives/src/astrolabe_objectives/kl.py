"""The penalty that holds the policy back where the rewards disagree."""

from torch import Tensor


def selective_kl(policy: Tensor, reference: Tensor, selected: Tensor) -> Tensor:
    """Mean squared distance to the reference over the selected samples.

    ``L_KL = mean over selected i of ‖v_θ - v_ref‖²`` (Astrolabe, section 3.4 and algorithm 1, lines
    28-30), with the norm taken as a mean over the entries of a clip. Between two Gaussians of equal
    width this is their KL divergence up to a factor.

    Args:
        policy: Predictions ``[M, ...]`` that carry the gradient.
        reference: Predictions ``[M, ...]`` of the reference.
        selected: bool ``[M]``.

    Returns:
        A scalar; 0 without a gradient when nothing is selected.

    Example:
        >>> import torch
        >>> policy, reference = torch.ones(2, 3), torch.zeros(2, 3)
        >>> selective_kl(policy, reference, torch.tensor([True, False]))
        tensor(1.)
        >>> selective_kl(policy, reference, torch.tensor([False, False]))
        tensor(0.)
    """
    if not selected.any():
        return policy.new_zeros(())
    # Rows are chosen, not multiplied by 0: a row that is not finite must not reach the mean.
    return (policy[selected] - reference[selected]).square().mean()
