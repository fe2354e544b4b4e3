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
        self._sizes = [_local(value).numel() for value in self._parameters.values()]
        self._device = _local(first).device
        # Nothing between two updates: sampling and scoring need the room.
        self._sum: Tensor | None = None
        self._last: dict[str, Tensor] = {}

    def clear(self) -> None:
        """Begin a new sum."""
        self._sum = torch.zeros(sum(self._sizes), dtype=torch.float64, device=self._device)
        self._last.clear()
        for parameter in self._parameters.values():
            parameter.grad = None

    def add(self) -> None:
        """Take in the gradients of a backward pass, and clear them."""
        for (name, parameter), view in zip(self._parameters.items(), self.views, strict=True):
            assert parameter.grad is not None  # `check_gradients` says why in better words
            view.add_(_local(parameter.grad).flatten())
            self._last[name], parameter.grad = parameter.grad, None

    @torch.no_grad()
    def reduce(self) -> None:
        """Sum over the processes, make the sum the gradient of the parameters, and forget it."""
        views = self.views
        if not self._sharded:
            assert self._sum is not None  # it has views
            self._world.sum(self._sum)
        for (name, parameter), view in zip(self._parameters.items(), views, strict=True):
            gradient = self._last.pop(name, None)
            if gradient is None:  # this process had no part of the minibatch
                gradient = torch.zeros_like(parameter)
            _local(gradient).copy_(view.view_as(_local(gradient)))
            parameter.grad = gradient
        self._sum = None

    @property
    def views(self) -> tuple[Tensor, ...]:
        """This process's sum for each parameter, flat, in their order.

        Raises:
            RuntimeError: If no sum was begun.
        """
        if self._sum is None:
            raise RuntimeError("there is no sum of gradients. Call clear() before each update.")
        return torch.split(self._sum, self._sizes)


def _local(tensor: Tensor) -> Tensor:
    local: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()
    return local
