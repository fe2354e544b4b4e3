"""Each format, opened by the programs that it is for: the answers of the network it came from."""

import json

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import UMT5Config, UMT5EncoderModel

from astrolabe_rollout.errors import CheckpointError
from astrolabe_rollout.export import export_lora
from astrolabe_rollout.lora import load_lora, save_lora
from astrolabe_rollout.text import word_tokenizer

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
SETTINGS = {
    "alpha that is not the rank": {"r": 4, "lora_alpha": 6},
    "stabilised scale": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "ranks and alphas by layer": {
        **{"r": 4, "lora_alpha": 6, "rank_pattern": {"attn1.to_q": 2, "ffn.net.2": 3}},
        **{"alpha_pattern": {"blocks.1.attn2.to_k": 1, "ffn.net.2": 9}},
    },
}


def network():
    torch.manual_seed(0)
    made = WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=24, ffn_dim=32, text_dim=16, num_layers=2
    )
    return made.eval().requires_grad_(False)


def pipeline(transformer):
    torch.manual_seed(1)
    tokenizer = word_tokenizer(["a", "cat", "runs"])
    text = UMT5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    made = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(text).eval(),
        vae=AutoencoderKLWan(base_dim=8, num_res_blocks=1).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        transformer=transformer,
    )
    made.set_progress_bar_config(disable=True)
    return made


