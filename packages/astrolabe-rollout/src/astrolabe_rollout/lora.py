"""LoRA on diffusers' Wan transformer: peft's layers, peft's files.

The trained weights of a run are one adapter. Older versions of it ("old", "reference") are copies
of its values, not adapters of their own, so nothing here switches between adapters. `merge_lora`
adds it to the base in float32; diffusers' ``network.fuse_lora()`` adds in the base's precision, in
which half of a small update is lost.
"""

import difflib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from astrolabe_rollout.checkpoints import load_checkpoint
from astrolabe_rollout.conversion import difference
from astrolabe_rollout.errors import CheckpointError, PrecisionWarning
from astrolabe_rollout.extras import wan_extra
from astrolabe_rollout.lora_files import Adapter, read_lora
from astrolabe_rollout.lora_formats import write_peft
from astrolabe_rollout.merging import (
    Strength,
    merge,
    remember,
    source_of,
    warn_if_weak,
    with_updates,
)

with wan_extra():
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
    from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
    from peft.functional import cast_adapter_dtype
    from peft.tuners.lora import LoraLayer

#: All ten linear layers of a block: two attentions with four each, and the feed-forward's two.
LORA_TARGETS: Final = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")

ADAPTER: Final = "default"  # peft's own name for a single adapter

Precision = Literal["base", "float32"]


def add_lora(
    network: WanTransformer3DModel,
    *,
    rank: int,
    alpha: int,
    dropout: float = 0.0,
    seed: int = 0,
    targets: Sequence[str] = LORA_TARGETS,
    precision: Precision = "base",
) -> None:
    """Add a LoRA that changes nothing yet, and make it all that is trained.

    A layer with weight W becomes ``W + (alpha / rank) B A`` (arXiv 2106.09685). A is drawn by
    Kaiming's rule from ``seed``, B is 0. Both are float32, whatever the base is, and so are their
    gradients.

    Args:
        network: diffusers' transformer, changed in place. Its own weights are frozen.
        rank: Rows of A, at least 1.
        alpha: Scale of the update is ``alpha / rank``; at least 1.
        dropout: Share of a layer's inputs that the update does not see in training, in [0, 1).
        seed: Seed of A. Torch's global random state is left as it was.
        targets: Ends of the names of the linear layers that get an update.
        precision: In which the update is multiplied, in sampling and in training: that of the
            ``base``, for which A and B are rounded in each pass, or ``float32``, which a GPU does
            many times slower.

    Raises:
        TypeError: If ``network`` is not diffusers' transformer.
        ValueError: If a number is outside its range, a target names no layer, or the network has a
            LoRA already.
    """
    if not isinstance(network, WanTransformer3DModel):
        raise TypeError(
            f"network is a {type(network).__name__}, but LoRA goes on diffusers' "
            "WanTransformer3DModel. Pass the .network of a CausalWan; a network of your own gets "
            "its adapter from peft: inject_adapter_in_model(LoraConfig(...), network)."
        )
    if rank < 1 or not 1 <= alpha < math.inf or not 0 <= dropout < 1:
        raise ValueError(
            f"rank is {rank}, alpha {alpha}, dropout {dropout}. Set the first two to 1 or more "
            "and dropout to a share in [0, 1)."
        )
    if _adapter(network) is not None:
        raise ValueError(
            "the network has a LoRA already, and one is all a run trains. Use load_lora to change "
            "its values, or network.unload_lora() to take it away first."
        )
    if precision not in get_args(Precision):
        raise ValueError(f"precision is {precision!r}. Choose from {get_args(Precision)}.")
    _check_targets(network, targets)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=sorted(targets)
    )
    _inject(network, config, seed, precision)


def trainable_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that receive a gradient, by name: with `add_lora`, those of the LoRA alone."""
    return {name: value for name, value in network.named_parameters() if value.requires_grad}


def save_lora(
    network: WanTransformer3DModel,
    folder: str | Path,
    values: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the LoRA as peft does: ``adapter_model.safetensors`` and ``adapter_config.json``.

    peft reads it with ``PeftModel.from_pretrained(network, folder)``, diffusers with
    ``network.load_lora_adapter(folder, prefix="base_model.model",
    weight_name="adapter_model.safetensors")``. Pipelines of diffusers find nothing in it: write it
    for them with `export_lora`. The files of an earlier save are replaced only when the new ones
    are whole.

    Args:
        network: A network with a LoRA.
        folder: Made if missing.
        values: What to write in place of the network's own values, under the names of
            `trainable_parameters`; an earlier state of them, for instance.

    Raises:
        ValueError: If the network has no LoRA.
        OSError: If the folder cannot be written, or the disk is full.
    """
    config = _adapter(network)
    if config is None:
        raise ValueError("the network has no LoRA to save. Call add_lora first.")
    weights = get_peft_model_state_dict(network, values, ADAPTER)
    write_peft(config, weights, Path(folder))


