"""The golden model: small random weights in Wan's own names, run once by public reference code."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file

from astrolabe_rollout.checkpoints import load_checkpoint, load_into, meta_network
from astrolabe_rollout.geometry import Geometry
from astrolabe_rollout.transformer import CausalWan

GOLDEN = Path(__file__).parents[1] / "golden" / "model"


@pytest.fixture(scope="session")
def golden():
    return lambda name: load_file(GOLDEN / f"{name}.safetensors")


@pytest.fixture(scope="session")
def golden_network():
    config = json.loads((GOLDEN / "config.json").read_text())
    network = WanTransformer3DModel(
        num_attention_heads=config["num_heads"],
        attention_head_dim=config["dim"] // config["num_heads"],
        text_dim=config["text_dim"],
        freq_dim=config["freq_dim"],
        ffn_dim=config["ffn_dim"],
        num_layers=config["num_layers"],
    )
    load_into(network, load_checkpoint(GOLDEN / "weights_original_keys.safetensors"))
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def golden_half(golden_network):
    """The same in bf16, as diffusers loads it."""
    network = meta_network(golden_network.config)
    state = {name: value.clone() for name, value in golden_network.state_dict().items()}
    load_into(network, state, torch.bfloat16)
    network.requires_grad_(False)
    return lambda **options: CausalWan(network, Geometry(48, 64, **options))


@pytest.fixture
def golden_wan(golden_network):
    """Build a causal model with golden weights and the given chunk, window, sink and positions."""

    def build(chunk=3, window=None, sink=0, relative=False):
        geometry = Geometry(48, 64, chunk=chunk, window=window, sink=sink)
        return CausalWan(golden_network, geometry, relative)

    return build
