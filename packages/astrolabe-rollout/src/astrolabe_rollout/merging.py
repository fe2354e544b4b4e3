"""Merging a LoRA into its base: added in float32, rounded once, and measured.

An update is often smaller than the step from one number of a half precision to the next. Added to
a weight that is on such a number already, it is rounded away; added to the weight as its checkpoint
has it, it moves some weights by a whole step and leaves others, and is right on average. So a
network remembers which file its weights are the rounding of.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from astrolabe_rollout.checkpoints import is_precise, rounded
from astrolabe_rollout.errors import CheckpointError, PrecisionWarning
from astrolabe_rollout.extras import wan_extra

with wan_extra():
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
    from peft.tuners.lora import LoraLayer

#: By how much the strength that arrived may differ from 1: as much as an adapter turned down or up
#: by a twentieth, which is far less than what a few more training steps change.
TOLERANCE: Final = 0.05

_SOURCE: Final = "_astrolabe_source"


@dataclass(frozen=True)
class Source:
    """The files that a network's weights are the rounding of."""

    checkpoint: Path
    lora: Path | None = None
    """What is merged into it."""
    merged: tuple[Mapping[str, LoraLayer], ...] = ()
    """What was merged into the network later: peft's layers by name, oldest first."""


@dataclass(frozen=True)
class Strength:
    """How much of a LoRA is in the weights that it was merged into."""

    share: float
    """Projection of the change of the weights onto the update, both against the same base in the
    same precision: 1 if all of it arrived, 0 if it was rounded away; NaN if the update is 0."""
    unchanged: float
    """Share of the weights under the LoRA that are the base's to the bit."""
    layers: Mapping[str, float]
    """``share`` by layer."""
    dtypes: frozenset[torch.dtype]
    """Precisions of the merged weights."""

    @property
    def holds(self) -> bool:
        """Whether ``share`` is 1 within `TOLERANCE`; an update of 0 is held by anything."""
        return math.isnan(self.share) or abs(self.share - 1) <= TOLERANCE

    @property
    def in_words(self) -> str:
        """Such as ``strength 42.0 % in bfloat16, 82 % of its weights as in the base``."""
        where = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in self.dtypes))
        if math.isnan(self.share):
            return f"the LoRA is 0 everywhere, in {where}"
        return (
            f"strength {self.share:.1%} in {where}, "
            f"{self.unchanged:.0%} of the weights under it as in the base"
        )

    @property
    def weakness(self) -> str:
        """What is wrong if it does not hold, in one sentence."""
        layer = max(self.layers, key=lambda name: abs(self.layers[name] - 1))
        return (
            f"the merged model does not hold its LoRA: {self.in_words}; the worst is {layer} with "
            f"{self.layers[layer]:.1%}. Its additions are smaller than the steps of this precision."
        )


def remember(network: nn.Module, source: Source) -> None:
    """Note the files of which a network's weights are the rounding."""
    setattr(network, _SOURCE, source)


def source_of(network: nn.Module) -> Source | None:
    """Return the files of which a network's weights are the rounding; None if not known."""
    source: Source | None = getattr(network, _SOURCE, None)
    return source


