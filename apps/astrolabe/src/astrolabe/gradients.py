"""Sums of gradients that do not depend on who computed which part of them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from astrolabe.world import World


class Gradients:
    """Adds up the gradients of micro-batches, and of all processes, in float64.

    In float32 the sum would depend on its order, and so on the number of processes; AdamW, which
    divides by the size of a gradient, would make of that another run. In float64 the order shows in
    bits that are gone when the sum is rounded.

    Where parameters are sharded, FSDP has summed over the processes already.

    Args:
        parameters: What is trained, by name.
        world: The processes.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], world: World) -> None:
        self._parameters = dict(parameters)
        self._world = world
        first = next(iter(self._parameters.values()))
        self._sharded = isinstance(first, DTensor)
        sizes = [_local(value).numel() for value in self._parameters.values()]
        self._sum = torch.zeros(sum(sizes), dtype=torch.float64, device=_local(first).device)
        views = torch.split(self._sum, sizes)
        self._views = dict(zip(self._parameters, views, strict=True))
        self._last: dict[str, Tensor] = {}

    def clear(self) -> None:
        """Begin a new sum."""
        self._sum.zero_()
        self._last.clear()
        for parameter in self._parameters.values():
            parameter.grad = None

    def add(self) -> None:
        """Take in the gradients of a backward pass, and clear them."""
        for name, parameter in self._parameters.items():
            assert parameter.grad is not None  # `check_gradients` says why in better words
            self._views[name].add_(_local(parameter.grad).flatten())
            self._last[name], parameter.grad = parameter.grad, None

    @torch.no_grad()
    def reduce(self) -> None:
        """Sum over the processes, and make the sum the gradient of the parameters."""
        if not self._sharded:
            self._world.sum(self._sum)
        for name, parameter in self._parameters.items():
            gradient = self._last.get(name)
            if gradient is None:  # this process had no part of the minibatch
                gradient = torch.zeros_like(parameter)
            _local(gradient).copy_(self._views[name].view_as(_local(gradient)))
            parameter.grad = gradient


def _local(tensor: Tensor) -> Tensor:
    local: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()
    return local
