"""The families of real models, on small random weights of the same architecture."""

import inspect
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import UMT5Config, UMT5EncoderModel

from astrolabe_rollout import hub, lora_files, tiny, wan
from astrolabe_rollout.checkpoints import load_checkpoint
from astrolabe_rollout.chunks import ChunkStream
from astrolabe_rollout.conversion import to_original
from astrolabe_rollout.errors import CheckpointError
from astrolabe_rollout.lora import add_lora, load_lora, save_lora
from astrolabe_rollout.text import word_tokenizer
from astrolabe_rollout.wan_components import load_codec, load_text_encoder

FAMILIES = {
    # name: size, chunk, window, sink, relative, switch, rebuild, steps, first steps, warped
    "self_forcing": ("1.3b", 3, 21, 0, False, "keep", 0, (1000, 750, 500, 250), (), False),
    "causal_forcing": ("1.3b", 3, 21, 0, False, "keep", 0, (1000, 750, 500, 250), (), False),
    "causal_forcing_framewise": (
        *("1.3b", 1, 21, 0, False, "keep", 0),
        *((1000, 750, 500, 250), (), False),
    ),
    "causal_forcing_2step": (
        *("1.3b", 1, 21, 0, False, "keep", 0),
        *((1000, 500), (1000, 750, 500, 250), False),
    ),
    "causal_forcing_1step": (
        *("1.3b", 1, 21, 0, False, "keep", 0),
        *((1000,), (1000, 750, 500, 250), False),
    ),
    "longlive": ("1.3b", 3, 12, 3, False, "recache", 0, (1000, 750, 500, 250), (), False),
    "infinity_rope": ("1.3b", 3, 6, 1, True, "flush", 0, (1000, 750, 500, 250), (), False),
    "krea_14b": ("14b", 3, 6, 0, False, "keep", 3, (1000, 937, 833, 625), (), True),
}
SMALL = {"height": 32, "width": 48, "dtype": "fp32", "device": "cpu"}


