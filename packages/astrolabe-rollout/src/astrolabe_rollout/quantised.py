"""Weights in 8 bits, as ComfyUI and its tools write them: turned back exactly, or refused."""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from astrolabe_rollout.errors import CheckpointError
from astrolabe_rollout.input_files import parse_json

EIGHT_BITS: Final = (torch.float8_e4m3fn, torch.float8_e5m2)
#: What each number of a weight is to be multiplied by; beside it, as `<layer>.scale_weight`.
SCALES: Final = ("scale_weight", "weight_scale")
#: Scales of activations, which are not quantised here.
UNUSED: Final = ("scale_input", "input_scale")
#: Whole files are marked by an entry of this name, single layers by the other.
MARK, LAYER_MARK = "scaled_fp8", "comfy_quant"
FORMATS: Final = ("float8_e4m3fn", "float8_e5m2")


def dequantise(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Turn weights of 8 bits into numbers to compute with; all else is kept.

    Args:
        state: Tensors by name, without prefixes of wrappers.
        dtype: Of the weights that had 8 bits; products with scales are made in float32.

    Raises:
        CheckpointError: If a scale is missing, of an unknown shape or belongs to nothing, or
            weights are stored in another way, such as 4 bits or integers.
    """
    marked = MARK in state
    scales: dict[str, Tensor] = {}
    kept: dict[str, Tensor] = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        if kind in SCALES:
            scales[layer] = value
        elif kind == LAYER_MARK:
            _check_mark(name, value)
        elif kind not in UNUSED and name != MARK:
            kept[name] = value
    if lost := [layer for layer in scales if f"{layer}.weight" not in kept]:
        raise CheckpointError(
            f"the checkpoint has a scale for {lost[0]!r}, but no weight of it. Download it again."
        )
    return {
        name: _plain(name, value, scales.get(name.removesuffix(".weight")), marked, dtype)
        for name, value in kept.items()
    }


def _plain(
    name: str, value: Tensor, scale: Tensor | None, marked: bool, dtype: torch.dtype
) -> Tensor:
    way_out = "Get the checkpoint in 16 bits, or in fp8 with one scale a layer."
    if scale is not None and not name.endswith(".weight"):
        scale = None
    if value.dtype not in EIGHT_BITS:
        if scale is not None or not value.is_floating_point() or value.itemsize < 2:
            raise CheckpointError(
                f"{name!r} is stored as {str(value.dtype).removeprefix('torch.')}"
                f"{'' if scale is None else ' with a scale'}, which is not understood. {way_out}"
            )
        return value
    if scale is None:
        if marked and value.ndim > 1:
            raise CheckpointError(
                f"the checkpoint is marked as scaled, but {name!r} has no scale. {way_out}"
            )
        return value.to(dtype)
    rows = (value.shape[0], *[1] * (value.ndim - 1))
    if scale.numel() != 1 and tuple(scale.shape) != rows:
        raise CheckpointError(
            f"the scale of {name!r} has the shape {tuple(scale.shape)}; one number, or {rows} for "
            f"one a row, are understood. {way_out}"
        )
    factor = scale.float().reshape(()) if scale.numel() == 1 else scale.float()
    return (value.float() * factor).to(dtype)


def _check_mark(name: str, value: Tensor) -> None:
    try:
        kind = parse_json(bytes(value.to(torch.uint8).tolist()).decode())["format"]
    except (ValueError, KeyError, TypeError):
        kind = None
    if kind not in FORMATS:
        raise CheckpointError(
            f"{name!r} marks a layer as stored in the format {kind!r}; {' and '.join(FORMATS)} are "
            "understood. Get the checkpoint in 16 bits."
        )
