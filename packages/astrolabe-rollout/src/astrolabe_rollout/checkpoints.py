"""Checkpoint files of Wan's transformer: read one of any kind, build the network it is of."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from astrolabe_rollout.conversion import (
    Shapes,
    difference,
    num_blocks,
    strip_prefixes,
    to_diffusers,
    unwrap,
)
from astrolabe_rollout.derived import without_tables
from astrolabe_rollout.errors import CheckpointError
from astrolabe_rollout.extras import wan_extra
from astrolabe_rollout.finite import check_finite
from astrolabe_rollout.input_files import check_file
from astrolabe_rollout.input_files import read_json as read_value
from astrolabe_rollout.quantised import dequantise
from astrolabe_rollout.wan_config import (
    check_scheduler,
    check_transformer,
    in_diffusers_words,
    read_json,
)

with wan_extra():
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
    from safetensors import SafetensorError
    from safetensors.torch import load_file

ENDINGS: Final = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
WAN_HEAD_DIM: Final = 128


def load_checkpoint(path: str | Path, eight_bits: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Read a Wan checkpoint and name its tensors as diffusers does.

    Files are mapped into memory, so that only what is used is read.

    Args:
        path: A ``.safetensors`` file; a ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` of torch, which is
            read without running any code in it; or a folder that holds one of these, the shards of
            one, or a folder ``transformer`` with them. Names are the original ones or diffusers'.
        eight_bits: What weights stored in 8 bits become, their scales applied.

    Returns:
        Tensors on the CPU by diffusers' names; names that are neither are kept.

    Raises:
        CheckpointError: If a file is missing, damaged, or holds no tensors by name or numbers that
            are not finite.
    """
    path = Path(path)
    content: dict[str, Tensor] = {}
    if path.is_dir():
        for file in _files_of(path):
            content |= _checked(file)
    else:
        content = _checked(path)
    weights = without_tables(strip_prefixes(content))
    return to_diffusers(dequantise(weights, eight_bits))


def _checked(file: Path) -> dict[str, Tensor]:
    """The network's tensors in a file, all of them finite."""
    found = dict(unwrap(read_file(file)))
    check_finite(file, found)
    return found


def read_file(path: Path) -> object:
    """Read what a file of tensors holds, without running any code in it.

    Raises:
        CheckpointError: If the file is missing, damaged or of another kind.
    """
    if path.suffix not in ENDINGS:
        raise CheckpointError(
            f"{str(path)!r} has the ending {path.suffix!r}. "
            f"Checkpoints end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}, or are folders."
        )
    try:
        check_file(path)  # of what is no file, both libraries read until something ends
        if path.suffix == ".safetensors":
            return load_file(path)
        # Mapped, so that only the container that is used is read; old files cannot be.
        mapped = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise CheckpointError(
            f"there is no checkpoint {str(path)!r}. Check the path, or download the file first."
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint {str(path)!r} cannot be read ({error.strerror or error}). "
            "Name a file that you may read."
        ) from error
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise CheckpointError(
            f"{str(path)!r} is damaged or cut off ({_first_line(error)}). "
            "Copy or download it again."
        ) from error
    # Of whatever is no torch file, a byte is taken for an opcode of pickle, and fails in its way.
    except Exception as error:
        raise CheckpointError(
            f"{str(path)!r} is cut off, no torch file, or holds more than tensors "
            f"({_first_line(error)}). Download it again, or get it as .safetensors: a file with "
            "other objects in it could run code and is not opened."
        ) from error


def load_into(
    network: nn.Module, state: Mapping[str, Tensor], dtype: torch.dtype | None = None
) -> None:
    """Copy a checkpoint into a network; every key and shape must match.

    Args:
        network: diffusers' transformer, left as it was on an error. Its dtype and device stay; one
            on the meta device gets the checkpoint's own tensors instead, without a copy.
        state: Tensors by diffusers' names, from `load_checkpoint`.
        dtype: For a network on the meta device: what its tensors are turned into, but for those
            that diffusers keeps in float32. None leaves them as they are.

    Raises:
        CheckpointError: If a tensor is missing, unexpected or of another shape.
    """
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if mismatch := difference(expected, found):
        raise CheckpointError(
            f"the checkpoint does not fit the network: {mismatch}. {_likely_cause(expected, found)}"
        )
    on_meta = any(value.is_meta for value in network.parameters())
    if on_meta and dtype is not None:
        state = {
            name: rounded(name, value, torch.float32 if is_precise(network, name) else dtype)
            for name, value in state.items()
        }
    network.load_state_dict(state, assign=on_meta)


def is_precise(network: nn.Module, name: str) -> bool:
    """Whether diffusers keeps a parameter in float32, whatever the precision of the others."""
    parts = getattr(network, "_keep_in_fp32_modules", None) or ()
    return any(part in name for part in parts)


