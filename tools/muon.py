"""Muon in float32, for the pretraining on a CPU.

``torch.optim.Muon`` orthogonalises in bfloat16, which a CPU without bfloat16 instructions emulates:
one step on the small model's matrices takes 5.3 s with it on two cores, and 0.15 s here.
"""

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Newton-Schulz, Jordan et al. 2024


def orthogonalise(update: Tensor, steps: int = 5) -> Tensor:
    """Push the singular values of ``[n, rows, columns]`` towards 1."""
    a, b, c = COEFFICIENTS
    tall = update.shape[1] > update.shape[2]
    x = update.mT if tall else update
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, then orthogonalised updates; matrices of one shape are done together.

    Args:
        params: Matrices.
        lr: Learning rate; the update of an ``[m, n]`` matrix is scaled by sqrt(max(1, m / n)).
        momentum: Nesterov momentum.
    """

    def __init__(self, params: list[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """Take one step."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, params in by_shape.items():
                updates = []
                for p in params:
                    state = self.state[p]
                    momentum = state.setdefault("momentum", torch.zeros_like(p))
                    momentum.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(momentum, group["momentum"]))
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for p, update in zip(params, orthogonalise(torch.stack(updates)), strict=True):
                    p.add_(update, alpha=-group["lr"] * scale)
