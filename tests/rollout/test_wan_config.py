"""Configurations that would be computed otherwise than they say are refused by name."""

import json
import shutil

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from transformers import UMT5Config, UMT5EncoderModel

from astrolabe_rollout import wan
from astrolabe_rollout.conversion import to_original
from astrolabe_rollout.errors import CheckpointError
from astrolabe_rollout.text import word_tokenizer
from astrolabe_rollout.wan_vae import WanCodec


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of diffusers with all parts, in small."""
    path = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    network = WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=128, ffn_dim=64, text_dim=16, num_layers=1
    )
    network.save_pretrained(path / "transformer")
    tokenizer = word_tokenizer(["a", "cat"])
    tokenizer.save_pretrained(path / "tokenizer")
    config = UMT5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    UMT5EncoderModel(config).save_pretrained(path / "text_encoder")
    AutoencoderKLWan(base_dim=8, num_res_blocks=1).save_pretrained(path / "vae")
    (path / "scheduler").mkdir()
    scheduler = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"}
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return path


@pytest.fixture
def folder(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(wan, "SIZES", {"1.3b": (1, 1)})
    shutil.copytree(whole, tmp_path / "model")
    return tmp_path / "model"


def load(folder):
    sizes = {"height": 32, "width": 32, "dtype": "fp32", "device": "cpu"}
    return wan.wan_1_3b(checkpoint=str(folder), components=str(folder), **sizes)


def change(file, **settings):
    config = json.loads(file.read_text()) | settings
    file.write_text(json.dumps(config))


def test_a_folder_of_diffusers_is_loaded_whole(folder):
    assert load(folder).text(["a cat"]).shape == (1, 512, 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": 2}, r"patch_size is 2, and has to be null"),
        ({"is_residual": True}, r"is_residual is true"),
        ({"in_channels": 12, "out_channels": 12}, r"in_channels is 12.*out_channels is 12"),
        ({"scale_factor_spatial": 16}, r"scale_factor_spatial is 16, and has to be 8"),
        ({"scale_factor_temporal": 8}, r"scale_factor_temporal is 8"),
        ({"temperal_downsample": [True, True, True]}, r"temperal_downsample is"),
        ({"dim_mult": [1, 2, 4]}, r"dim_mult is \[1, 2, 4\]"),
        ({"z_dim": 48}, r"latents_mean is .*48 finite numbers"),
        ({"latents_std": [1.0] * 15}, r"latents_std is"),
        ({"latents_std": [1.0] * 15 + [0.0]}, r"deviations above 0"),
        ({"clip_output": False}, r"clip_output is false"),
        ({"attn_scales": [1.0]}, r"attn_scales is \[1\.0\], and has to be empty"),
        ({"latents_mean": None}, r"latents_mean is null, and has to be 16 finite numbers"),
        ({"latents_std": ["a"] * 16}, r"latents_std is"),
        ({"dim_mult": None}, r"dim_mult is null"),
        ({"base_dim": "8"}, r"vae' cannot be loaded"),
        ({"shift_factor": 0.1}, r"shift_factor is 0\.1, and has to be absent"),
        ({"_class_name": "AutoencoderKLHunyuanVideo"}, r"_class_name"),
    ],
)
def test_a_vae_that_would_decode_otherwise_is_refused(folder, settings, message):
    change(folder / "vae" / "config.json", **settings)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_a_vae_made_in_a_program_is_checked_too():
    # What was decoded before: 12 channels at half the size.
    vae = AutoencoderKLWan(
        base_dim=8, num_res_blocks=1, patch_size=2, in_channels=12, out_channels=12
    )
    with pytest.raises(CheckpointError, match="the VAE is of a kind that is not supported"):
        WanCodec(vae)


@pytest.mark.parametrize(
    "settings", [{"clip_output": True}, {"attn_scales": []}, {"unknown": None}]
)
def test_settings_that_change_nothing_are_accepted(folder, settings):
    change(folder / "vae" / "config.json", **settings)
    load(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_dim": 1280}, r"image_dim is 1280"),
        ({"added_kv_proj_dim": 128}, r"added_kv_proj_dim is 128"),
        ({"pos_embed_seq_len": 514}, r"pos_embed_seq_len"),
        ({"qk_norm": None}, r"qk_norm is null"),
        ({"in_channels": 36}, r"in_channels is 36, and has to be out_channels, 16"),
        ({"ffn_dim": "wide"}, r"no network can be made of this configuration"),
        ({"vace_layers": [0, 5]}, r"vace_layers"),
        ({"quantization_config": {"load_in_4bit": True}}, r"quantization_config"),
        ({"_class_name": "WanVACETransformer3DModel"}, r"_class_name"),
    ],
)
def test_another_kind_of_transformer_is_refused(folder, settings, message):
    change(folder / "transformer" / "config.json", **settings)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def of_wans_own_code(folder, **settings):
    """The transformer as Wan's own repositories hold it: their names, their settings."""
    (file,) = (folder / "transformer").glob("*.safetensors")
    (folder / "own").mkdir()
    save_file(to_original(load_file(file)), folder / "own" / file.name)
    config = {"_class_name": "WanModel", "model_type": "t2v", "text_len": 512, "dim": 128}
    config |= {"num_heads": 1, "in_dim": 16, "out_dim": 16, "ffn_dim": 64, "freq_dim": 256}
    config |= {"num_layers": 1, "eps": 1e-5, "text_dim": 16} | settings
    (folder / "own" / "config.json").write_text(json.dumps(config))
    return wan.load_network(folder / "own")


