"""Checkpoints from one form to another, and what a run has trained as others read it."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from astrolabe.checkpoint_files import LORA
from astrolabe.compose import build_model
from astrolabe.errors import ConfigError
from astrolabe.run_folder import RunFolder
from astrolabe.sampling import newest_checkpoint
from astrolabe_rollout.checkpoints import (
    infer_config,
    load_checkpoint,
    load_into,
    meta_network,
    read_config,
    rounded,
)
from astrolabe_rollout.errors import PrecisionWarning
from astrolabe_rollout.export import MERGED, check_target, export_lora, export_transformer
from astrolabe_rollout.lora import load_lora, merge_lora
from astrolabe_rollout.merging import Strength
from astrolabe_rollout.wan import DTYPES, reload

Say = Callable[[str], None]

#: How each format is opened, `{}` being the target.
READERS = {
    "lora": (
        'diffusers: pipeline.load_lora_weights("{}"), of a WanPipeline',
        'peft: PeftModel.from_pretrained(transformer, "{}")',
        'astrolabe: --set lora.start="{}"',
    ),
    "diffusers": ('diffusers: pipeline.load_lora_weights("{}"), of a WanPipeline',),
    "original": (
        'diffusers: pipeline.load_lora_weights("{}"), of a WanPipeline',
        'astrolabe: --set lora.start="{}"',
    ),
    MERGED: (
        'diffusers: WanTransformer3DModel.from_pretrained("{}")',
        "astrolabe: --set model.options.checkpoint={}",
    ),
    ".safetensors": (
        'diffusers: WanTransformer3DModel.from_single_file("{}")',
        "astrolabe: --set model.options.checkpoint={}",
    ),
    ".pt": ("astrolabe: --set model.options.checkpoint={}",),
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
    chosen = _dtype(dtype)
    _check(target, MERGED, overwrite)
    state = load_checkpoint(source)
    known = read_config(source) if source.is_dir() else None
    network = meta_network(known or infer_config(state))
    load_into(network, state)
    if chosen is not None:
        for name, parameter in network.named_parameters():  # all of them, as public files are
            parameter.data = rounded(name, parameter.data, chosen)
    export_transformer(network, target, overwrite=overwrite)
    return sum(parameter.numel() for parameter in network.parameters())


def export(
    run: Path,
    target: Path,
    *,
    kind: str,
    dtype: str = "keep",
    overwrite: bool,
    say: Say,
    allow_code: bool = False,
) -> Strength | None:
    """Write what a run has trained, and say what reads it.

    Args:
        run: Folder of the run.
        target: See `astrolabe_rollout.export.export_lora`; for ``merged`` `export_transformer`.
        kind: ``lora``, ``diffusers``, ``original`` or ``merged``.
        dtype: Of a merged model: ``bf16``, ``fp16``, ``fp32``, or ``keep`` for that of the
            checkpoint that the run began with, whatever precision the run used.
        overwrite: Whether a target that exists is replaced.
        say: Shows a line.
        allow_code: As in `RunFolder.open`.

    Returns:
        Of a merged model: how much of the adapter arrived.

    Raises:
        CheckpointError: If the run has no checkpoint that can be used, or the adapter does not fit
            the format or the precision.
        ConfigError: If the target cannot be used, or the format or the dtype is unknown.
    """
    chosen = _dtype(dtype)
    if kind != MERGED and chosen is not None:
        raise ConfigError(f"--dtype belongs to --format {MERGED}; a LoRA is written in float32.")
    _check(target, kind, overwrite)
    folder, settings = RunFolder.open(run, allow_code=allow_code)
    adapter = newest_checkpoint(folder) / LORA
    strength = None
    if kind == MERGED:
        network = build_model(settings.model).transformer.network
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PrecisionWarning)  # said below, of what is written
            if chosen is None:
                network = reload(network)
            load_lora(network, adapter)
            strength = merge_lora(network, chosen)
        export_transformer(network, target, overwrite=overwrite)
    else:
        export_lora(adapter, target, kind=kind, overwrite=overwrite)
    say(f"{target}  {strength.in_words}" if strength else str(target))
    for reader in READERS[target.suffix if kind == MERGED and target.suffix else kind]:
        say(f"  {reader.format(target)}")
    return strength


def advice(strength: Strength) -> str:
    """What is wrong with a merged model that does not hold its adapter, and what to do."""
    return (
        f"{strength.weakness} Keep the adapter apart with --format lora, or add --dtype fp32 "
        "(or fp16, with a look at the strength that it says)."
    )


def _dtype(name: str) -> torch.dtype | None:
    if name not in ("keep", *DTYPES):
        raise ConfigError(f"--dtype is {name!r}. Choose from: keep, {', '.join(DTYPES)}.")
    return DTYPES.get(name)


def _check(target: Path, kind: str, overwrite: bool) -> None:
    try:
        check_target(target, overwrite=overwrite, kind=kind)
    except (ValueError, FileExistsError) as error:
        raise ConfigError(
            str(error)
            .replace("or allow to overwrite", "or add --overwrite")
            .replace("the format is", "--format is")
        ) from error
