"""A network of another library and its checkpoint: matched without gaps, read when first used."""

import copy
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from astrolabe_rewards.errors import WeightsError
from astrolabe_rewards.placement import Placement
from astrolabe_rewards.weights import TensorFiles

Shapes = Mapping[str, tuple[int, ...]]

_log = logging.getLogger(__name__)


def without_tables(name: str) -> str | None:
    """Return a tensor's name; None for the ``position_ids`` (0, 1, 2, ...) of old checkpoints."""
    return None if name.rpartition(".")[2] == "position_ids" else name


class Network:
    """A network and the files that must fill it exactly; nothing but headers is read at first.

    Args:
        asker: The reward, for messages.
        files: The tensors.
        skeleton: The network on the meta device.
        placement: Where and how the weights are held.
        ours: Their name of a tensor to the network's; None for one that no score depends on.
        exact: Beginnings of the names (the network's) that stay float32 in any placement.

    Attributes:
        lock: To be held during a forward: one at a time.

    Raises:
        WeightsError: If tensors are missing, unexpected, or of another shape.
    """

    def __init__(
        self,
        asker: str,
        files: TensorFiles,
        skeleton: nn.Module,
        placement: Placement,
        *,
        ours: Callable[[str], str | None] = without_tables,
        exact: tuple[str, ...] = (),
    ) -> None:
        self._asker = asker
        self._files = files
        self._skeleton = skeleton
        self._placement = placement
        self._exact = exact
        self._names = {name: theirs for theirs in files.shapes if (name := ours(theirs))}
        wanted = {name: tuple(value.shape) for name, value in skeleton.state_dict().items()}
        refuse_misfits(files, self._names, wanted)
        self._loaded: nn.Module | None = None
        self.lock = threading.RLock()

    def load(self) -> Any:  # Any: the libraries that the networks are of have no types
        """Return the network, frozen and in evaluation mode; read its weights if need be."""
        with self.lock:
            if self._loaded is None:
                _log.info("%s: reading %s", self._asker, self._files.names())
                self._loaded = self._read()
            return self._loaded

    def _read(self) -> nn.Module:
        device, dtype = self._placement.torch_device(), self._placement.torch_dtype()
        network = copy.deepcopy(self._skeleton)
        with torch.inference_mode(False), self._files.opened() as read:
            state = {
                name: read(self._names[name]).to(
                    device, torch.float32 if name.startswith(self._exact) else dtype, copy=True
                )
                for name in network.state_dict()
            }
            network.load_state_dict(state, assign=True)
            for name, value in list(network.named_buffers()):
                if value.is_meta:
                    path, _, last = name.rpartition(".")
                    filled = _buffer(last, value.shape).to(device)
                    setattr(network.get_submodule(path), last, filled)
        return network.eval().requires_grad_(False)


def refuse_misfits(
    files: TensorFiles, names: Mapping[str, str], wanted: Shapes, optional: Shapes | None = None
) -> None:
    """Refuse files that are not exactly a network.

    Args:
        files: The tensors.
        names: The network's name of each tensor to the files'.
        wanted: Name and shape of every tensor of the network.
        optional: The same of tensors that may be there too.

    Raises:
        WeightsError: If tensors are missing, unexpected, or of another shape.
    """
    allowed = dict(wanted) | dict(optional or {})
    faults = {
        "missing": [name for name in wanted if name not in names],
        "unexpected": [names[name] for name in names if name not in allowed],
        "of another shape": [
            f"{names[name]} {files.shapes[names[name]]} instead of {shape}"
            for name, shape in allowed.items()
            if name in names and files.shapes[names[name]] != shape
        ],
    }
    found = [
        f"{len(those)} {kind} ({', '.join(those[:3])}{', ...' if len(those) > 3 else ''})"
        for kind, those in faults.items()
        if those
    ]
    if found:
        raise WeightsError(
            f"{files.names()} does not fit its network: {'; '.join(found)}. Of {len(wanted)} "
            "tensors every one is needed. Take the files as they were published."
        )


def _buffer(name: str, shape: torch.Size) -> Tensor:
    """The value of a buffer that is in no checkpoint, since it depends on its shape alone."""
    if name == "position_ids":
        return torch.arange(shape[-1]).expand(shape)
    assert name == "attn_mask", f"a buffer without a value: {name}"
    return torch.full(shape, -torch.inf).triu(1)  # a token sees those before it
