"""Checkpoints of 8 bits, and checkpoints of which only some is there."""

import json

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors.torch import save_file

from astrolabe_rollout.checkpoints import load_checkpoint
from astrolabe_rollout.conversion import to_diffusers, to_original
from astrolabe_rollout.errors import CheckpointError
from astrolabe_rollout.wan import load_network

E4M3 = torch.float8_e4m3fn


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(0)
    network = WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=128, ffn_dim=64, text_dim=16, num_layers=1
    )
    return {k: v.detach().contiguous() for k, v in to_original(network.state_dict()).items()}


def matrices(state):
    return [name for name in state if name.startswith("blocks.") and state[name].ndim == 2]


def scaled(state, kind="scale_weight", rows=False, mark=True):
    """A file as ComfyUI writes it, and what its weights mean."""
    file, meant = dict(state), dict(state)
    for name in matrices(state):
        value = state[name]
        scale = (value.abs().amax(1, keepdim=True) if rows else value.abs().amax()) / 448
        file[name] = (value / scale).to(E4M3)
        meant[name] = file[name].float() * scale
        file[name.replace(".weight", f".{kind}")] = scale if rows else scale.reshape(1)
    if mark:
        file["scaled_fp8"] = torch.zeros(2, dtype=E4M3)
    return file, meant


def same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kind": "weight_scale", "mark": False},
        {"rows": True},
    ],
    ids=["scaled", "newer names", "one scale a row"],
)
def test_scaled_weights_of_eight_bits_become_what_they_mean(tmp_path, original, options, prefix):
    file, meant = scaled(original, **options)
    file["blocks.0.ffn.0.scale_input"] = torch.ones(1)  # of activations, which keep 16 bits
    save_file(
        {f"{prefix}{name}": value for name, value in file.items()}, tmp_path / "a.safetensors"
    )
    same(load_checkpoint(tmp_path / "a.safetensors"), to_diffusers(meant))
    half = load_network(tmp_path / "a.safetensors", torch.bfloat16).state_dict()
    name = "blocks.0.attn1.to_q.weight"
    assert torch.equal(half[name], to_diffusers(meant)[name].to(torch.bfloat16))


@pytest.mark.parametrize("kind", [E4M3, torch.float8_e5m2])
def test_weights_cast_to_eight_bits_lose_nothing_more(tmp_path, original, kind):
    cast = {k: v.to(kind) if k in matrices(original) else v for k, v in original.items()}
    save_file(cast, tmp_path / "a.safetensors")
    same(
        load_checkpoint(tmp_path / "a.safetensors"),
        to_diffusers({name: value.float() for name, value in cast.items()}),
    )


def mark(text):
    return torch.tensor(list(json.dumps(text).encode()), dtype=torch.uint8)


def test_a_layer_marked_as_fp8_is_read(tmp_path, original):
    file, meant = scaled(original, kind="weight_scale", mark=False)
    file["blocks.0.ffn.0.comfy_quant"] = mark({"format": "float8_e4m3fn"})
    save_file(file, tmp_path / "a.safetensors")
    same(load_checkpoint(tmp_path / "a.safetensors"), to_diffusers(meant))


Q = "blocks.0.self_attn.q"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(f"{Q}.scale_weight"), r"marked as scaled, but 'blocks.0.self_attn.q.weig"),
        (lambda s: s.pop(f"{Q}.weight"), r"a scale for 'blocks\.0\.self_attn\.q', but no weight"),
        (
            lambda s: s.update({f"{Q}.scale_weight": torch.ones(1, 128)}),
            r"q\.weight' has the shape \(1, 128\); one number, or \(128, 1\)",
        ),
        (
            lambda s: s.update({f"{Q}.weight": torch.zeros(128, 128)}),
            r"stored as float32 with a scale, which is not understood",
        ),
        (
            lambda s: s.update({f"{Q}.weight": torch.zeros(128, 128, dtype=torch.int8)}),
            r"stored as int8 with a scale",
        ),
        (lambda s: s.update({f"{Q}.comfy_quant": mark({"format": "nvfp4"})}), r"format 'nvfp4'"),
        (
            lambda s: s.update({f"{Q}.weight_scale_inv": torch.ones(1, 1)}),
            r"q\.weight_scale_inv.*in 16 bits, or in fp8",
        ),
    ],
    ids=["no scale", "no weight", "columns", "not quantised", "int8", "4 bits", "blocks"],
)
def test_other_ways_to_store_weights_are_refused_by_name(tmp_path, original, change, message):
    file, _ = scaled(original)
    change(file)
    save_file(file, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_network(tmp_path / "a.safetensors")


@pytest.mark.parametrize("empty", [None, {}], ids=["None", "empty"])
@pytest.mark.parametrize("nested", [False, True])
def test_an_average_that_has_not_begun_is_passed_over(tmp_path, original, empty, nested):
    weights = {f"model.{name}": value for name, value in original.items()}
    content = {"generator_ema": empty, "generator": weights, "step": 3}
    torch.save({"state_dict": content} if nested else content, tmp_path / "a.pt")
    same(load_checkpoint(tmp_path / "a.pt"), to_diffusers(original))


def test_an_average_of_some_weights_is_refused_by_name(tmp_path, original):
    few = dict(list(original.items())[:5])
    wrapped = {f"model._fsdp_wrapped_module.{name}": value for name, value in original.items()}
    torch.save({"generator_ema": few, "generator": wrapped}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"generator_ema lacks \d+ of the 42 tensors"):
        load_checkpoint(tmp_path / "a.pt")
    # A whole average is taken, whatever names its wrappers gave it.
    torch.save({"generator_ema": original, "generator": wrapped}, tmp_path / "a.pt")
    same(load_checkpoint(tmp_path / "a.pt"), to_diffusers(original))
    torch.save({"ema": {"decay": 0.99, "shadow": [1]}, "generator": wrapped}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="holds decay, shadow where tensors"):
        load_checkpoint(tmp_path / "a.pt")
