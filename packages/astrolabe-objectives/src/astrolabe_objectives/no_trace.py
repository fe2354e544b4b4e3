"""Passes that leave no trace: what the network draws and counts is the same for each that follows.

Layers that are random in training (dropout) must mask the same in all passes that a loss compares,
or equal weights would predict different things; and layers that keep statistics in buffers (batch
norm, spectral norm) must not take in a pass of other weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn


@contextmanager
def no_trace(network: nn.Module, inputs: Tensor) -> Iterator[None]:
    """Put torch's random state and the network's buffers back as they were when a block ends.

    Args:
        network: What runs in the block.
        inputs: What it runs on; the random states of the CPU, of its device and of the network's
            are kept.

    Raises:
        RuntimeError: If layers with dropout are compiled together with this block.
    """
    tensors = (inputs, *network.parameters(), *network.buffers())
    devices = sorted({tensor.device for tensor in tensors if tensor.device.type == "cuda"}, key=str)
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    compiling = torch.compiler.is_compiling()
    if compiling and any(_is_random(module) for module in network.modules()):
        raise RuntimeError(
            "a loss that is compiled as a whole cannot give all of its passes the same dropout. "
            "Compile the network alone, with network.compile()."
        )
    try:
        # Random states cannot be traced.
        with nullcontext() if compiling else torch.random.fork_rng(devices):
            yield
    finally:
        with torch.no_grad():
            for buffer, values in buffers:
                buffer.copy_(values)


def _is_random(module: nn.Module) -> bool:
    dropout = "Dropout" in type(module).__name__ and getattr(module, "p", 0.0) > 0
    return module.training and dropout
