"""The transformer as others read it: diffusers' folder, or one file with Wan's own names."""

import os
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor

from astrolabe_rollout.conversion import to_original


def export_transformer(
    network: WanTransformer3DModel, target: str | Path, *, overwrite: bool = False
) -> None:
    """Write the weights of a network without a LoRA; what kind of file follows from the target.

    Args:
        network: diffusers' transformer; merge a LoRA first (`astrolabe_rollout.lora.merge_lora`).
        target: ``.safetensors``: one file, original names; ``.pt``: the layout of Self-Forcing,
            ``{"generator": {"model." + original name: tensor}}``; no ending: a folder for
            ``WanTransformer3DModel.from_pretrained``. It appears when it is complete.
        overwrite: Whether a target that exists is replaced.

    Raises:
        ValueError: If the ending is another one, or the network has a LoRA.
        FileExistsError: If the target exists.
        OSError: If it cannot be written, or the disk is full.
    """
    target = Path(target)
    check_target(target, overwrite=overwrite)
    if getattr(network, "peft_config", None):
        raise ValueError("the network has a LoRA. Merge it first with merge_lora(network).")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=target.parent) as folder:
        fresh = Path(folder) / target.name
        if target.suffix == "":
            network.save_pretrained(fresh)
        else:
            _save_original(network.state_dict(), fresh)
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(fresh, target)


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse a target before any work is done; see `export_transformer`.

    Raises:
        ValueError: If the ending is unknown.
        FileExistsError: If the target exists and may not be replaced.
    """
    if target.suffix not in ("", ".safetensors", ".pt"):
        raise ValueError(
            f"{str(target)!r} ends in {target.suffix!r}. Give .safetensors for one file with Wan's "
            "names, .pt for the layout of Self-Forcing, or no ending for a folder of diffusers."
        )
    if target.exists() and not overwrite:
        raise FileExistsError(
            f"{str(target)!r} exists. Choose another name, or allow to overwrite."
        )
    ours = (target / "config.json").is_file() or (target / "adapter_config.json").is_file()
    if target.is_dir() and not ours and any(target.iterdir()):
        raise FileExistsError(
            f"{str(target)!r} is a folder with other things in it. Choose another name."
        )


def _save_original(state: dict[str, Tensor], path: Path) -> None:
    original = {name: value.contiguous() for name, value in to_original(state).items()}
    if path.suffix == ".safetensors":
        save_file(original, path)
    else:
        torch.save({"generator": {f"model.{name}": x for name, x in original.items()}}, path)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
