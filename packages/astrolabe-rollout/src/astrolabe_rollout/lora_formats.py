"""A LoRA as other programs read it: peft's folder, diffusers' file, a file of original names."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from astrolabe_rollout.errors import CheckpointError
from astrolabe_rollout.extras import wan_extra
from astrolabe_rollout.files import replacing
from astrolabe_rollout.lora_files import WEIGHTS_FILE
from astrolabe_rollout.lora_names import PREFIX, original_name
from astrolabe_rollout.lora_notes import CONFIG_FILE

with wan_extra():
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
    from peft import LoraConfig
    from safetensors.torch import save

#: Settings that say nothing of what the adapter computes.
_BOOKKEEPING: Final = ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version")
#: Settings that are written even where they are peft's defaults.
_ALWAYS: Final = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora")


def write_peft(config: LoraConfig, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json``.

    Files of an earlier save are replaced only when the new ones are whole.

    Args:
        config: The settings.
        weights: By diffusers' names, such as ``blocks.0.attn1.to_q.lora_A.weight``.
        folder: Made if missing.

    Raises:
        OSError: If it cannot be written, or the disk is full.
    """
    if isinstance(config.target_modules, set):  # in another order every time Python starts
        config.target_modules = sorted(config.target_modules)
    # diffusers reads the settings from the header, and would take alpha = rank without it.
    packed = _packed(config, weights, PREFIX)
    with replacing(folder / CONFIG_FILE) as fresh, replacing(folder / WEIGHTS_FILE) as part:
        part.write_bytes(packed)
        config.save_pretrained(str(fresh.parent))


def write_diffusers(config: LoraConfig, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write ``pytorch_lora_weights.safetensors``, as pipelines of diffusers read and write it.

    Args: see `write_peft`.

    Raises:
        OSError: If it cannot be written, or the disk is full.
    """
    with replacing(folder / LORA_WEIGHT_NAME_SAFE) as part:
        part.write_bytes(_packed(config, weights, "transformer."))


def write_original(weights: Mapping[str, Tensor], scales: Mapping[str, float], file: Path) -> None:
    """Write one file of Wan's own names after ``diffusion_model.``, with an alpha for each layer.

    Args:
        weights: See `write_peft`.
        scales: What the product of each layer's matrices is multiplied with; alpha is that times
            the rank, as all programs divide it by the rank.
        file: A ``.safetensors``.

    Raises:
        CheckpointError: If it holds more than A and B of layers that have such names.
        OSError: If it cannot be written, or the disk is full.
    """
    content: dict[str, Tensor] = {}
    for name, value in weights.items():
        layer, _, matrix = name.partition(".lora_")
        original = original_name(layer)
        if matrix not in ("A.weight", "B.weight") or original == layer:
            raise CheckpointError(
                f"the adapter has an entry {name!r}, for which files of the original names have "
                "no place. Export it as a folder of peft."
            )
        content[f"diffusion_model.{original}.lora_{matrix}"] = value
        if matrix == "A.weight":
            alpha = torch.tensor(float(scales[layer] * value.shape[0]))
            content[f"diffusion_model.{original}.alpha"] = alpha
    with replacing(file) as part:
        part.write_bytes(save(_contiguous(content), {"format": "pt"}))


def _packed(config: LoraConfig, weights: Mapping[str, Tensor], prefix: str) -> bytes:
    """A file of safetensors with the settings in its header, as diffusers reads them."""
    usual, own = (_settings(x) for x in (LoraConfig(), config))
    settings = {
        f"{prefix}{name}": sorted(value) if isinstance(value, set) else value
        for name, value in own.items()
        if name in _ALWAYS or (name not in _BOOKKEEPING and value != usual.get(name))
    }
    # One entry alone: the order of several would differ from save to save.
    header = {LORA_ADAPTER_METADATA_KEY: json.dumps(settings, sort_keys=True)}
    return save(_contiguous({f"{prefix}{name}": x for name, x in weights.items()}), header)


def _settings(config: LoraConfig) -> dict[str, Any]:
    settings: dict[str, Any] = config.to_dict()  # type: ignore[no-untyped-call]
    return settings


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
