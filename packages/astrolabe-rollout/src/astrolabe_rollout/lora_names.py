"""Names in LoRA files: which layer and which matrix an entry is, as each program spells it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from torch import Tensor

from astrolabe_rollout.conversion import (
    DIFFUSERS_TO_ORIGINAL,
    HOLDERS,
    WRAPPERS,
    bare,
    to_diffusers,
    to_original,
)
from astrolabe_rollout.errors import CheckpointError, some

PREFIX: Final = "base_model.model."  # of every key in a file of peft

#: ``<layer>.lora_A.weight``, with the name of an adapter or without, and others' words for it.
_MATRIX: Final = re.compile(
    r"(?P<layer>.+)\.lora(?:_(?P<peft>[AB])|[_.](?P<kohya>down|up))"
    r"(?:\.(?!(?:weight|bias)$)(?P<adapter>[^.]+))?(?:\.(?P<kind>weight|bias))?"
)
_ALPHA: Final = re.compile(r"(?P<layer>.+?)\.(?:lora[._])?alpha")
#: Changes that add to a weight or bias as they are; they carry nothing where they are zero.
_ADDED: Final = re.compile(r".+\.(diff|diff_b)")
#: What else adapters are made of, by the ends of the names.
_OTHERS: Final[Mapping[str, str]] = {
    r"\.(diff|diff_b)$": "whole differences of weights or biases",
    r"\.lora_(B|up)(\..+)?\.bias$": "biases of LoRA matrices",
    r"\.(dora_scale|lora_magnitude_vector)(\..+)?$": "magnitudes of DoRA",
    r"\.hada_\w+(\..+)?$": "matrices of LoHa",
    r"\.lokr_\w+(\..+)?$": "matrices of LoKr",
    r"\.oft_\w+(\..+)?$": "matrices of OFT",
    r"\.lora_mid(\..+)?$": "middle matrices of convolutions",
    r"\.lora_embedding_[AB](\..+)?$": "matrices of embeddings",
}


@dataclass
class Entries:
    """What a file of a LoRA holds.

    Args:
        weights: ``<layer>.lora_A.weight`` ``[r, in]`` and ``<layer>.lora_B.weight`` ``[out, r]`` by
            diffusers' names of the layers.
        alphas: Alpha of each layer that has an entry for it, one number.
        written: Each layer as the network was called that the file was made with.
        by_kohya: Whether the matrices are called down and up.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    alphas: dict[str, Tensor] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)
    by_kohya: bool = False

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of each layer, read off the shapes."""
        return {layer: self.weights[f"{layer}.lora_A.weight"].shape[0] for layer in self.written}


def sort_entries(path: Path, content: Mapping[str, Tensor]) -> Entries:
    """Tell the entries of a file apart.

    Entries that add zeros are left out: they carry nothing.

    Raises:
        CheckpointError: If an entry is neither matrix nor alpha, there are two of one kind, or a
            matrix lacks its other half.
    """
    entries = Entries()
    adapters: set[str] = set()
    strangers: dict[str, Tensor] = {}
    empty: set[str] = set()
    for key, value in content.items():
        name = bare(key)
        match = _MATRIX.fullmatch(name)
        if match and match["kind"] != "bias":
            layer = layer_name(match["layer"])
            adapters.add(match["adapter"] or "")
            half = match["peft"] or {"down": "A", "up": "B"}[match["kohya"]]
            entries.by_kohya |= match["kohya"] is not None
            _add(path, entries.weights, f"{layer}.lora_{half}.weight", key, value)
            raw = _MATRIX.fullmatch(key.removeprefix(PREFIX))
            entries.written.setdefault(layer, raw["layer"] if raw else layer)
        elif alpha := _ALPHA.fullmatch(name):
            _add(path, entries.alphas, layer_name(alpha["layer"]), key, value)
        elif (match or _ADDED.fullmatch(name)) and not value.float().any():
            empty.add(layer_name(match["layer"] if match else name.rpartition(".")[0]))
        else:
            strangers[key] = value
    if strangers:
        raise CheckpointError(_not_carried(path, strangers))
    if len(adapters) > 1:
        named = ", ".join(repr(name) for name in sorted(adapters))
        raise CheckpointError(
            f"{str(path)!r} holds {len(adapters)} adapters, {named}. Keep the entries of one."
        )
    if not entries.weights:
        raise CheckpointError(f"{str(path)!r} holds no LoRA: it has no entries. Download it again.")
    _check(path, entries, empty)
    return entries


def layer_name(name: str) -> str:
    """A layer in diffusers' names.

    >>> layer_name("lora_unet_blocks_11_self_attn_q")
    'blocks.11.attn1.to_q'
    """
    if "." not in name and "_" in name:
        name = _spelled_out(name)
    return next(iter(to_diffusers({f"{bare(name)}.weight": Tensor()}))).removesuffix(".weight")


def original_name(layer: str) -> str:
    """A layer in Wan's original names, from diffusers' name."""
    return next(iter(to_original({f"{layer}.weight": Tensor()}))).removesuffix(".weight")


def _spelled_out(name: str) -> str:
    """A name in which kohya's programs put an underscore for each dot."""
    plain = name
    for part in WRAPPERS:
        plain = plain.replace(f"{part}_", "") if part.startswith("_") else plain
    heads = ("lora", "lycoris", "unet", *HOLDERS)
    while head := next((head for head in heads if plain.startswith(f"{head}_")), None):
        plain = plain.removeprefix(f"{head}_")
    block = re.match(r"blocks_(\d+)_", plain)
    pattern = f"blocks_{{}}_{plain[block.end() :]}" if block else plain
    layer = _UNDERSCORED.get(pattern)
    if layer is None:
        return name
    return layer.format(block[1]) if block else layer


