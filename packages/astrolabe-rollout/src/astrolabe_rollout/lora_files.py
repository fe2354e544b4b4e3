"""LoRA files: peft's folders, LongLive's ``lora.pt``, files with Wan's or diffusers' names."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from peft import LoraConfig
from torch import Tensor

from astrolabe_rollout.checkpoints import read_file
from astrolabe_rollout.conversion import bare, to_diffusers
from astrolabe_rollout.errors import CheckpointError

WEIGHTS_FILE: Final = "adapter_model.safetensors"
PICKLED_FILE: Final = "adapter_model.bin"
CONFIG_FILE: Final = "adapter_config.json"
PREFIX: Final = "base_model.model."  # of every key in a file of peft

#: Where training code keeps the generator's LoRA beside the critic's.
CONTAINERS: Final = ("generator_lora", "lora", "state_dict")
#: Other writers' words for the two matrices.
MATRICES: Final = {"lora_down": "lora_A", "lora_up": "lora_B"}


def read_lora(path: str | Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Read a LoRA, with diffusers' names of the layers.

    Args:
        path: A folder of peft (``adapter_config.json`` beside ``adapter_model.safetensors`` or
            ``.bin``), or a file: LongLive's ``lora.pt``, or a ``.safetensors`` of Wan's or
            diffusers' names. A file says neither rank nor scale: the rank is read off the shapes,
            and alpha equals it, as in LongLive, unless the file has ``.alpha`` entries.

    Returns:
        Settings, and tensors named ``<layer>.lora_A.weight`` ``[r, in]`` and
        ``<layer>.lora_B.weight`` ``[out, r]``.

    Raises:
        CheckpointError: If a file is missing, damaged, or no LoRA.
    """
    path = Path(path)
    if path.is_file():
        weights, alphas = _renamed(path, _unwrapped(path))
        return _inferred(path, weights, alphas), weights
    config = _read_config(path)
    file = path / WEIGHTS_FILE
    if not file.is_file() and (path / PICKLED_FILE).is_file():
        file = path / PICKLED_FILE
    if not file.is_file():
        raise CheckpointError(_missing(file))
    content = _unwrapped(file)
    weights, _ = _renamed(file, content)
    if not any(name in key for key in content for name in weights):
        config.target_modules = _targets(weights)  # all were in the original names
    return config, weights


def _unwrapped(path: Path) -> Mapping[str, Tensor]:
    content = read_file(path)
    if isinstance(content, Mapping):
        for name in CONTAINERS:
            if isinstance(content.get(name), Mapping):
                content = content[name]
                break
    if not isinstance(content, Mapping) or not all(isinstance(x, Tensor) for x in content.values()):
        raise CheckpointError(
            f"{str(path)!r} holds no LoRA: a flat dictionary of tensors was expected, or one as "
            f"{' or '.join(CONTAINERS)}."
        )
    return content


def _renamed(
    path: Path, content: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Tensors by diffusers' names, and the alpha of each layer that has one."""
    weights: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for key, value in content.items():
        name = bare(key.replace(".default.", "."))
        layer, _, rest = name.partition(".lora_")
        if not rest and name.endswith(".alpha"):
            alphas[_layer(name.removesuffix(".alpha"))] = float(value)
            continue
        matrix = f"lora_{rest.removesuffix('.weight')}"
        matrix = MATRICES.get(matrix, matrix)
        if matrix not in ("lora_A", "lora_B"):
            raise CheckpointError(
                f"{str(path)!r} is no LoRA of linear layers: it has an entry {key!r}. "
                "Its entries should end in .lora_A.weight and .lora_B.weight."
            )
        weights[f"{_layer(layer)}.{matrix}.weight"] = value
    if not weights:
        raise CheckpointError(f"{str(path)!r} holds no LoRA: it has no entries. Download it again.")
    return weights, alphas


def _layer(name: str) -> str:
    """A layer in diffusers' names."""
    return next(iter(to_diffusers({f"{name}.weight": Tensor()}))).removesuffix(".weight")


def _inferred(path: Path, weights: Mapping[str, Tensor], alphas: Mapping[str, float]) -> LoraConfig:
    """The settings of a file that has none."""
    ranks = {value.shape[0] for name, value in weights.items() if ".lora_A." in name}
    scales = set(alphas.values())
    if len(ranks) != 1 or len(scales) > 1:
        raise CheckpointError(
            f"{str(path)!r} has layers of rank {sorted(ranks)} and alpha {sorted(scales)}; each "
            "must be one number. Get the adapter as a folder of peft instead."
        )
    rank = ranks.pop()
    alpha = scales.pop() if scales else float(rank)
    if not alpha.is_integer():
        raise CheckpointError(
            f"{str(path)!r} has alpha {alpha}; peft knows whole numbers. Convert it to a folder of "
            "peft, with its weights scaled to a whole alpha."
        )
    return LoraConfig(r=rank, lora_alpha=int(alpha), target_modules=_targets(weights))


def _targets(weights: Mapping[str, Tensor]) -> list[str]:
    """Ends of the names of the layers that have an update."""
    layers = {name.partition(".lora_")[0] for name in weights}
    return sorted({re.sub(r"^blocks\.\d+\.", "", layer) for layer in layers})


def _read_config(folder: Path) -> LoraConfig:
    path = folder / CONFIG_FILE
    try:
        kind = json.loads(path.read_text(encoding="utf-8"))["peft_type"]
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(_missing(path)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{str(path)!r} is not a configuration of peft ({error}). Save the adapter again."
        ) from error
    if kind != "LORA":
        raise CheckpointError(
            f"{str(path)!r} describes an adapter of type {kind!r}. Only LORA can be loaded."
        )
    config: LoraConfig = LoraConfig.from_pretrained(str(folder))
    return config


def _missing(path: Path) -> str:
    there = ", ".join(sorted(entry.name for entry in path.parent.glob("*"))) or "nothing"
    return (
        f"there is no {path.name} in {str(path.parent)!r}, which holds {there}. "
        "Name the folder that save_lora or peft wrote, or a file with a LoRA."
    )