def network():
    torch.manual_seed(0)
    made = WanTransformer3DModel(
        num_attention_heads=1,
        attention_head_dim=128,
        ffn_dim=64,
        text_dim=16,
        num_layers=2,
    )
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files as they are published: generator.pt, lora.pt and a folder of components."""
    path = tmp_path_factory.mktemp("wan")
    made = network()
    named = {f"model.{name}": value for name, value in to_original(made.state_dict()).items()}
    torch.save({"generator_ema": named, "critic": {}}, path / "generator.pt")
    add_lora(made, rank=2, alpha=2, seed=1)
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    save_lora(made, path / "adapter")
    adapter = load_file(path / "adapter" / "adapter_model.safetensors")
    torch.save({"generator_lora": adapter, "step": 3}, path / "lora.pt")

    tokenizer = word_tokenizer(["a", "cat", "dog", "runs"])
    config = UMT5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    UMT5EncoderModel(config).save_pretrained(path / "parts" / "text_encoder")
    tokenizer.save_pretrained(path / "parts" / "tokenizer")
    AutoencoderKLWan(base_dim=8, num_res_blocks=1).save_pretrained(path / "parts" / "vae")
    return path


@pytest.fixture
def load(folder, monkeypatch):
    """Load a family from these files."""
    monkeypatch.setattr(wan, "SIZES", {"1.3b": (2, 1), "14b": (2, 1)})

    def load(name, **options):
        files = {
            "checkpoint": str(folder / "generator.pt"),
            "components": str(folder / "parts"),
            "lora": "",
        }
        return getattr(wan, name)(**{**files, **SMALL, **options})

    return load


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_has_its_published_numbers(name):
    options = inspect.signature(getattr(wan, name)).parameters
    size, chunk, window, sink, relative, switch, rebuild, steps, first, warped = FAMILIES[name]
    found = {key: parameter.default for key, parameter in options.items()}
    assert (found["size"], found["chunk"], found["window"], found["sink"]) == (
        *(size, chunk, window),
        sink,
    )
    assert (found["relative"], found["switch"], found["rebuild"]) == (relative, switch, rebuild)
    assert (found["denoising_steps"], found["first_steps"]) == (steps, first)
    assert (found["warped"], found["shift"]) == (warped, 5.0)
    assert (found["height"], found["width"]) == (480, 832)
    assert found["checkpoint"]
    assert "window: Latent frames in the KV cache" in inspect.getdoc(getattr(wan, name))


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_streams_past_its_window_and_meets_another_prompt(load, name):
    model = load(name)
    geometry = model.geometry
    cat, dog = (model.text([prompt]) for prompt in ("a cat runs", "a dog"))
    stream = ChunkStream(model, [0])
    count = geometry.window // geometry.chunk + 2
    chunks = [stream.next(dog if index > count - 2 else cat) for index in range(count)]
    latents = torch.cat([chunk.latents for chunk in chunks], 1)
    assert latents.shape == (1, count * geometry.chunk, 16, 4, 6)
    assert latents.isfinite().all()
    assert latents.dtype == torch.float32
    assert sum(chunk.pixels.shape[1] for chunk in chunks) == 4 * latents.shape[1] - 3
    assert stream.cache.length <= geometry.window


def test_a_size_without_a_family_needs_a_checkpoint(folder):
    for name in ("wan_1_3b", "wan_14b"):
        parameter = inspect.signature(getattr(wan, name)).parameters["checkpoint"]
        assert parameter.default is inspect.Parameter.empty


def test_the_lora_of_a_family_is_merged(load, folder):
    merged = load("longlive", lora=str(folder / "lora.pt"))
    assert not any("lora" in key for key, _ in merged.transformer.network.named_parameters())
    plain = load("longlive")
    load_lora(plain.transformer.network, folder / "lora.pt")
    embeds = plain.text(["a cat"])
    answers = [ChunkStream(m, [0], decode=False).next(embeds).latents for m in (merged, plain)]
    torch.testing.assert_close(*answers, rtol=0, atol=1e-4)
    without = ChunkStream(load("longlive"), [0], decode=False).next(embeds).latents
    assert (without - answers[0]).abs().max() > 0.01


def test_half_precision_keeps_what_must_be_precise_and_latents_in_float32(load):
    model = load("self_forcing", dtype="bf16")
    network = model.transformer.network
    assert network.proj_out.weight.dtype == torch.bfloat16
    assert network.scale_shift_table.dtype == torch.float32
    assert {p.dtype for p in model.codec.vae.parameters()} == {torch.bfloat16}
    embeds = model.text(["a cat"])
    assert embeds.dtype == torch.bfloat16
    whole = load("self_forcing")
    half, full = (
        ChunkStream(m, [0], decode=False).next(m.text(["a cat"])).latents for m in (model, whole)
    )
    assert half.dtype == torch.float32
    error = (half - full).square().mean().sqrt() / full.square().mean().sqrt()
    assert error < 3e-2


def test_a_model_of_another_size_is_refused(load):
    wan.SIZES["14b"] = (40, 40)
    with pytest.raises(CheckpointError, match=r"has 2 blocks of 1 heads, size '14b' has 40 of 40"):
        load("krea_14b")
    with pytest.raises(ValueError, match=r"size='2b': choose"):
        load("self_forcing", size="2b")


def test_sizes_and_lists_are_refused_before_anything_is_loaded(load, monkeypatch):
    monkeypatch.setattr(wan, "locate", lambda *_: pytest.fail("looked for weights"))
    for options, message in (
        ({"height": 481}, "multiples of 16"),
        ({"window": 2}, "Set window to 3 or more"),
        ({"denoising_steps": [250, 1000]}, "no falling list"),
        ({"dtype": "int8"}, "choose dtype from bf16"),
    ):
        with pytest.raises(ValueError, match=message):
            load("self_forcing", **options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"checkpoint": "gdhe17/Self-Forcing/checkpoints/self_forcing_dmd.pt"},
            [
                "checkpoints/self_forcing_dmd.pt of gdhe17/Self-Forcing",
                "`hf download gdhe17/Self-Forcing checkpoints/self_forcing_dmd.pt --local-dir DIR`",
                "then set checkpoint=DIR/checkpoints/self_forcing_dmd.pt",
            ],
        ),
        (
            {"components": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"},
            [
                "--include 'text_encoder/*' --include 'tokenizer/*' --include 'vae/*'",
                "then set components=DIR",
            ],
        ),
        ({"lora": "owner/name/lora.pt"}, ["the LoRA (lora.pt of owner/name)"]),
        ({"checkpoint": "./no.pt"}, ["there is no checkpoint './no.pt'"]),
        ({"checkpoint": ""}, ["there is no checkpoint"]),
    ],
)
def test_absent_weights_are_named_with_the_way_to_them(load, offline, options, expected):
    with pytest.raises(CheckpointError) as error:
        load("self_forcing", **options)
    for part in expected:
        assert part in str(error.value)


def test_what_is_in_the_cache_of_the_hub_is_used(folder, monkeypatch):
    asked = []

    def download(repository, *, allow_patterns):
        asked.append((repository, allow_patterns))
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert hub.locate("owner/name/lora.pt", "LoRA", "x") == folder / "lora.pt"
    assert hub.locate("owner/parts", "folder", "x", ["adapter"]) == folder
    assert lora_files.locate_lora("owner/name/lora.pt", "x") == folder / "lora.pt"
    assert asked == [
        ("owner/name", ["lora.pt"]),
        ("owner/parts", ["adapter/*"]),
        ("owner/name", ["lora.pt", "lora.pt/*", "adapter_config.json"]),
    ]
    with pytest.raises(CheckpointError, match="has no such file"):
        hub.locate("owner/name/other.pt", "checkpoint", "x")


def test_incomplete_and_damaged_components_are_named(load, folder, tmp_path):
    shutil.copytree(folder / "parts", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "tokenizer")
    with pytest.raises(CheckpointError, match="lacks the folders tokenizer"):
        load("self_forcing", components=str(tmp_path / "parts"))
    shutil.copytree(folder / "parts" / "tokenizer", tmp_path / "parts" / "tokenizer")
    (tmp_path / "parts" / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"vae' cannot be loaded"):
        load("self_forcing", components=str(tmp_path / "parts"))


PLACE = (torch.float32, torch.device("cpu"))
#: Weights of every kind: their file, and what reads it.
WEIGHTS = {
    "transformer": ("transformer.safetensors", load_checkpoint),
    "transformer in 8 bits": ("eight.safetensors", load_checkpoint),
    "shard": ("shards/b.safetensors", lambda file: load_checkpoint(file.parent)),
    "adapter": ("adapter/adapter_model.safetensors", lora_files.read_lora),
    "text encoder": (
        "parts/text_encoder/model.safetensors",
        lambda file: load_text_encoder(file.parents[1], *PLACE),
    ),
    "VAE": (
        "parts/vae/diffusion_pytorch_model.safetensors",
        lambda file: load_codec(file.parents[1], *PLACE),
    ),
    "embedded codec": ("tiny/codec.safetensors", lambda file: tiny.load_tiny(file.parent)),
}


@pytest.fixture(scope="module")
def weights(folder):
    """The folder with some more files."""
    state = {name: value.clone() for name, value in network().state_dict().items()}
    save_file(state, folder / "transformer.safetensors")
    eight = {name: value.to(torch.float8_e4m3fn) for name, value in state.items()}
    save_file(eight, folder / "eight.safetensors")
    (folder / "shards").mkdir()
    half = len(state) // 2
    pieces = {"a": list(state)[:half], "b": list(state)[half:]}
    for name, keys in pieces.items():
        save_file({key: state[key] for key in keys}, folder / "shards" / f"{name}.safetensors")
    names = {key: f"{name}.safetensors" for name, keys in pieces.items() for key in keys}
    index = folder / "shards" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    shutil.copytree(Path(tiny.__file__).parent / "tiny_weights", folder / "tiny")
    return folder


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_that_are_no_numbers_are_refused_by_file_and_name(weights, kind):
    name, read = WEIGHTS[kind]
    file = weights / name
    whole, state = file.read_bytes(), load_file(file)
    read(file)
    try:
        for wrong in (torch.nan, -torch.inf) if "8 bits" not in kind else (torch.nan,):
            last = list(state)[-1]
            spoilt = {key: value.clone() for key, value in state.items()}
            spoilt[last].view(-1)[-1:] = torch.full((1,), wrong).to(spoilt[last].dtype)
            save_file(spoilt, file, metadata={"format": "pt"})
            with pytest.raises(CheckpointError, match="NaN or infinite") as caught:
                read(file)
            assert last in str(caught.value)
            assert file.parent.name in str(caught.value)
            # What is tied is there twice.
            assert re.search(r": [12] of \d+ tensors", str(caught.value))
    finally:
        file.write_bytes(whole)
