"""Checkpoints of Wan: their containers and names, and how they become diffusers' names.

Checkpoints of the original code and of models trained from it (Self-Forcing, Causal-Forcing,
LongLive, Krea) share one naming of the tensors; the network is diffusers'. The two namings map one
to one, so nothing is ever dropped or guessed: after conversion all keys and shapes must match.
"""

import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from astrolabe_rollout.errors import CheckpointError

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

#: Where training code puts the generator's weights; of several, the first is to be sampled from.
CONTAINERS: Final = ("generator_ema", "generator", "model", "state_dict")
#: What wrappers put before a name, possibly several times.
PREFIXES: Final = ("model.", "diffusion_model.", "module.")
FSDP: Final = "_fsdp_wrapped_module."  # can stand anywhere in a name


def load_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read a Wan checkpoint and name its tensors as diffusers does.

    Args:
        path: A ``.safetensors`` file, or a ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` of torch, which
            is read without running any code in it. Names may be the original ones or diffusers'.

    Returns:
        Tensors on the CPU by diffusers' names; names that are neither are kept.

    Raises:
        CheckpointError: If the file is missing, damaged, or holds no tensors by name.
    """
    path = Path(path)
    try:
        content = _read(path)
    except FileNotFoundError:
        raise CheckpointError(
            f"there is no checkpoint {str(path)!r}. Check the path, or download the file first."
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint {str(path)!r} cannot be read ({error.strerror or error}). "
            "Name a file that you may read."
        ) from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{str(path)!r} is cut off, no torch file, or holds more than tensors "
            f"({_first_line(error)}). Download it again, or get it as .safetensors: a file with "
            "other objects in it could run code and is not opened."
        ) from error
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise CheckpointError(
            f"{str(path)!r} is damaged or cut off ({_first_line(error)}). "
            "Copy or download it again."
        ) from error
    return to_diffusers(strip_prefixes(unwrap(content)))


def load_into(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint into a network; every key and shape must match.

    Args:
        network: diffusers' transformer, left as it was on an error. Its dtype and device stay.
        state: Tensors by diffusers' names, from `load_checkpoint`.

    Raises:
        CheckpointError: If a tensor is missing, unexpected or of another shape.
    """
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if mismatch := difference(expected, found):
        raise CheckpointError(
            f"the checkpoint does not fit the network: {mismatch}. {_likely_cause(expected, found)}"
        )
    network.load_state_dict(state)


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename original names to diffusers'; other names, diffusers' among them, are kept."""
    return _renamed(state, lambda name: _translate(name, ORIGINAL_TO_DIFFUSERS))


def to_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename diffusers' names to the original ones: the inverse of `to_diffusers`."""
    return _renamed(state, lambda name: _translate(name, DIFFUSERS_TO_ORIGINAL))


def unwrap(content: object) -> Mapping[str, Tensor]:
    """Find the tensors by name in what a checkpoint file holds.

    Raises:
        CheckpointError: If there are none.
    """
    if isinstance(content, Mapping):
        for name in CONTAINERS:
            if isinstance(content.get(name), Mapping):
                content = content[name]
                break
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"the checkpoint holds a {type(content).__name__}, not tensors by name. "
            f"It should be a flat dictionary of them, or hold one as {' or '.join(CONTAINERS)}."
        )
    strangers = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if strangers or not content:
        raise CheckpointError(
            f"the checkpoint holds {_some(strangers) or 'nothing'} where tensors were expected. "
            f"It should be a flat dictionary of them, or hold one as {' or '.join(CONTAINERS)}."
        )
    return content


def strip_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take away what FSDP, DDP and other wrappers put before and into names."""

    def bare(name: str) -> str:
        name = name.replace(FSDP, "")
        while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
            name = name.removeprefix(prefix)
        return name

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
        f"{len(names)} {kind}: {_some(names)}" for kind, names in parts.items() if names
    )


def _read(path: Path) -> object:
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix not in (".pt", ".pth", ".bin", ".ckpt"):
        raise CheckpointError(
            f"{str(path)!r} has the ending {path.suffix!r}. "
            "Checkpoints end in .safetensors, .pt, .pth, .bin or .ckpt."
        )
    # Mapped, so that only the container that is used is read; old files cannot be.
    mapped = zipfile.is_zipfile(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


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


def _likely_cause(expected: Shapes, found: Shapes) -> str:
    """Guess why a checkpoint does not fit, most telling sign first."""
    if any(".base_layer." in name for name in expected):
        return "The network has a LoRA already: load the base weights before add_lora."
    if any("lora_" in name for name in found):
        return "It is a LoRA: load the base model first and the adapter with load_lora."
    if not expected.keys() & found.keys():
        return "It is not a Wan transformer, or its names are of an unknown kind."
    if any("img_emb" in name or "k_img" in name or "add_k_proj" in name for name in found):
        return "It is an image-to-video model: use the text-to-video model."
    blocks, theirs = _num_blocks(expected), _num_blocks(found)
    if blocks != theirs:
        return f"It has {theirs} blocks, the network {blocks}: it is a model of another size."
    if expected.keys() == found.keys():
        return "It is a model of another width or with other text embeddings."
    return "It is incomplete or of another version of the model."


def _num_blocks(shapes: Shapes) -> int:
    return len({match[1] for name in shapes if (match := re.match(r"blocks\.(\d+)\.", name))})


def _some(names: list[str]) -> str:
    """The first few of a list, for an error message."""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