def pictures(pipe):
    made = pipe(
        "a cat runs",
        **{"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2},
        **{"guidance_scale": 1.0, "max_sequence_length": 8, "output_type": "pt"},
        generator=torch.Generator().manual_seed(3),
    )
    return made.frames


def answer(transformer):
    generator = torch.Generator().manual_seed(2)
    return transformer(
        torch.randn(1, 16, 2, 4, 4, generator=generator),
        torch.tensor([600.0]),
        torch.randn(1, 5, 16, generator=generator),
        return_dict=False,
    )[0]


@pytest.fixture(scope="module", params=SETTINGS)
def tuned(request, tmp_path_factory):
    """A network with an adapter that does much, and the adapter's folder."""
    made, folder = network(), tmp_path_factory.mktemp("tuned")
    made.add_adapter(LoraConfig(target_modules=TARGETS, **SETTINGS[request.param]), "default")
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_lora(made.requires_grad_(False), folder)
    return made, folder


def by_pipeline(path):
    fresh = network()
    pipeline(fresh).load_lora_weights(path)
    return fresh


def by_layer(path):
    fresh = network()
    fresh.load_lora_adapter(path, use_safetensors=True)
    return fresh


def by_weight_name(path):
    fresh = network()
    fresh.load_lora_adapter(
        path, prefix="base_model.model", weight_name="adapter_model.safetensors"
    )
    return fresh


def by_peft(path):
    return PeftModel.from_pretrained(network(), path).base_model.model


def by_astrolabe(path):
    fresh = network()
    load_lora(fresh, path)
    return fresh


READERS = [
    ("lora", "adapter", by_pipeline),
    ("lora", "adapter", by_layer),
    ("lora", "adapter", by_weight_name),
    ("lora", "adapter", by_peft),
    ("lora", "adapter", by_astrolabe),
    ("diffusers", "adapter", by_pipeline),
    ("diffusers", "adapter", by_layer),
    ("original", "a.safetensors", by_pipeline),
    ("original", "a.safetensors", by_astrolabe),
]


@pytest.mark.parametrize(("kind", "name", "read"), READERS)
def test_each_program_that_a_format_is_for_finds_the_same_adapter(
    tuned, tmp_path, kind, name, read
):
    made, folder = tuned
    export_lora(folder, tmp_path / name, kind=kind)
    expected = answer(made)
    assert (expected - answer(network())).abs().max() > 0.05
    torch.testing.assert_close(answer(read(tmp_path / name)), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("kind", "name"), [("lora", "a"), ("diffusers", "a"), ("original", "a.safetensors")]
)
def test_the_pipeline_shows_the_same_pictures(tuned, tmp_path, kind, name):
    made, folder = tuned
    export_lora(folder, tmp_path / name, kind=kind)
    pipe = pipeline(network())
    before = pictures(pipe)
    pipe.load_lora_weights(tmp_path / name)
    expected = pictures(pipeline(made))
    torch.testing.assert_close(pictures(pipe), expected, rtol=0, atol=1e-4)
    assert (expected - before).abs().max() > 1e-3


def test_settings_stand_in_the_header_that_diffusers_reads(tuned, tmp_path):
    made, folder = tuned
    export_lora(folder, tmp_path / "a", kind="lora")
    for name, prefix in (
        ("pytorch_lora_weights.safetensors", "transformer."),
        ("adapter_model.safetensors", "base_model.model."),
    ):
        with safe_open(tmp_path / "a" / name, "pt") as file:
            settings = json.loads(file.metadata()["lora_adapter_metadata"])
            assert all(key.startswith(prefix) for key in [*settings, *file.keys()])
        for layer, part in made.named_modules():
            if isinstance(part, LoraLayer):
                ranks, alphas = (
                    settings.get(f"{prefix}{name}_pattern", {}) for name in ("rank", "alpha")
                )
                rank = ranks.get(get_pattern_key(list(ranks), layer), settings[f"{prefix}r"])
                alpha = alphas.get(
                    get_pattern_key(list(alphas), layer), settings[f"{prefix}lora_alpha"]
                )
                assert rank == part.r["default"]
                assert alpha / rank == pytest.approx(part.scaling["default"])


def test_a_file_of_the_original_names_states_the_scale_of_each_layer(tuned, tmp_path):
    made, folder = tuned
    export_lora(folder, tmp_path / "a.safetensors", kind="original")
    content = load_file(tmp_path / "a.safetensors")
    pairs = {
        "blocks.1.cross_attn.k": made.blocks[1].attn2.to_k,
        "blocks.0.self_attn.q": made.blocks[0].attn1.to_q,
        "blocks.0.ffn.2": made.blocks[0].ffn.net[2],
    }
    for name, layer in pairs.items():
        down, up, alpha = (
            content[f"diffusion_model.{name}.{end}"]
            for end in ("lora_A.weight", "lora_B.weight", "alpha")
        )
        expected = layer.get_delta_weight("default")
        torch.testing.assert_close(alpha / len(down) * up @ down, expected, rtol=1e-5, atol=1e-6)


def test_an_export_appears_whole_and_replaces_only_what_it_may(tuned, tmp_path):
    _, folder = tuned
    for kind, name in (("lora", "a"), ("diffusers", "b"), ("original", "c.safetensors")):
        export_lora(folder, tmp_path / name, kind=kind)
        with pytest.raises(FileExistsError, match="exists"):
            export_lora(folder, tmp_path / name, kind=kind)
        export_lora(folder, tmp_path / name, kind=kind, overwrite=True)
    export_lora(folder, tmp_path / "a", kind="diffusers", overwrite=True)
    assert [path.name for path in (tmp_path / "a").iterdir()] == [
        "pytorch_lora_weights.safetensors"
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c.safetensors"]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="other things"):
        export_lora(folder, tmp_path / "notes", overwrite=True)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("gguf", "x", "Choose from: lora, merged, diffusers, original"),
        ("merged", "x", "merge_lora"),
        ("lora", "x.safetensors", "is written as a folder"),
        ("diffusers", "x.pt", "is written as a folder"),
        ("original", "x", r"is written as a file \.safetensors"),
    ],
)
def test_formats_and_endings_that_do_not_go_together_are_refused(
    tuned, tmp_path, kind, name, message
):
    with pytest.raises(ValueError, match=message):
        export_lora(tuned[1], tmp_path / name, kind=kind)
    assert not (tmp_path / name).exists()


def test_what_the_original_names_have_no_place_for_is_refused_by_name(tmp_path):
    names = [f"blocks.0.attn1.{x}.lora_{m}.weight" for x in ("to_q", "to_x") for m in "AB"]
    (tmp_path / "a").mkdir()
    weights = {f"base_model.model.{name}": torch.ones(2, 2) for name in names}
    save_file(weights, tmp_path / "a" / "adapter_model.safetensors")
    LoraConfig(r=2, target_modules=["to_q", "to_x"]).save_pretrained(tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"'blocks\.0\.attn1\.to_x\.lora_A\.weight'"):
        export_lora(tmp_path / "a", tmp_path / "b.safetensors", kind="original")
    made = network()
    made.add_adapter(LoraConfig(r=2, target_modules=["to_q"], use_dora=True), "default")
    save_lora(made, tmp_path / "dora")
    with pytest.raises(CheckpointError):
        export_lora(tmp_path / "dora", tmp_path / "b.safetensors", kind="original")
    assert not (tmp_path / "b.safetensors").exists()
