"""A run of bfloat16 in every format, opened by the program it is for, against the tuned model."""

import re

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from peft import PeftModel
from safetensors.torch import load_file
from transformers import UMT5Config, UMT5EncoderModel

from astrolabe.checkpoint_files import LORA
from astrolabe.cli import main
from astrolabe.compose import build_model
from astrolabe.load import load
from astrolabe.run_folder import RunFolder
from astrolabe.sampling import load_trained, newest_checkpoint
from astrolabe.session import start
from astrolabe_rollout import wan
from astrolabe_rollout.chunks import ChunkStream
from astrolabe_rollout.conversion import to_original
from astrolabe_rollout.lora import load_lora
from astrolabe_rollout.text import word_tokenizer

pytestmark = pytest.mark.slow

RECIPE = """
[model]
name = "wan-1.3b"

[model.options]
checkpoint = "{folder}/{checkpoint}"
components = "{folder}/parts"
height = 32
width = 48
window = 9
sink = 3
dtype = "bf16"
device = "cpu"

[lora]
rank = 4
alpha = 8

[rollout]
prompts = "{folder}/prompts.txt"
num_prompts = 2
group_size = 2
num_frames = 3

[rewards.sharpness_vq]

[disagreement]
mode = "none"

[train]
steps = 2
updates = 2
lr = 1e-4
micro_batch = 2

[snapshots]
old_decay = 0.3

[evaluation]
at_end = false
"""


def command(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


def network():
    torch.manual_seed(0)
    made = WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=128, ffn_dim=256, text_dim=16, num_layers=2
    )
    for parameter in made.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.03)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights as they are published, a prompt file, and two runs on them."""
    path = tmp_path_factory.mktemp("formats")
    state = {f"model.{name}": x for name, x in to_original(network().state_dict()).items()}
    torch.save({"generator_ema": state}, path / "full.pt")
    half = {name: value.bfloat16() for name, value in state.items()}
    torch.save({"generator_ema": half}, path / "half.pt")
    network().save_pretrained(path / "base" / "transformer")
    tokenizer = word_tokenizer(["a", "cat", "dog", "runs"])
    text = UMT5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    UMT5EncoderModel(text).save_pretrained(path / "parts" / "text_encoder")
    tokenizer.save_pretrained(path / "parts" / "tokenizer")
    AutoencoderKLWan(base_dim=8, num_res_blocks=1).save_pretrained(path / "parts" / "vae")
    (path / "prompts.txt").write_text("a cat runs\na dog runs\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(wan.SIZES, "1.3b", (2, 1))
        for name in ("full", "half"):
            (path / f"{name}.toml").write_text(RECIPE.format(folder=path, checkpoint=f"{name}.pt"))
            assert start(load([str(path / f"{name}.toml")], []), path / f"run-{name}") == 0
        yield path


def trained(folder, **options):
    """The model as a run evaluates it: its base, the adapter apart."""
    run, settings = RunFolder.open(folder / "run-full")
    settings.model.options.update(options)
    model = build_model(settings.model)
    load_trained(model, run)
    return model


def latents(model):
    stream = ChunkStream(model, [5], decode=False)
    embeds = model.text(["a cat runs"])
    return torch.cat([stream.next(embeds).latents for _ in range(2)], 1)


def distance(found, expected):
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@torch.no_grad()
def velocity(transformer):
    """Answers in float32 arithmetic, whatever the weights are stored in."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(16):
        x = torch.randn(1, 16, 3, 4, 6, generator=generator)
        text = torch.randn(1, 12, 16, generator=generator)
        found.append(transformer(x, torch.tensor([600.0]), text, return_dict=False)[0])
    return torch.cat(found)


@pytest.fixture(scope="module")
def effect(folder):
    """What the base answers, and what its adapter adds to that."""
    tuned, base = network(), velocity(network())
    load_lora(tuned, newest_checkpoint(RunFolder.open(folder / "run-full")[0]) / LORA)
    return base, velocity(tuned) - base


def by_pipeline(folder, path):
    fresh = network()
    WanPipeline(
        tokenizer=word_tokenizer(["a"]),
        text_encoder=UMT5EncoderModel.from_pretrained(folder / "parts" / "text_encoder"),
        vae=AutoencoderKLWan.from_pretrained(folder / "parts" / "vae"),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        transformer=fresh,
    ).load_lora_weights(path)
    return fresh