def load_lora(network: WanTransformer3DModel, path: str | Path) -> None:
    """Read a LoRA of any kind; every key and shape must match.

    A network without a LoRA gets one with the file's settings, rank and alpha of each layer. If it
    has one, rank and alpha of all layers must be the same; the values are copied into its
    parameters, which stay the same objects for optimisers and snapshots.

    Args:
        network: diffusers' transformer. On an error it is left as it was.
        path: A folder or file of `save_lora`, peft, diffusers, LongLive, kohya's programs, ComfyUI
            and others; see `astrolabe_rollout.lora_files.read_lora`.

    Raises:
        CheckpointError: If a file is missing, damaged, or made for another network or settings, if
            it holds more than the two matrices of linear layers, or contradicts itself.
    """
    adapter = read_lora(path)
    layers = _linear_layers(network)
    expected = {
        f"{name}.lora_{half}.weight": shape
        for name in adapter.layers_of(layers)
        for half, shape in _shapes(layers.get(name), adapter.rank(name)).items()
    }
    found = {name: tuple(value.shape) for name, value in adapter.weights.items()}
    if mismatch := difference(expected, found):
        raise CheckpointError(
            f"the adapter in {str(path)!r} does not fit the network: {mismatch}. "
            f"{_likely_cause(expected, found)}"
        )
    if _adapter(network) is None:
        _inject(network, adapter.config, seed=0)
    else:
        _check_same(path, adapter, layers)
    set_peft_model_state_dict(network, dict(adapter.weights), adapter_name=ADAPTER)
    torch.clear_autocast_cache()  # it would hold the values before, cast


def merge_lora(
    network: WanTransformer3DModel, dtype: torch.dtype | None = None, *, precise: bool = False
) -> Strength:
    """Add the LoRA to the base weights for good; a new one can be added then.

    It is added in float32 and rounded once, layer by layer. A network in half precision that
    `load_network` made is merged from the digits of its checkpoint, which is read again.

    Args:
        network: A network with a LoRA. On an error it is not whole.
        dtype: Precision of all weights afterwards; None: each keeps its own.
        precise: Whether what diffusers keeps in float32 stays so, whatever ``dtype`` is.

    Returns:
        How much of the LoRA arrived. A `PrecisionWarning` is shown if it does not hold.

    Raises:
        ValueError: If the network has no LoRA.
        CheckpointError: If it is no plain LoRA, or ``dtype`` ends before the weights do.
    """
    if _adapter(network) is None:
        raise ValueError("the network has no LoRA to merge. Call load_lora first.")
    strength = merge_update(network, _taken(network), dtype, precise)
    warn_if_weak(strength, "Keep it apart with load_lora alone, or merge with dtype=torch.float32.")
    return strength


def merge_update(
    network: WanTransformer3DModel,
    update: Mapping[str, LoraLayer],
    dtype: torch.dtype | None = None,
    precise: bool = False,
) -> Strength:
    """Merge peft's layers, see `merge_lora`, and note that the network holds them."""
    exact = None
    if any(value.dtype.itemsize < 4 for value in network.parameters()):
        exact = _exact(network)
    strength = merge(network, update, ADAPTER, exact=exact, dtype=dtype, precise=precise)
    if (source := source_of(network)) is not None:
        remember(network, replace(source, merged=(*source.merged, update)))
    return strength


def _taken(network: WanTransformer3DModel) -> dict[str, LoraLayer]:
    """Take the LoRA off a network; return peft's layers by the names of those they were on."""
    layers = {name: part for name, part in network.named_modules() if isinstance(part, LoraLayer)}
    network.unload_lora()  # type: ignore[no-untyped-call]
    return layers


