"""Checkpoints of Wan: their containers and names, and how they become diffusers' names.

Checkpoints of the original code and of models trained from it (Self-Forcing, Causal-Forcing,
LongLive, Krea) share one naming of the tensors; the network is diffusers'. The two namings map one
to one, so nothing is ever dropped or guessed: after conversion all keys and shapes must match.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from torch import Tensor

from astrolabe_rollout.errors import CheckpointError, some

Shapes = Mapping[str, tuple[int, ...]]

_ATTENTION: Final = {
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "o": "to_out.0",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
}
#: Original names to diffusers' names, without ``.weight`` and ``.bias``. ``{}``: number of a block.
#: The original's norm1 and norm2 have no weights; its norm3, before cross attention, is norm2 here.
ORIGINAL_TO_DIFFUSERS: Final[Mapping[str, str]] = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    **{f"blocks.{{}}.self_attn.{a}": f"blocks.{{}}.attn1.{b}" for a, b in _ATTENTION.items()},
    **{f"blocks.{{}}.cross_attn.{a}": f"blocks.{{}}.attn2.{b}" for a, b in _ATTENTION.items()},
    "blocks.{}.norm3": "blocks.{}.norm2",
    "blocks.{}.ffn.0": "blocks.{}.ffn.net.0.proj",
    "blocks.{}.ffn.2": "blocks.{}.ffn.net.2",
    "blocks.{}.modulation": "blocks.{}.scale_shift_table",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
DIFFUSERS_TO_ORIGINAL: Final = {theirs: ours for ours, theirs in ORIGINAL_TO_DIFFUSERS.items()}

#: Where training code puts averaged weights, which are to be sampled from if there are any.
AVERAGED: Final = ("generator_ema", "model_ema", "ema_model", "ema")
#: Where it puts the generator's weights, in a file of several things.
CONTAINERS: Final = (*AVERAGED, "generator", "model", "state_dict", "module")
#: Parts that wrappers put anywhere into a name: torch.compile, FSDP, activation checkpointing, DDP,
#: DeepSpeed and Lightning. No layer of Wan is called so.
WRAPPERS: Final = (
    *("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
    *("module", "_forward_module"),
)
#: Attributes under which programs hold the network: parts before a name, in any number and order.
HOLDERS: Final = (
    *("model", "diffusion_model", "transformer", "net", "generator", "pipe", "dit"),
    "base_model",  # of peft
)


def bare(name: str) -> str:
    """Take away what wrappers and holders put before and into the name of a tensor or layer.

    >>> bare("generator.model._orig_mod.blocks.0._checkpoint_wrapped_module.ffn.0.weight")
    'blocks.0.ffn.0.weight'
    """
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    while len(parts) > 1 and parts[0] in HOLDERS:
        parts = parts[1:]
    return ".".join(parts)


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename original names to diffusers'; other names, diffusers' among them, are kept."""
    return _renamed(state, lambda name: _translate(name, ORIGINAL_TO_DIFFUSERS))


def to_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename diffusers' names to the original ones: the inverse of `to_diffusers`."""
    return _renamed(state, lambda name: _translate(name, DIFFUSERS_TO_ORIGINAL))


def unwrap(content: object) -> Mapping[str, Tensor]:
    """Find the tensors by name in what a checkpoint file holds.

    Averaged weights are taken before others; where their place is empty, as before an average has
    begun, it is passed over.

    Raises:
        CheckpointError: If there are none, or the averaged ones are only some of the weights.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"the checkpoint holds a {type(content).__name__}, not tensors by name. {_EXPECTED}"
        )
    places = [name for name in CONTAINERS if isinstance(content.get(name), Mapping)]
    filled = [name for name in places if content[name]]
    if filled:
        found = unwrap(content[filled[0]])
        for name in filled[1:] if filled[0] in AVERAGED else ():
            _check_whole(filled[0], found, name, content[name])
        return found
    strangers = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if strangers or not content:
        raise CheckpointError(
            f"the checkpoint holds {some(strangers) or 'nothing'} where tensors were expected. "
            f"{_EXPECTED}"
        )
    return content


_EXPECTED: Final = (
    f"It should be a flat dictionary of them, or hold one as {' or '.join(CONTAINERS)}."
)


def _check_whole(
    name: str, averaged: Mapping[str, Tensor], other: str, weights: Mapping[str, object]
) -> None:
    """Refuse an average of some weights only: neither it nor a mixture is anybody's model."""
    held, whole = ({bare(key) for key in state} for state in (averaged, weights))
    if held < whole:
        lacking = sorted(whole - held)
        raise CheckpointError(
            f"the checkpoint's {name} lacks {len(lacking)} of the {len(whole)} tensors of its "
            f"{other}: {some(lacking)}. Save the one that you want as a file of its own."
        )


def strip_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name tensors as they are called without wrappers and holders, see `bare`."""
    return _renamed(state, bare)


def difference(expected: Shapes, found: Shapes) -> str:
    """Say how ``found`` differs from ``expected`` by name and shape; empty if it does not."""
    shared = [name for name in expected if name in found]
    parts = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} {found[name]} instead of {expected[name]}"
            for name in shared
            if found[name] != expected[name]
        ],
    }
    return "; ".join(
        f"{len(names)} {kind}: {some(names)}" for kind, names in parts.items() if names
    )


def _renamed(state: Mapping[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for name, value in state.items():
        if rename(name) in result:
            raise CheckpointError(
                f"the checkpoint names the tensor {rename(name)!r} twice, once as {name!r}. "
                "It seems to hold two networks: keep one of them."
            )
        result[rename(name)] = value
    return result


def _translate(name: str, table: Mapping[str, str]) -> str:
    block = re.match(r"blocks\.(\d+)\.", name)
    pattern = f"blocks.{{}}.{name[block.end() :]}" if block else name
    module, _, kind = pattern.rpartition(".")
    if pattern in table:  # a parameter of its own, such as a modulation
        translated = table[pattern]
    elif module in table and kind in ("weight", "bias"):
        translated = f"{table[module]}.{kind}"
    else:
        return name
    return translated.format(block[1]) if block else translated


def num_blocks(names: Iterable[str]) -> int:
    """Number of transformer blocks that parameters belong to."""
    return len({match[1] for name in names if (match := re.match(r"blocks\.(\d+)\.", name))})