def by_peft(folder, path):
    return PeftModel.from_pretrained(network(), path).base_model.model


def by_folder(folder, path):
    return WanTransformer3DModel.from_pretrained(path)


def by_file(folder, path):
    return WanTransformer3DModel.from_single_file(
        path, config=str(folder / "base"), subfolder="transformer"
    )


def by_astrolabe(folder, path):
    fresh = network()
    fresh.load_state_dict(wan.load_network(path).state_dict())
    return fresh


@pytest.mark.parametrize(
    ("target", "kind", "read"),
    [
        ("adapter", "lora", by_pipeline),
        ("adapter", "lora", by_peft),
        ("diffusers", "diffusers", by_pipeline),
        ("original.safetensors", "original", by_pipeline),
        ("whole", "merged", by_folder),
        ("whole.safetensors", "merged", by_file),
        ("whole.pt", "merged", by_astrolabe),
    ],
)
def test_a_run_of_bfloat16_has_all_of_its_effect_in_every_format(
    folder, tmp_path, capsys, effect, target, kind, read
):
    base, added = effect
    path = tmp_path / target
    assert command("export", folder / "run-full", path, "--format", kind) == 0
    told = capsys.readouterr()
    assert str(path) in told.out
    assert "warning" not in told.err
    assert ("strength 100.0% in float32" in told.out) == (kind == "merged")
    assert distance(velocity(read(folder, path)) - base, added) < 0.02


@pytest.mark.parametrize(("dtype", "exact"), [("fp16", 0.3), ("bf16", 3)])
def test_in_half_precision_the_effect_is_the_same_but_for_rounding(
    folder, tmp_path, capsys, effect, dtype, exact
):
    _, added = effect
    path = tmp_path / "a.safetensors"
    run = folder / "run-full"
    assert command("export", run, path, "--format", "merged", "--dtype", dtype) == 0
    stated = float(re.search(r"strength ([\d.]+)%", capsys.readouterr().out)[1])
    assert stated == pytest.approx(100, abs=5)
    assert {value.dtype for value in load_file(path).values()} == {wan.DTYPES[dtype]}
    plain = tmp_path / "b.safetensors"
    assert command("convert", folder / "full.pt", plain, "--dtype", dtype) == 0
    change = velocity(by_astrolabe(folder, path)) - velocity(by_astrolabe(folder, plain))
    assert float((change * added).sum() / added.square().sum()) == pytest.approx(1, abs=0.25)
    assert distance(change, added) < exact


@pytest.mark.parametrize("dtype", ["keep", "bf16", "fp16", "fp32"])
def test_the_merged_model_makes_the_videos_that_were_evaluated_within_the_precision(
    folder, tmp_path, dtype
):
    path = tmp_path / "a.safetensors"
    run = folder / "run-full"
    assert command("export", run, path, "--format", "merged", "--dtype", dtype) == 0
    evaluated = latents(trained(folder))
    precision = distance(evaluated, latents(trained(folder, dtype="fp32")))
    merged = latents(wan.wan_1_3b(**trained_options(folder) | {"checkpoint": str(path)}))
    assert 0 < precision < 0.05
    assert distance(merged, evaluated) < 1.5 * precision


def trained_options(folder):
    return RunFolder.open(folder / "run-full")[1].model.options


def test_what_the_checkpoints_precision_cannot_hold_is_warned_of_with_the_way_out(
    folder, tmp_path, capsys
):
    run = folder / "run-half"
    assert command("export", run, tmp_path / "a.pt", "--format", "merged") == 0
    told = capsys.readouterr()
    assert float(re.search(r"strength ([\d.]+)% in bfloat16", told.out)[1]) < 90
    assert "warning: the merged model does not hold its LoRA" in told.err
    assert "--format lora, or add --dtype fp32" in told.err
    wide = tmp_path / "b.pt"
    assert command("export", run, wide, "--format", "merged", "--dtype", "fp32") == 0
    told = capsys.readouterr()
    assert "strength 100.0% in float32" in told.out
    assert "warning" not in told.err