def rounded(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in another precision.

    Raises:
        CheckpointError: If one of its numbers is too large for it.
    """
    result = value.to(dtype)
    # Only float16 ends before the others do.
    if dtype == torch.float16 and result.isinf().sum() > value.isinf().sum():
        raise CheckpointError(
            f"{name!r} has numbers up to {float(value.abs().max()):.3g}, and fp16 ends at "
            f"{torch.finfo(dtype).max:.0f}. Choose bf16 or fp32."
        )
    return result


def meta_network(config: Mapping[str, Any]) -> WanTransformer3DModel:
    """Return diffusers' transformer of this configuration, without any memory for its weights.

    Raises:
        CheckpointError: If a setting is no number or none that fits the others.
    """
    try:
        with torch.device("meta"):
            network: WanTransformer3DModel = WanTransformer3DModel.from_config(dict(config))
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise CheckpointError(
            f"no network can be made of this configuration ({_first_line(error)}). "
            "Correct config.json, or download it again."
        ) from error
    return network


def read_config(path: Path) -> dict[str, Any] | None:
    """Return the configuration beside the weights of a diffusers folder, None if there is none.

    Raises:
        CheckpointError: If the file is damaged, or describes a model that is not supported.
    """
    scheduler = path / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():
        check_scheduler(read_json(scheduler), repr(str(scheduler)))
    for file in (path / "config.json", path / "transformer" / "config.json"):
        if file.is_file():
            config = in_diffusers_words(read_json(file), repr(str(file)))
            check_transformer(config, repr(str(file)))
            return config
    return None


def infer_config(state: Mapping[str, Tensor], head_dim: int = WAN_HEAD_DIM) -> dict[str, Any]:
    """Read the configuration of diffusers' transformer off the shapes of a checkpoint.

    Args:
        state: Tensors by diffusers' names.
        head_dim: Size of an attention head, which no shape tells; Wan's is 128.

    Raises:
        CheckpointError: If the tensors that tell are missing.
    """
    try:
        width, channels, *patch = state["patch_embedding.weight"].shape
        config = {
            "num_attention_heads": width // head_dim,
            "attention_head_dim": head_dim,
            "in_channels": channels,
            "out_channels": state["proj_out.weight"].shape[0] // (patch[0] * patch[1] * patch[2]),
            "patch_size": tuple(patch),
            "text_dim": state["condition_embedder.text_embedder.linear_1.weight"].shape[1],
            "freq_dim": state["condition_embedder.time_embedder.linear_1.weight"].shape[1],
            "ffn_dim": state["blocks.0.ffn.net.0.proj.weight"].shape[0],
            "num_layers": num_blocks(state),
        }
    except (KeyError, IndexError) as error:
        raise CheckpointError(
            f"the checkpoint is not one of Wan's transformer: it has no {error}. "
            f"It holds {len(state)} tensors, such as {', '.join(list(state)[:3])}."
        ) from error
    if width % head_dim:
        raise CheckpointError(
            f"the checkpoint is {width} wide, which is no multiple of the head size {head_dim}. "
            "Give the folder with its config.json, which tells the head size."
        )
    return config


def _files_of(folder: Path) -> list[Path]:
    """The weights files of a folder."""
    for index in sorted(folder.glob("*.index.json")):
        try:
            names = {Path(name) for name in read_value(index)["weight_map"].values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{str(index)!r} is no index of shards ({error}). Download it again."
            ) from error
        if missing := sorted(str(name) for name in names if not (folder / name).is_file()):
            raise CheckpointError(
                f"{str(folder)!r} lacks the shards {', '.join(missing)}, which {index.name} names. "
                "Download them into the same folder."
            )
        return [folder / name for name in sorted(names)]
    for ending in ENDINGS:
        found = sorted(folder.glob(f"*{ending}"))
        if len(found) == 1:
            return found
        if found:
            raise CheckpointError(
                f"{str(folder)!r} holds {len(found)} checkpoints: "
                f"{', '.join(file.name for file in found[:4])}. Name one of them."
            )
    if (folder / "transformer").is_dir():
        return _files_of(folder / "transformer")
    raise CheckpointError(
        f"{str(folder)!r} holds no checkpoint. "
        f"Files of weights end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}."
    )


def _likely_cause(expected: Shapes, found: Shapes) -> str:
    """Guess why a checkpoint does not fit, most telling sign first."""
    if any(".base_layer." in name for name in expected):
        return "The network has a LoRA already: load the base weights before add_lora."
    if any("lora_" in name for name in found):
        return "It is a LoRA: load the base model first and the adapter with load_lora."
    if any("quant" in name or "absmax" in name or "_scale" in name for name in found):
        return "Its weights are quantised: get it in 16 bits, or in fp8 with one scale a layer."
    if not expected.keys() & found.keys():
        return "It is not a Wan transformer, or its names are of an unknown kind."
    if any("img_emb" in name or "k_img" in name or "add_k_proj" in name for name in found):
        return "It is an image-to-video model: use the text-to-video model."
    blocks, theirs = num_blocks(expected), num_blocks(found)
    if blocks != theirs:
        return f"It has {theirs} blocks, the network {blocks}: it is a model of another size."
    if expected.keys() == found.keys():
        return "It is a model of another width or with other text embeddings."
    return "It is incomplete or of another version of the model."


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
