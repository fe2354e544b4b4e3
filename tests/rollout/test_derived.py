"""Tables of rotations that programs keep among the weights."""

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from astrolabe_rollout.checkpoints import load_checkpoint
from astrolabe_rollout.errors import CheckpointError

WEIGHTS = {"patch_embedding.weight": torch.ones(2)}


def wans_table(size=128, length=1024, base=10000):
    """As Wan's code makes it: three tables side by side, for frame, row and column."""
    parts = [size - 4 * (size // 6), 2 * (size // 6), 2 * (size // 6)]
    angles = torch.cat(
        [
            torch.outer(
                torch.arange(length).double(),
                1.0 / base ** (torch.arange(0, part, 2).double() / part),
            )
            for part in parts
        ],
        dim=1,
    )
    return torch.polar(torch.ones_like(angles), angles)


def read(tmp_path, tables, prefix="model."):
    content = {prefix + name: value for name, value in (WEIGHTS | tables).items()}
    torch.save({"generator": content}, tmp_path / "a.pt")
    return load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "form",
    [
        lambda table: table,
        lambda table: table.to(torch.complex64),
        lambda table: torch.view_as_real(table).float(),
        lambda table: table.real.to(torch.bfloat16),
        lambda table: table[:512],
    ],
    ids=["complex", "complex64", "pairs", "real parts in half precision", "shorter"],
)
@pytest.mark.parametrize("size", [128, 64])
def test_wans_table_of_rotations_is_left_out_in_any_form(tmp_path, form, size):
    assert read(tmp_path, {"freqs": form(wans_table(size))}).keys() == WEIGHTS.keys()


def test_the_tables_of_diffusers_are_left_out(tmp_path):
    rope = WanTransformer3DModel(num_attention_heads=1, num_layers=1, ffn_dim=8).rope
    tables = {"rope.freqs_cos": rope.freqs_cos, "rope.freqs_sin": rope.freqs_sin}
    assert read(tmp_path, tables).keys() == WEIGHTS.keys()
    swapped = {"rope.freqs_cos": rope.freqs_sin}
    with pytest.raises(CheckpointError, match=r"'rope.freqs_cos'"):
        read(tmp_path, swapped)


@pytest.mark.parametrize(
    "table",
    [
        wans_table(base=500),
        wans_table().conj().resolve_conj(),
        torch.zeros(1024, 64),
        torch.ones(3),
    ],
    ids=["another base", "turned the other way", "zeros", "another shape"],
)
def test_another_table_of_rotations_is_refused_by_name(tmp_path, table):
    with pytest.raises(CheckpointError, match=r"'freqs' .* is not the table of rotations"):
        read(tmp_path, {"freqs": table})


def test_a_table_without_numbers_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"NaN or infinite numbers: model\.freqs"):
        read(tmp_path, {"freqs": torch.full((1024, 64), torch.nan)})
