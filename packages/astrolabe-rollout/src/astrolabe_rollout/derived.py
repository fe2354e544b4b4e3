"""Tables that programs keep among the weights although they follow from the configuration."""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from astrolabe_rollout.errors import CheckpointError
from astrolabe_rollout.extras import wan_extra

with wan_extra():
    from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

#: Wan's own table of rotations, one complex number for each position and pair of channels, and
#: diffusers' two of cosines and sines. Their modules compute them anew.
TABLES: Final = ("freqs", "rope.freqs_cos", "rope.freqs_sin")
#: A table in half precision is this far off; one of other positions differs by as much as 2.
_TOLERANCE: Final = 0.01


def without_tables(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the tables of rotations, which are no weights.

    Args:
        state: Tensors by name, without prefixes of wrappers.

    Raises:
        CheckpointError: If one is not what Wan computes: the model has other positions.
    """
    for name in TABLES:
        if name in state and not _is_wans(name, state[name]):
            shape, kind = tuple(state[name].shape), str(state[name].dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{name!r} ({kind}, {shape}) is not the table of rotations that Wan computes. It "
                "is of a model with other positions; if it is not, take the table out."
            )
    return {name: value for name, value in state.items() if name not in TABLES}


def _is_wans(name: str, table: Tensor) -> bool:
    if name == "freqs":
        if table.is_complex():
            table = torch.view_as_real(table)
        elif table.ndim == 2:  # a module turned into a real precision keeps the real parts
            table = table[..., None]
        if table.ndim != 3 or table.shape[-1] > 2:
            return False
        columns = [column.repeat_interleave(2, dim=1) for column in table.unbind(-1)]
    else:
        columns = [table]
    if any(column.ndim != 2 or not column.numel() or column.shape[1] % 2 for column in columns):
        return False
    rotary = WanRotaryPosEmbed(columns[0].shape[1], (1, 2, 2), len(columns[0]))
    kinds = {"freqs": ("freqs_cos", "freqs_sin")}.get(name, (name.removeprefix("rope."),))
    return all(
        torch.allclose(column.double(), getattr(rotary, kind).double(), rtol=0, atol=_TOLERANCE)
        for column, kind in zip(columns, kinds, strict=False)
    )