def _exact(network: WanTransformer3DModel) -> Callable[[str], Tensor] | None:
    """What a network without a LoRA is the rounding of, if its files are still there."""
    source = source_of(network)
    if source is None:
        return None
    try:
        state = load_checkpoint(source.checkpoint)
        if source.lora is not None:
            load_lora(network, source.lora)
    except CheckpointError as error:
        told = f"the LoRA is added to rounded weights, since their file cannot be read: {error}"
        warnings.warn(told, PrecisionWarning, stacklevel=4)
        return None
    updates = [*([] if source.lora is None else [_taken(network)]), *source.merged]
    known = state.keys() == network.state_dict().keys()
    return with_updates(state, updates, ADAPTER) if known else None


def _adapter(network: WanTransformer3DModel) -> LoraConfig | None:
    configs: Mapping[str, LoraConfig] = getattr(network, "peft_config", {})
    return configs.get(ADAPTER)


def _inject(
    network: WanTransformer3DModel, config: LoraConfig, seed: int, precision: Precision = "base"
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the layers are born on the CPU
        network.add_adapter(config, ADAPTER)
    # Else in the base's dtype, in which small steps of an optimiser would be lost to rounding.
    cast_adapter_dtype(network, ADAPTER)
    if precision == "base":
        for layer in network.modules():
            if isinstance(layer, LoraLayer):
                layer.cast_input_dtype_enabled = False  # else peft turns inputs into float32
                for matrices in (layer.lora_A, layer.lora_B):
                    matrices[ADAPTER] = _Rounded(matrices[ADAPTER].weight)


class _Rounded(nn.Linear):
    """A float32 matrix that is multiplied in the precision of its input."""

    def __init__(self, weight: Any) -> None:  # a parameter, to which peft gives no type
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = weight

    def forward(self, input: Tensor) -> Tensor:  # the word that torch uses
        return linear(input, self.weight.to(input.dtype))


def _check_targets(network: nn.Module, targets: Sequence[str]) -> None:
    names = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            near = difflib.get_close_matches(target, LORA_TARGETS, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"targets names {target!r}, but no linear layer ends so. {hint}"
                f"The usual targets: {', '.join(LORA_TARGETS)}."
            )


def _linear_layers(network: nn.Module) -> dict[str, Any]:
    """Linear layers by name, each with its LoRA or without."""
    inside = {"base_layer", "lora_A", "lora_B"}
    return {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, (nn.Linear, LoraLayer)) and inside.isdisjoint(name.split("."))
    }


def _shapes(layer: Any, rank: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the two matrices of a layer; none where the network has no such layer."""
    return (
        {} if layer is None else {"A": (rank, layer.in_features), "B": (layer.out_features, rank)}
    )


def _check_same(path: str | Path, adapter: Adapter, layers: Mapping[str, Any]) -> None:
    """Refuse an adapter that is not of the very settings of the network's LoRA."""
    ours = {
        name: (layer.r[ADAPTER], layer.scaling[ADAPTER])
        for name, layer in layers.items()
        if isinstance(layer, LoraLayer)
    }
    theirs = {name: (adapter.rank(name), scale) for name, scale in adapter.scales.items()}
    for name in sorted(ours.keys() | theirs.keys()):
        (a, s), (b, t) = (side.get(name, (0, 0.0)) for side in (theirs, ours))
        if a == b and math.isclose(s, t, rel_tol=1e-6):
            continue
        one = len(set(theirs.values())) == 1 and float(adapter.config.lora_alpha).is_integer()
        fit = theirs.keys() == ours.keys() and one and adapter.config.lora_alpha >= 1
        raise CheckpointError(
            f"the adapter in {str(path)!r} has {_in_words(a, s)} for {name!r}, "
            f"the network's LoRA has {_in_words(b, t)}. "
            + (
                f"Add it with rank={adapter.config.r} and alpha={adapter.config.lora_alpha}."
                if fit
                else "No rank and alpha that a new LoRA can have are those of this adapter: merge "
                "it into the base (load_lora and merge_lora, or the option lora of the model)."
            )
        )


def _in_words(rank: int, scale: float) -> str:
    return f"rank {rank} and alpha {scale * rank:g}" if rank else "none"


def _likely_cause(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> str:
    if any("k_img" in name or "img_emb" in name or "add_k_proj" in name for name in found):
        return "It is of an image-to-video model: use one of the text-to-video model."
    if not expected.keys() & found.keys():
        return "It is the adapter of another kind of model."
    if any(name.startswith(("lora_te", "text_encoder")) for name in found):
        return "It changes the text encoder too, which is not carried: take those entries out."
    if expected.keys() == found.keys():
        return "It was made for a network of another width, or with another rank."
    return "It was made for a network with another number of blocks, or with other targets."