def merge(
    network: WanTransformer3DModel,
    update: Mapping[str, LoraLayer],
    adapter: str,
    *,
    exact: Callable[[str], Tensor] | None = None,
    dtype: torch.dtype | None = None,
    precise: bool = False,
) -> Strength:
    """Add an update to a network without a LoRA, layer by layer.

    Args:
        network: The network, changed in place.
        update: peft's layers, by the name of the layer that each was on.
        adapter: Name of the adapter in them.
        exact: Returns a parameter in float32, of which the network's is the rounding; numbers that
            do not round to the network's are not used.
        dtype: Precision that all parameters are left in; None: each its own.
        precise: Whether what diffusers keeps in float32 is left in it, whatever ``dtype`` is.

    Returns:
        The strength that arrived, against the same base in the same precision.

    Raises:
        CheckpointError: If a number is too large for ``dtype`` or the update is not finite; the
            network is not whole then.
    """
    parameters = dict(network.named_parameters())
    sums: dict[str, list[Tensor]] = {}
    dtypes: set[torch.dtype] = set()
    same, count = 0, 0
    for layer, name, delta in _deltas(update, adapter):
        parameter = parameters.pop(name)
        target = _target(network, name, parameter.dtype, dtype, precise)
        base = _unrounded(name, parameter.data, exact)
        delta = delta.to(base)
        merged, plain = rounded(name, base + delta, target), rounded(name, base, target)
        change = merged.to(base) - plain.to(base)
        found = sums.setdefault(layer, [torch.zeros((), dtype=torch.float64) for _ in range(2)])
        found[0] += (change * delta).sum(dtype=torch.float64).cpu()
        found[1] += delta.square().sum(dtype=torch.float64).cpu()
        same, count = same + int((merged == plain).sum()), count + merged.numel()
        dtypes.add(target)
        parameter.data = merged
    for name, parameter in parameters.items():
        target = _target(network, name, parameter.dtype, dtype, precise)
        if target != parameter.dtype:
            parameter.data = rounded(name, _unrounded(name, parameter.data, exact), target)
    arrived, wanted = (torch.stack([pair[i] for pair in sums.values()]) for i in range(2))
    return Strength(
        share=float(arrived.sum() / wanted.sum()),
        unchanged=same / count,
        layers={
            layer: float(part / whole)
            for layer, part, whole in zip(sums, arrived, wanted, strict=True)
            if whole > 0
        },
        dtypes=frozenset(dtypes),
    )


def with_updates(
    state: Mapping[str, Tensor], updates: Sequence[Mapping[str, LoraLayer]], adapter: str
) -> Callable[[str], Tensor]:
    """Return a function from a name to that tensor in float32, updates added to it."""

    def exact(name: str) -> Tensor:
        value = _single(state[name])
        layer = name.rpartition(".")[0]
        for update in updates:
            if layer in update:
                for _, changed, delta in _deltas({layer: update[layer]}, adapter):
                    if changed == name:
                        value = value + delta.to(value)
        return value

    return exact


def warn_if_weak(strength: Strength, advice: str, stacklevel: int = 3) -> None:
    """Warn of a merged model that does not hold its LoRA."""
    if not strength.holds:
        warnings.warn(f"{strength.weakness} {advice}", PrecisionWarning, stacklevel=stacklevel)


def _deltas(update: Mapping[str, LoraLayer], adapter: str) -> Iterator[tuple[str, str, Tensor]]:
    """Layer, name of the parameter, and what is added to it in float32."""
    for name, layer in update.items():
        down: Any = layer.lora_A[adapter]  # any linear layer: peft's, or that of `add_lora`
        up: Any = layer.lora_B[adapter]
        if adapter in layer.lora_variant or down.weight.ndim != 2:
            raise CheckpointError(
                f"the adapter of {name!r} is no plain LoRA of a linear layer. Only "
                "W + scale * B A can be merged: use it apart."
            )
        scale = layer.scaling[adapter]
        delta = _single(up.weight) @ _single(down.weight) * scale
        if not delta.isfinite().all():
            raise CheckpointError(
                f"the adapter of {name!r} adds numbers that are not finite. Take an earlier one, "
                "from before its training diverged."
            )
        yield name, f"{name}.weight", delta
        if up.bias is not None:
            yield name, f"{name}.bias", _single(up.bias) * scale


def _unrounded(name: str, held: Tensor, exact: Callable[[str], Tensor] | None) -> Tensor:
    """A parameter in at least float32, with the digits that loading rounded away."""
    if exact is not None and held.dtype.itemsize < 4:
        whole = exact(name).to(held.device)
        if whole.shape == held.shape:
            return torch.where(whole.to(held.dtype) == held, whole, _single(held))
    return _single(held)


def _single(value: Tensor) -> Tensor:
    return value.detach().to(torch.promote_types(value.dtype, torch.float32))


def _target(
    network: nn.Module, name: str, own: torch.dtype, dtype: torch.dtype | None, precise: bool
) -> torch.dtype:
    if dtype is None:
        return own
    return torch.float32 if precise and is_precise(network, name) else dtype
