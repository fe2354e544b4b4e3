"""The trained parameters of a network as it holds them now, not as they were at first."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from astrolabe_objectives.errors import SnapshotError
from astrolabe_objectives.shards import local

_log = logging.getLogger(__name__)


class LiveParameters:
    """What required a gradient at first, by name, wherever the network keeps it now.

    A network can be given another precision or device, or other parameters under the same names
    (``load_state_dict(assign=True)``); `now` follows it.

    Args:
        parameters: The network, after `fully_shard` if it is used, or, if nothing of it is sharded,
            its parameters by name; those of a mapping are looked up in it each time.

    Attributes:
        sharded: Whether some parameter, trained or frozen, lives on several ranks.

    Raises:
        ValueError: If nothing is trainable, or sharded parameters are given without their network.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter] | nn.Module) -> None:
        self._source = parameters
        if isinstance(parameters, nn.Module):
            network, known = parameters, dict(parameters.named_parameters())
        else:
            network, known = None, dict(parameters)
        self._last = {key: value for key, value in known.items() if value.requires_grad}
        if not self._last:
            raise ValueError(
                "no parameter requires a gradient, so there is nothing to copy. "
                "Add the LoRA adapter, or unfreeze the network, before making Snapshots."
            )
        split = any(isinstance(value, DTensor) for value in self._last.values())
        if split and network is None:
            raise ValueError(
                "the parameters are sharded, but were given by name. Give Snapshots the network "
                "itself: it has to drop the gathered weights that FSDP keeps between passes."
            )
        self.sharded = any(isinstance(value, DTensor) for value in known.values())
        self._gathering = [
            module
            for module in (network.modules() if network is not None and split else ())
            if isinstance(module, FSDPModule)
        ]
        self._short: list[str] = []
        self._tell_of_short()

    def now(self) -> dict[str, nn.Parameter]:
        """Return the parameters.

        Raises:
            SnapshotError: If one is gone, has another shape, or was sharded since.
        """
        self._last = {key: self._find(key, last) for key, last in self._last.items()}
        self._tell_of_short()
        return self._last

    def write(self, parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
        """Write values into parameters, in place, and forget what was computed from the others."""
        for key, parameter in parameters.items():
            local(parameter).copy_(values[key])
        # Autocast keeps the weights that it has cast until its block ends, whatever they become.
        torch.clear_autocast_cache()
        for module in self._gathering:
            # FSDP may keep the root's gathered weights after a forward pass, to save the gather of
            # the backward pass; the next pass would run with the values of this one.
            module.reshard()

    def _find(self, key: str, last: nn.Parameter) -> nn.Parameter:
        if isinstance(last, DTensor):
            return last  # FSDP keeps it, and puts gathered weights in its place for a pass
        try:
            if isinstance(self._source, nn.Module):
                found = self._source.get_parameter(key)
            else:
                found = self._source[key]
        except (AttributeError, KeyError):
            raise SnapshotError(
                f"the network has no parameter {key!r} any more, of which there are snapshots. "
                "Make Snapshots when its layers are final: after LoRA, wrappers and compilation."
            ) from None
        if isinstance(found, DTensor) or found.shape != last.shape:
            raise SnapshotError(
                f"the parameter {key!r} was {tuple(last.shape)} on this rank when Snapshots was "
                f"made and is {type(found).__name__} {tuple(found.shape)} now. Make Snapshots "
                "after fully_shard and whatever else replaces parameters."
            )
        return found

    def _tell_of_short(self) -> None:
        short = [key for key, value in self._last.items() if torch.finfo(value.dtype).bits < 32]
        if short and not self._short:
            dtype = str(self._last[short[0]].dtype).removeprefix("torch.")
            least = torch.finfo(self._last[short[0]].dtype).eps / 4
            _log.warning(
                "%d trained parameters are %s, first %r. An optimiser's step below %.2g of a "
                "weight is lost to rounding there, and AdamW steps by about its learning rate. "
                "Keep in float32 what is trained, as a LoRA made by astrolabe_rollout is, or use "
                "an optimiser that keeps float32 weights of its own.",
                len(short),
                dtype,
                short[0],
                least,
            )
        self._short = short


def master(parameter: Tensor) -> Tensor:
    """A copy of what this rank holds of a parameter, in float32 at least.

    A moving average adds a thousandth of a difference that is small itself: bfloat16, of three
    digits, would stay where it is.
    """
    with torch.inference_mode(False), torch.no_grad():
        return local(parameter).to(master_dtype(parameter), copy=True)


def master_dtype(parameter: Tensor) -> torch.dtype:
    """The precision in which copies of a parameter are kept."""
    return torch.promote_types(parameter.dtype, torch.float32)


def nested(values: dict[str, Any]) -> TensorDict:  # tensors or parameters
    """Tensors by name, as a TensorDict of TensorDicts."""
    return TensorDict(values, []).unflatten_keys(".")