@pytest.mark.parametrize("heads", [1, 2])
def test_a_folder_of_wans_own_code_is_read_with_its_settings(folder, heads):
    network = of_wans_own_code(folder, num_heads=heads)
    assert network.config.eps == 1e-5
    assert network.config.num_attention_heads == heads
    assert network.config.attention_head_dim == 128 // heads
    (file,) = (folder / "transformer").glob("*.safetensors")
    for name, value in load_file(file).items():
        assert torch.equal(network.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "i2v"}, r'model_type is "i2v", and has to be "t2v"'),
        ({"_class_name": "CausalWanModel", "local_attn_size": 12}, r"local_attn_size is 12"),
        ({"num_heads": 3}, r"dim is 128, and has to be a multiple of num_heads"),
        ({"vace_in_dim": 96}, r"vace_in_dim is 96"),
    ],
)
def test_another_kind_of_wans_own_folder_is_refused(folder, settings, message):
    with pytest.raises(CheckpointError, match=message):
        of_wans_own_code(folder, **settings)


def test_what_the_model_predicts_must_be_a_velocity(folder):
    change(folder / "scheduler" / "scheduler_config.json", prediction_type="epsilon")
    with pytest.raises(CheckpointError, match=r"prediction_type is \"epsilon\""):
        load(folder)


def test_another_kind_of_text_encoder_is_refused(folder):
    change(folder / "text_encoder" / "config.json", model_type="t5")
    with pytest.raises(CheckpointError, match=r"model_type is \"t5\", and has to be 'umt5'"):
        load(folder)


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_weights_that_are_not_in_the_file_are_named(folder, part):
    (file,) = (folder / part).glob("*.safetensors")
    state = load_file(file)
    name = next(name for name in state if "norm" in name)
    del state[name]
    save_file(state, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"1 missing: {name}"):
        load(folder)


def test_parts_of_different_models_are_refused(folder):
    config = UMT5Config(vocab_size=5, d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")
    with pytest.raises(CheckpointError, match="text_dim is 16, 24 is needed"):
        load(folder)
    config.vocab_size = 3
    UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")
    with pytest.raises(CheckpointError, match="knows 5 tokens, the text encoder beside it 3"):
        load(folder)
