"""Checkpoints of every container and name, folders, sizes, and the way back."""

import json
import os

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors.torch import load_file, save_file

from astrolabe_rollout.checkpoints import infer_config, load_checkpoint, load_into, meta_network
from astrolabe_rollout.conversion import to_original
from astrolabe_rollout.errors import CheckpointError
from astrolabe_rollout.export import export_transformer
from astrolabe_rollout.lora import add_lora, load_lora, merge_lora, save_lora

SIZES = {
    "1.3B": ({"num_layers": 30, "num_attention_heads": 12, "ffn_dim": 8960}, 825, 1.42e9),
    "14B": ({"num_layers": 40, "num_attention_heads": 40, "ffn_dim": 13824}, 1095, 14.29e9),
}


def build(dtype=torch.float32, **sizes):
    torch.manual_seed(0)
    options = {
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "ffn_dim": 64,
        "text_dim": 8,
        "freq_dim": 16,
    }
    network = WanTransformer3DModel(**{**options, **sizes})
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network.to(dtype).eval().requires_grad_(False)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("container", ["generator_ema", "generator", "model", "state_dict", None])
@pytest.mark.parametrize(
    "prefix", ["model.", "diffusion_model.", "module.", "model._fsdp_wrapped_module.", ""]
)
@pytest.mark.parametrize("original", [True, False])
def test_every_container_prefix_and_naming_is_read(tmp_path, container, prefix, original):
    state = dict(build().state_dict())
    named = to_original(state) if original else state
    content = {prefix + name: value for name, value in named.items()}
    if "fsdp" in prefix:  # also in the middle of names
        content = {
            name.replace("blocks.1.", "blocks.1._fsdp_wrapped_module."): value
            for name, value in content.items()
        }
    if container is None:
        save_file(content, tmp_path / "flat.safetensors")
        assert same(load_checkpoint(tmp_path / "flat.safetensors"), state)
    torch.save(content if container is None else {container: content}, tmp_path / "a.pt")
    assert same(load_checkpoint(tmp_path / "a.pt"), state)


def test_folders_of_diffusers_whole_and_in_shards(tmp_path):
    network = build()
    network.save_pretrained(tmp_path / "whole")
    network.save_pretrained(tmp_path / "parts" / "transformer", max_shard_size="50KB")
    assert len(list((tmp_path / "parts" / "transformer").glob("*.safetensors"))) > 2
    for folder in ("whole", "parts", "parts/transformer"):
        assert same(load_checkpoint(tmp_path / folder), dict(network.state_dict()))
    victim = sorted((tmp_path / "parts" / "transformer").glob("*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(CheckpointError, match=f"lacks the shards {victim.name}"):
        load_checkpoint(tmp_path / "parts")


def test_folders_that_do_not_say_what_to_load_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load_checkpoint(tmp_path)
    for name in ("a.pt", "b.pt"):
        torch.save({}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"holds 2 checkpoints: a\.pt, b\.pt"):
        load_checkpoint(tmp_path)
    (tmp_path / "x.index.json").write_text("[]")
    with pytest.raises(CheckpointError, match="is no index of shards"):
        load_checkpoint(tmp_path)


def test_a_pickle_with_code_is_refused_and_never_run(tmp_path):
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(marker),))

    torch.save({"generator": {"a": Payload()}}, tmp_path / "a.pt")
    torch.save({"generator_lora": Payload()}, tmp_path / "lora.pt")
    with pytest.raises(CheckpointError, match="could run code and is not opened"):
        load_checkpoint(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="could run code and is not opened"):
        load_lora(build(), tmp_path / "lora.pt")
    assert not marker.exists()


@pytest.mark.parametrize("size", SIZES)
def test_sizes_and_key_tables_are_those_of_wan(size):
    options, tensors, parameters = SIZES[size]
    network = meta_network(options)
    state = network.state_dict()
    assert len(state) == tensors
    assert sum(value.numel() for value in state.values()) == pytest.approx(parameters, rel=2e-3)
    assert len(to_original(state)) == tensors
    config = infer_config(state)
    assert {name: config[name] for name in options} == options
    assert same_shapes(meta_network(config), network)


def same_shapes(first, second):
    first, second = ({k: v.shape for k, v in x.state_dict().items()} for x in (first, second))
    return first == second


def test_a_network_on_the_meta_device_takes_the_tensors_of_the_file(tmp_path):
    network = build()
    save_file(network.state_dict(), tmp_path / "a.safetensors")
    state = load_checkpoint(tmp_path / "a.safetensors")
    filled = meta_network(infer_config(state, head_dim=16))
    load_into(filled, state)
    assert filled.proj_out.weight.data_ptr() == state["proj_out.weight"].data_ptr()
    assert same(dict(filled.state_dict()), dict(network.state_dict()))
    half = meta_network(infer_config(state, head_dim=16))
    load_into(half, state, torch.bfloat16)
    assert half.proj_out.weight.dtype == torch.bfloat16
    assert half.scale_shift_table.dtype == torch.float32  # as diffusers keeps it


