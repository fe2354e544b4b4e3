"""Checkpoints from one form to another, and what a run has trained as others read it."""

import shutil
from pathlib import Path

import torch
from torch import nn

from astrolabe.checkpoint_files import LORA
from astrolabe.compose import build_model
from astrolabe.errors import ConfigError
from astrolabe.run_folder import RunFolder
from astrolabe.sampling import load_trained
from astrolabe_rollout.checkpoints import (
    infer_config,
    load_checkpoint,
    load_into,
    meta_network,
    read_config,
)
from astrolabe_rollout.export import check_target, export_transformer
from astrolabe_rollout.lora import merge_lora

DTYPES = {
    "keep": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}


def convert(source: Path, target: Path, *, dtype: str, overwrite: bool) -> int:
    """Write a checkpoint of any kind in the form that the target's ending asks for.

    Args:
        source: See `astrolabe_rollout.checkpoints.load_checkpoint`.
        target: See `astrolabe_rollout.export.export_transformer`.
        dtype: ``keep``, ``bf16``, ``fp16`` or ``fp32``.
        overwrite: Whether a target that exists is replaced.

    Returns:
        Number of parameters.

    Raises:
        CheckpointError: If the source cannot be read or is no transformer of Wan.
        ConfigError: If the target cannot be used, or the dtype is unknown.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"--dtype is {dtype!r}. Choose from: {', '.join(DTYPES)}.")
    chosen = DTYPES[dtype]
    _check(target, overwrite)
    state = load_checkpoint(source)
    known = read_config(source) if source.is_dir() else None
    network = meta_network(known or infer_config(state))
    load_into(network, state)
    if chosen is not None:
        nn.Module.to(network, chosen)  # all of it, as public files are; diffusers would complain
    export_transformer(network, target, overwrite=overwrite)
    return sum(parameter.numel() for parameter in network.parameters())


def export(run: Path, target: Path, *, kind: str, overwrite: bool) -> None:
    """Write what a run has trained: its adapter as a folder of peft, or the whole model with it.

    Args:
        run: Folder of the run.
        target: For ``lora`` a folder, for ``merged`` see `export_transformer`.
        kind: ``lora`` or ``merged``.
        overwrite: Whether a target that exists is replaced.

    Raises:
        CheckpointError: If the run has no checkpoint that can be used.
        ConfigError: If the target cannot be used, or the kind is unknown.
    """
    if kind not in ("lora", "merged"):
        raise ConfigError(f"--format is {kind!r}. Choose from: lora, merged.")
    if kind == "lora" and target.suffix:
        raise ConfigError(f"{str(target)!r}: a LoRA is written as a folder. Leave out the ending.")
    _check(target, overwrite)
    folder, settings = RunFolder.open(run)
    model = build_model(settings.model)
    checkpoint = load_trained(model, folder)
    if kind == "lora":
        target.mkdir(parents=True, exist_ok=True)
        for file in (checkpoint / LORA).iterdir():
            shutil.copy2(file, target / file.name)
        return
    network = model.transformer.network
    merge_lora(network)
    export_transformer(network, target, overwrite=overwrite)


def _check(target: Path, overwrite: bool) -> None:
    try:
        check_target(target, overwrite=overwrite)
    except (ValueError, FileExistsError) as error:
        raise ConfigError(
            str(error).replace("or allow to overwrite", "or add --overwrite")
        ) from error
