"""What was trained as others read it: the transformer, or its LoRA alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from astrolabe_rollout.conversion import to_original
from astrolabe_rollout.extras import wan_extra
from astrolabe_rollout.files import check_place, replacing
from astrolabe_rollout.lora_files import read_lora
from astrolabe_rollout.lora_formats import write_diffusers, write_original, write_peft
from astrolabe_rollout.lora_notes import CONFIG_FILE

with wan_extra():
    from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
    from safetensors.torch import save_file

MERGED: Final = "merged"
#: Endings of a target by format; none: a folder.
ENDINGS: Final[Mapping[str, tuple[str, ...]]] = {
    "lora": ("",),
    MERGED: ("", ".safetensors", ".pt"),
    "diffusers": ("",),
    "original": (".safetensors",),
}
#: Files by which a folder is known as one that may be replaced.
OURS: Final = ("config.json", CONFIG_FILE, LORA_WEIGHT_NAME_SAFE)


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
    with replacing(target) as fresh:
        if target.suffix == "":
            network.save_pretrained(fresh)
        else:
            _save_original(network.state_dict(), fresh)


def export_lora(
    source: str | Path, target: str | Path, *, kind: str = "lora", overwrite: bool = False
) -> None:
    """Write a LoRA for another program.

    Args:
        source: An adapter of any kind that `astrolabe_rollout.lora_files.read_lora` reads.
        target: A folder, or for ``original`` a file. It appears when it is complete.
        kind: ``lora``: a folder for peft's ``PeftModel.from_pretrained``, for diffusers'
            ``WanPipeline.load_lora_weights``, and for `load_lora`. ``diffusers``: a folder without
            peft's files, half as large. ``original``: one file of Wan's own names, with an alpha
            for each layer, for ``load_lora_weights`` and `load_lora`.
        overwrite: Whether a target that exists is replaced.

    Raises:
        CheckpointError: If the source is no LoRA, or holds what the format has no place for.
        ValueError: If the kind is unknown, or the target has another ending.
        FileExistsError: If the target exists.
        OSError: If it cannot be written, or the disk is full.
    """
    target = Path(target)
    check_target(target, overwrite=overwrite, kind=kind)
    if kind == MERGED:
        raise ValueError("a LoRA alone is no whole model. Use merge_lora and export_transformer.")
    adapter = read_lora(source)
    with replacing(target) as fresh:
        if kind == "original":
            write_original(adapter.weights, adapter.scales, fresh)
            return
        if kind == "lora":
            write_peft(adapter.config, adapter.weights, fresh)
        write_diffusers(adapter.config, adapter.weights, fresh)


def check_target(target: Path, *, overwrite: bool, kind: str = MERGED) -> None:
    """Refuse a target before any work is done; see `export_transformer` and `export_lora`.

    Raises:
        ValueError: If the kind is unknown, or the ending is not one of it.
        FileExistsError: If the target exists and may not be replaced.
        OSError: As `astrolabe_rollout.files.check_place`.
    """
    if kind not in ENDINGS:
        raise ValueError(f"the format is {kind!r}. Choose from: {', '.join(ENDINGS)}.")
    if kind != MERGED and target.suffix not in ENDINGS[kind]:
        what = "a file .safetensors" if ENDINGS[kind][0] else "a folder. Leave out the ending"
        raise ValueError(f"{str(target)!r}: with {kind} a LoRA is written as {what}.")
    if target.suffix not in ENDINGS[kind]:
        raise ValueError(
            f"{str(target)!r} ends in {target.suffix!r}. Give .safetensors for one file with Wan's "
            "names, .pt for the layout of Self-Forcing, or no ending for a folder of diffusers."
        )
    if target.exists() and not overwrite:
        raise FileExistsError(
            f"{str(target)!r} exists. Choose another name, or allow to overwrite."
        )
    ours = any((target / name).is_file() for name in OURS)
    if target.is_dir() and not ours and any(target.iterdir()):
        raise FileExistsError(
            f"{str(target)!r} is a folder with other things in it. Choose another name."
        )
    check_place(target)


def _save_original(state: dict[str, Tensor], path: Path) -> None:
    original = {name: value.contiguous() for name, value in to_original(state).items()}
    if path.suffix == ".safetensors":
        save_file(original, path)
    else:
        content = {"generator": {f"model.{name}": x for name, x in original.items()}}
        # Into a file that Python opened: into one of its own, torch hides why it cannot write.
        with path.open("wb") as file:
            torch.save(content, file)