def test_what_is_no_transformer_is_refused():
    with pytest.raises(CheckpointError, match=r"not one of Wan's transformer.*such as a"):
        infer_config({"a": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="32 wide, which is no multiple of the head size 128"):
        infer_config(build().state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["folder", "a.safetensors", "a.pt"])
def test_the_way_there_and_back_is_bit_exact(tmp_path, dtype, name):
    network = build(dtype)
    export_transformer(network, tmp_path / name)
    assert same(load_checkpoint(tmp_path / name), dict(network.state_dict()))
    if name == "folder":
        again = WanTransformer3DModel.from_pretrained(tmp_path / name, torch_dtype=dtype)
        assert again.config.num_layers == 2
    if name == "a.pt":
        keys = torch.load(tmp_path / name, weights_only=True)["generator"]
        assert "model.blocks.0.self_attn.q.weight" in keys
    with pytest.raises(FileExistsError, match="exists"):
        export_transformer(network, tmp_path / name)
    export_transformer(network, tmp_path / name, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_with_other_things_is_never_replaced(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="other things"):
        export_transformer(build(), tmp_path / "notes", overwrite=True)
    assert (tmp_path / "notes" / "thesis.txt").exists()


def tuned():
    """A network with a LoRA that does something, and its answer."""
    network = build()
    add_lora(network, rank=4, alpha=4, seed=1)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def answer(network):
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(1, 16, 2, 4, 4, generator=generator)
    text = torch.randn(1, 5, 8, generator=generator)
    with torch.no_grad():
        return network(latents, torch.tensor([500.0]), text, return_dict=False)[0]


def test_a_merged_lora_answers_as_the_unmerged(tmp_path):
    network = tuned()
    before = answer(network)
    save_lora(network, tmp_path)
    merge_lora(network)
    torch.testing.assert_close(answer(network), before, rtol=0, atol=1e-5)
    assert network.state_dict().keys() == build().state_dict().keys()
    add_lora(network, rank=2, alpha=2)
    torch.testing.assert_close(answer(network), before, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="no LoRA to merge"):
        merge_lora(build())


def original_names(weights):
    """A LoRA of peft with Wan's own names, as LongLive writes it."""
    layers = {name.partition(".lora_")[0].removeprefix("base_model.model.") for name in weights}
    table = {
        layer: next(iter(to_original({f"{layer}.weight": torch.zeros(1)})))[: -len(".weight")]
        for layer in layers
    }
    return {
        f"base_model.model.{table[layer]}.lora_{rest}": value
        for name, value in weights.items()
        for layer, _, rest in [name.removeprefix("base_model.model.").partition(".lora_")]
    }


@pytest.mark.parametrize(
    "kind", ["longlive", "bare", "default", "diffusion_model", "kohya", "peft", "pickled"]
)
def test_adapters_of_others_are_read(tmp_path, kind):
    network = tuned()
    expected = answer(network)
    save_lora(network, tmp_path / "ours")
    weights = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    theirs = original_names(weights)
    assert "base_model.model.blocks.0.self_attn.q.lora_A.weight" in theirs
    assert "base_model.model.blocks.1.ffn.2.lora_B.weight" in theirs
    path = tmp_path / "lora.pt"
    if kind == "longlive":
        torch.save({"generator_lora": theirs, "critic_lora": {}, "step": 7}, path)
    elif kind == "bare":
        torch.save(theirs, path)
    elif kind == "default":
        torch.save({k.replace(".weight", ".default.weight"): v for k, v in theirs.items()}, path)
    elif kind in ("diffusion_model", "kohya"):
        path = tmp_path / "lora.safetensors"
        named = {k.replace("base_model.model.", "diffusion_model."): v for k, v in theirs.items()}
        if kind == "kohya":
            named = {
                k.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): v
                for k, v in named.items()
            }
            named |= {
                k.replace(".lora_up.weight", ".alpha"): torch.tensor(4.0)
                for k in list(named)
                if "lora_up" in k
            }
        save_file({k: v.contiguous() for k, v in named.items()}, path)
    else:
        path = tmp_path / "theirs"
        path.mkdir()
        config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
        config["target_modules"] = sorted(
            {k.removeprefix("base_model.model.").partition(".lora_")[0] for k in theirs}
        )
        (path / "adapter_config.json").write_text(json.dumps(config))
        if kind == "peft":
            save_file(theirs, path / "adapter_model.safetensors")
        else:
            torch.save(theirs, path / "adapter_model.bin")
    fresh = build()
    load_lora(fresh, path)
    torch.testing.assert_close(answer(fresh), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "has no entries"),
        ({"blocks.0.self_attn.q.weight": torch.zeros(2, 2)}, "is no LoRA of linear layers"),
        ({"img_emb.q.lora_A.weight": torch.zeros(2, 32)}, "no lora_B"),
        (
            {
                "blocks.0.cross_attn.k_img.lora_A.weight": torch.zeros(2, 32),
                "blocks.0.cross_attn.k_img.lora_B.weight": torch.zeros(32, 2),
            },
            "2 unexpected.*image-to-video",
        ),
    ],
)
def test_a_file_that_is_no_lora_for_this_network_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "lora.pt")
    with pytest.raises(CheckpointError, match=message):
        load_lora(build(), tmp_path / "lora.pt")