_UNDERSCORED: Final = {
    spelling.replace(".", "_"): layer
    for layer, original in DIFFUSERS_TO_ORIGINAL.items()
    for spelling in (layer, original)
}


def _add(path: Path, to: dict[str, Tensor], name: str, key: str, value: Tensor) -> None:
    if name in to:
        raise CheckpointError(
            f"{str(path)!r} has two entries for {name!r}, one of them {key!r}. "
            "It seems to hold two adapters: keep the entries of one."
        )
    if not value.is_floating_point() and value.ndim > 1:
        raise CheckpointError(
            f"{str(path)!r} holds {key!r} as {value.dtype}, quantised in a way that is not known. "
            "Take the adapter in a floating-point precision."
        )
    if value.ndim > 1 and not value.float().isfinite().all():
        raise CheckpointError(
            f"{str(path)!r} has numbers in {key!r} that are not finite. Take an earlier adapter, "
            "from before its training diverged."
        )
    to[name] = value


def _check(path: Path, entries: Entries, empty: set[str]) -> None:
    """See that all matrices come in pairs that fit each other, and each alpha has one."""
    for layer in entries.written:
        a, b = (entries.weights.get(f"{layer}.lora_{half}.weight") for half in "AB")
        if a is None or b is None:
            missing = "lora_A" if a is None else "lora_B"
            raise CheckpointError(
                f"{str(path)!r} has one matrix of {layer!r} but no {missing}. Download it again."
            )
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise CheckpointError(
                f"{str(path)!r} has matrices {tuple(a.shape)} and {tuple(b.shape)} for {layer!r}, "
                "which are not [r, in] and [out, r] of a linear layer. Only linear layers carry a "
                "LoRA here. Merge it into the base with the program that made it, and load the "
                "merged checkpoint in place of the base."
            )
    if lone := sorted(entries.alphas.keys() - entries.written.keys() - empty):
        raise CheckpointError(
            f"{str(path)!r} states alpha for layers without matrices: {some(lone)}. "
            "Download it again."
        )


def _not_carried(path: Path, strangers: Mapping[str, Tensor]) -> str:
    """Name what a file holds beside the two matrices of each layer."""
    for pattern, what in _OTHERS.items():
        if found := [key for key in strangers if re.search(pattern, key)]:
            return (
                f"{str(path)!r} holds {what} ({len(found)} entries, such as {some(found)}). Only "
                "the two matrices of linear layers are carried. Merge it into the base with the "
                "program that made it, and load the merged checkpoint in place of the base."
            )
    return (
        f"{str(path)!r} is no LoRA of linear layers alone: it has {len(strangers)} other entries, "
        f"such as {some(strangers)}. Entries should end in .lora_A.weight and .lora_B.weight, "
        "or .lora_down.weight and .lora_up.weight."
    )
