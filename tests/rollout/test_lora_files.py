"""LoRA files of all programs: what they say of the strength, how they name layers, what is refused.

The truth is the sum itself, W + s B A, and what peft and diffusers make of the same files.
"""

import json
import math

import pytest
import torch
from diffusers import WanPipeline
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from astrolabe_rollout.conversion import to_original
from astrolabe_rollout.errors import CheckpointError
from astrolabe_rollout.lora import add_lora, load_lora, merge_lora, save_lora

ENDS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")


def build():
    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
    )


def layers():
    found = build().named_modules()
    return {n: m for n, m in found if n.startswith("blocks.") and n.endswith(ENDS)}


def matrices(rank=4):
    """A and B of each layer by diffusers' name; ``rank`` is a number or a function of the name."""
    generator = torch.Generator().manual_seed(1)
    of = rank if callable(rank) else lambda name: rank
    return {
        name: (
            torch.randn(of(name), layer.in_features, generator=generator),
            torch.randn(layer.out_features, of(name), generator=generator),
        )
        for name, layer in layers().items()
    }


def original(layer):
    return next(iter(to_original({f"{layer}.weight": torch.ones(1)}))).removesuffix(".weight")


def named(
    pairs, name=lambda layer: f"diffusion_model.{original(layer)}", halves="AB", end=".weight"
):
    """Entries of a file, as a program writes them."""
    words = dict(zip("AB", (f"lora_{half}" for half in halves), strict=True))
    return {
        f"{name(layer)}.{words[half]}{end}": matrix
        for layer, pair in pairs.items()
        for half, matrix in zip("AB", pair, strict=True)
    }


def kohya(pairs, prefix="lora_unet_", name=original):
    return named(pairs, lambda layer: prefix + name(layer).replace(".", "_"), ("down", "up"))


def alphas(entries, value):
    keys = [key for key in entries if key.endswith(".lora_down.weight")]
    return {key.replace("lora_down.weight", "alpha"): torch.as_tensor(value) for key in keys}


def strengths(path, pairs):
    """What each layer's B A was multiplied with when it was added to the weights."""
    base, network = build().state_dict(), build()
    load_lora(network, path)
    merge_lora(network)
    result = {}
    for layer, (a, b) in pairs.items():
        update = network.state_dict()[f"{layer}.weight"] - base[f"{layer}.weight"]
        scale = float((update * (b @ a)).sum() / (b @ a).square().sum())
        torch.testing.assert_close(update, scale * b @ a, rtol=0, atol=2e-5)
        result[layer] = round(scale, 4)
    others = base.keys() - {f"{layer}.weight" for layer in pairs}
    assert all(torch.equal(base[name], network.state_dict()[name]) for name in others)
    return result


def peft_metadata(prefix="", **settings):
    settings = {"r": 4, "lora_alpha": 16, "target_modules": list(ENDS), **settings}
    text = json.dumps({prefix + name: value for name, value in settings.items()})
    return {"lora_adapter_metadata": text}


PLAIN = matrices()
FROM_HEADERS = {
    "alpha and rank": ({"lora_alpha": "2", "rank": "4"}, 0.5),
    "a broken alpha": ({"alpha": "2.5"}, 0.625),
    "alpha 0": ({"lora_alpha": "0", "rank": "4"}, 0.0),
    "kohya": ({"ss_network_alpha": "8.0", "ss_network_dim": "4"}, 2.0),
    "kohya without alpha": ({"ss_network_alpha": "None", "ss_network_dim": "4"}, 1.0),
    "kohya resized": ({"ss_network_alpha": "Dynamic", "ss_network_dim": "Dynamic"}, 1.0),
    "capitals": ({"LoRA-Alpha": "2"}, 0.5),
    "dotted": ({"network.alpha": "2"}, 0.5),
    "stabilised": ({"lora_alpha": "3", "use_rslora": "True"}, 1.5),
    "finetrainers": ({"lora_config": json.dumps({"r": 4, "lora_alpha": 6})}, 1.5),
    "nested": ({"config": json.dumps({"network": {"rank": 4, "alpha": 6}})}, 1.5),
    "diffusers": (peft_metadata("transformer."), 4.0),
    "no prefix": (peft_metadata(), 4.0),
    "peft's prefix": (peft_metadata("base_model.model."), 4.0),
    "diffusers stabilised": (peft_metadata("transformer.", use_rslora=True), 8.0),
    "peft's default": ({"lora_adapter_metadata": json.dumps({"r": 4})}, 2.0),
    "a text encoder": ({"lora_adapter_metadata": '{"text_encoder.lora_alpha": 64}'}, 1.0),
    "tags": ({"ss_tag_frequency": '{"alpha": {"alpha": 9, "rank": 2, "lora_alpha": 1}}'}, 1.0),
    "nothing": ({"format": "pt"}, 1.0),
}


@pytest.mark.parametrize("case", FROM_HEADERS)
def test_the_header_says_how_strong_an_adapter_is(tmp_path, case):
    header, scale = FROM_HEADERS[case]
    save_file(named(PLAIN), tmp_path / "a.safetensors", header)
    assert set(strengths(tmp_path / "a.safetensors", PLAIN).values()) == {scale}
    assert strengths(tmp_path, PLAIN) == strengths(tmp_path / "a.safetensors", PLAIN)


def test_a_pattern_in_the_header_is_followed_as_diffusers_does(tmp_path):
    pairs = matrices(lambda name: 2 if "attn2" in name else 4)
    settings = {
        "rank_pattern": {"attn2.to_q|attn2.to_k|attn2.to_v|attn2.to_out.0": 2},
        "alpha_pattern": {"blocks.1.ffn.net.2": 1.0},
        "lora_dropout": 0.0,
    }
    metadata = json.loads(peft_metadata(**settings)["lora_adapter_metadata"])
    entries = named(pairs, lambda layer: layer)
    WanPipeline.save_lora_weights(
        tmp_path, transformer_lora_layers=entries, transformer_lora_adapter_metadata=metadata
    )
    found = strengths(tmp_path, pairs)
    assert found["blocks.0.attn1.to_q"] == 4.0
    assert found["blocks.1.attn2.to_out.0"] == 8.0
    assert (found["blocks.0.ffn.net.2"], found["blocks.1.ffn.net.2"]) == (4.0, 0.25)
    theirs, base = build(), build().state_dict()
    theirs.load_lora_adapter(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    theirs.fuse_lora()
    theirs.unload_lora()
    for layer, (a, b) in pairs.items():
        update = theirs.state_dict()[f"{layer}.weight"] - base[f"{layer}.weight"]
        torch.testing.assert_close(update, found[layer] * b @ a, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("value", "scale"), [(2.0, 0.5), (0.0, 0.0), (2, 0.5), (-4.0, -1.0), ([8.0], 2.0)]
)
def test_an_entry_of_alpha_says_it_for_its_layer(tmp_path, value, scale):
    entries = kohya(PLAIN)
    save_file(entries | alphas(entries, value), tmp_path / "a.safetensors")
    assert set(strengths(tmp_path / "a.safetensors", PLAIN).values()) == {scale}


def test_each_layer_has_its_own_rank_and_alpha(tmp_path):
    pairs = matrices(lambda name: 8 if "ffn" in name else 2 if ".1.attn1" in name else 4)
    entries = kohya(pairs)
    own = alphas(entries, 4.0)
    own["lora_unet_blocks_0_self_attn_q.alpha"] = torch.tensor(1.0)
    del own["lora_unet_blocks_0_self_attn_k.alpha"]
    header = {"ss_network_dim": "4", "ss_network_alpha": "4"}
    save_file(entries | own, tmp_path / "a.safetensors", header)
    with pytest.raises(CheckpointError, match="says rank 4, but"):
        load_lora(build(), tmp_path)
    header["ss_network_args"] = json.dumps({"network_reg_dims": "ffn=8"})
    save_file(entries | own, tmp_path / "a.safetensors", header)
    found = strengths(tmp_path / "a.safetensors", pairs)
    assert found.pop("blocks.0.attn1.to_q") == 0.25
    assert found.pop("blocks.0.attn1.to_k") == 1.0
    assert found == {layer: 4.0 / len(pairs[layer][0]) for layer in found}


def test_numbers_beside_the_tensors_of_a_pickled_file_are_read(tmp_path):
    content = {"generator_lora": named(PLAIN), "step": 3, "config": {"lora": {"lora_alpha": 2}}}
    torch.save(content, tmp_path / "a.pt")
    assert set(strengths(tmp_path / "a.pt", PLAIN).values()) == {0.5}
    torch.save({"generator_lora": {}, "lora": named(PLAIN), "lora_alpha": 8}, tmp_path / "a.pt")
    assert set(strengths(tmp_path / "a.pt", PLAIN).values()) == {2.0}


def test_a_header_whose_scale_may_be_in_the_matrices_already_is_refused(tmp_path):
    header = {"ss_network_module": "networks.lora_wan", "ss_network_dim": "4"}
    path = tmp_path / "a.safetensors"
    save_file(named(PLAIN), path, header | {"ss_network_alpha": "16"})
    with pytest.raises(CheckpointError, match=r"ss_network_alpha 16 .*renamed by another program"):
        load_lora(build(), path)
    # What the message says to do is enough.
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 4}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    assert set(strengths(path, PLAIN).values()) == {1.0}
    # In the words of the program that wrote the header it speaks of these matrices.
    (tmp_path / "adapter_config.json").unlink()
    save_file(kohya(PLAIN), path, header | {"ss_network_alpha": "16"})
    assert set(strengths(path, PLAIN).values()) == {4.0}
    save_file(kohya(PLAIN), path, header | {"ss_network_alpha": "0"})
    with pytest.raises(CheckpointError, match="take an alpha of 0 for the rank"):
        load_lora(build(), path)


@pytest.mark.parametrize(
    ("entries", "header", "beside", "message"),
    [
        ("ab", {"lora_alpha": "2", "rank": "8"}, None, "says rank 8, .* another rank, 4"),
        ("ab", {"lora_alpha": "2", "alpha": "4"}, None, "says both lora_alpha 2 and alpha 4"),
        ("ab", {"lora_alpha": "2"}, {"r": 4, "lora_alpha": 4}, "by 1, the header of .* by 0.5"),
        ("ab", peft_metadata(), {"r": 4, "lora_alpha": 4}, "json .* by 1, lora_adapter_.* by 4"),
        ("ab", {}, {"r": 8, "lora_alpha": 8}, "adapter_config.json says rank 8"),
        (2.0, {"ss_network_alpha": "4"}, None, "by 1, its entries of alpha by 0.5"),
        (2.0, {}, {"r": 4, "lora_alpha": 4}, "json .* by 1, its entries of alpha by 0.5"),
        (2.0, {"use_rslora": "true"}, None, "programs see differently"),
        ("ab", {"use_rslora": "true", "rank": "4"}, None, "but its header has no alpha"),
        (math.nan, {}, None, "alpha of 'blocks.* is .*no finite number"),
        ([1.0, 2.0], {}, None, r"has the shape \(2,\)"),
        ("ab", {"lora_alpha": "strong"}, None, "lora_alpha of .* is 'strong'"),
        ("ab", {"lora_scale": "0.5"}, None, "lora_scale = '0.5'.* not known what that scales"),
        ("ab", {"network_alphas": '{"x": 2}'}, None, "network_alphas = .* not known"),
        ("ab", {"lora_alpha": '{"x": 2}'}, None, "no finite number"),
        ("ab", {"lora_adapter_metadata": "{r: 4"}, None, "is no JSON of settings"),
        ("ab", peft_metadata(r=4, use_dora=True), None, "asks for use_dora = True"),
        ("ab", peft_metadata(target_modules=["to_q"]), None, "32 unexpected: blocks"),
    ],
)
def test_what_contradicts_itself_or_is_not_known_is_refused(
    tmp_path, entries, header, beside, message
):
    content = named(PLAIN) if entries == "ab" else kohya(PLAIN)
    content |= {} if entries == "ab" else alphas(content, entries)
    save_file(content, tmp_path / "a.safetensors", header)
    if beside is not None:
        text = json.dumps({"peft_type": "LORA", **beside})
        (tmp_path / "adapter_config.json").write_text(text)
    network = build()
    for path in (tmp_path, tmp_path / "a.safetensors"):
        with pytest.raises(CheckpointError, match=message):
            load_lora(network, path)
    assert not getattr(network, "peft_config", None)


def test_an_entry_is_as_exact_as_its_precision(tmp_path):
    entries = kohya(PLAIN)
    own = {key: value.bfloat16() for key, value in alphas(entries, 10.7).items()}
    save_file(entries | own, tmp_path / "a.safetensors", {"ss_network_alpha": "10.7"})
    assert set(strengths(tmp_path / "a.safetensors", PLAIN).values()) == {2.675}


PEFT = {
    "stabilised": {"use_rslora": True, "r": 8},
    "patterns": {
        "rank_pattern": {"blocks.1.attn1.to_q": 2, "ffn.net.*": 3},
        "alpha_pattern": {"attn2.to_k": 1, r"blocks\.\d+\.ffn\.net\.2": 5},
    },
    "stabilised patterns": {"rank_pattern": {"to_k": 8}, "use_rslora": True, "lora_alpha": 2.5},
    "all linear": {"target_modules": "all-linear"},
    "an expression": {"target_modules": r"blocks\.\d+\.attn[12]\.to_[qkv]"},
    "without some": {"exclude_modules": ["blocks.0.attn1.to_q"]},
    "some blocks": {"layers_to_transform": [1], "layers_pattern": "blocks"},
    "alpha 0": {"lora_alpha": 0},
    "another start": {"init_lora_weights": "gaussian"},
}


@pytest.mark.parametrize("case", PEFT)
def test_folder_and_file_of_peft_are_loaded_as_peft_does(tmp_path, case):
    settings = {"r": 4, "lora_alpha": 6, "target_modules": list(ENDS), **PEFT[case]}
    model = get_peft_model(build(), LoraConfig(**settings))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_()
    model.save_pretrained(tmp_path / "theirs")
    merged = PeftModel.from_pretrained(build(), tmp_path / "theirs").merge_and_unload()
    expected = merged.state_dict()

    def check(state):
        assert state.keys() == expected.keys()
        for name, value in state.items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5, msg=name)

    for path in (tmp_path / "theirs", tmp_path / "theirs" / "adapter_model.safetensors"):
        network = build()
        load_lora(network, path)
        save_lora(network, tmp_path / "ours")
        merge_lora(network)
        check(network.state_dict())
    # What is written says the same to peft, to diffusers and to us, without its configuration too.
    ours = PeftModel.from_pretrained(build(), tmp_path / "ours").merge_and_unload()
    check(ours.state_dict())
    network = build()
    file = "adapter_model.safetensors"
    network.load_lora_adapter(tmp_path / "ours", prefix="base_model.model", weight_name=file)
    network.fuse_lora()
    network.unload_lora()
    check(network.state_dict())
    (tmp_path / "ours" / "adapter_config.json").unlink()
    network = build()
    load_lora(network, tmp_path / "ours" / file)
    merge_lora(network)
    check(network.state_dict())


def test_weights_of_peft_whose_settings_are_elsewhere_are_refused(tmp_path):
    save_file(named(PLAIN, lambda layer: f"base_model.model.{layer}"), tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(tmp_path / "adapter_model.safetensors")
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        with pytest.raises(CheckpointError, match=r"in adapter_config\.json, and there is none"):
            load_lora(build(), path)


NAMES = {
    "kohya": kohya(PLAIN),
    "kohya's, diffusers' layers": kohya(PLAIN, "lora_transformer_", str),
    "compiled kohya": kohya(PLAIN, "lora_unet__orig_mod_"),
    "lycoris": kohya(PLAIN, "lycoris_", str),
    "ComfyUI": named(PLAIN, lambda layer: f"model.diffusion_model.{original(layer)}"),
    "net": named(PLAIN, lambda layer: f"net.{original(layer)}"),
    "wrapped": named(
        PLAIN,
        lambda layer: (
            "base_model.model.module._orig_mod._fsdp_wrapped_module."
            + original(layer).replace("blocks.0.", "blocks.0._checkpoint_wrapped_module.")
        ),
    ),
    "transformer": named(PLAIN, lambda layer: f"transformer.{layer}"),
    "an adapter's name": named(PLAIN, str, end=".my_adapter.weight"),
    "default": named(PLAIN, original, end=".default.weight"),
    "no weight": named(PLAIN, original, end=""),
    "dotted": {
        k.replace("lora_", "lora."): v for k, v in named(PLAIN, str, ("down", "up")).items()
    },
}


@pytest.mark.parametrize("case", NAMES)
def test_layers_are_found_as_every_program_names_them(tmp_path, case):
    save_file(NAMES[case], tmp_path / "a.safetensors")
    assert set(strengths(tmp_path / "a.safetensors", PLAIN).values()) == {1.0}


def test_layers_outside_the_blocks_and_blocks_without_some_are_carried_exactly(tmp_path):
    network = build()
    pairs = {
        name: (torch.randn(2, layer.in_features), torch.randn(layer.out_features, 2))
        for name, layer in network.named_modules()
        if isinstance(layer, torch.nn.Linear)
        and (name == "blocks.1.ffn.net.2" or "blocks" not in name)
    }
    assert {"proj_out", "condition_embedder.time_proj"} < pairs.keys()
    for entries in (kohya(pairs), named(pairs)):
        save_file(entries, tmp_path / "a.safetensors")
        assert set(strengths(tmp_path / "a.safetensors", pairs).values()) == {1.0}


def test_zeros_that_are_added_to_biases_and_norms_are_left_out(tmp_path):
    entries = named(PLAIN, halves=("down", "up")) | {
        "diffusion_model.blocks.0.self_attn.q.diff_b": torch.zeros(16),
        "diffusion_model.blocks.0.norm3.diff": torch.zeros(16),
        "diffusion_model.blocks.0.self_attn.k.lora_up.bias": torch.zeros(16),
    }
    save_file(entries, tmp_path / "a.safetensors")
    assert set(strengths(tmp_path / "a.safetensors", PLAIN).values()) == {1.0}


Q = "diffusion_model.blocks.0.self_attn.q"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({f"{Q}.diff_b": torch.ones(16)}, r"whole differences .*q\.diff_b.*Merge it"),
        ({"diffusion_model.blocks.0.norm3.diff": torch.ones(16)}, r"norm3\.diff"),
        ({f"{Q}.lora_B.bias": torch.ones(16)}, "biases of LoRA matrices"),
        ({f"{Q}.dora_scale": torch.ones(16, 1)}, "magnitudes of DoRA"),
        ({f"{Q}.lora_magnitude_vector.weight": torch.ones(16)}, "magnitudes of DoRA"),
        ({f"{Q}.hada_w1_a": torch.ones(16, 4)}, "matrices of LoHa"),
        ({f"{Q}.lokr_w1": torch.ones(4, 4)}, "matrices of LoKr"),
        ({f"{Q}.bias": torch.zeros(16)}, r"1 other entries, such as .*q\.bias"),
        ({f"{Q}.lora_A.other.weight": torch.ones(4, 16)}, "two entries for"),
        ({"blocks.0.x.lora_A.other.weight": torch.ones(4, 16)}, "2 adapters, '', 'other'"),
        ({"x.alpha": torch.tensor(1.0)}, "alpha for layers without matrices: x"),
        ({"x.lora_A.weight": torch.ones(4, 16)}, "one matrix of 'x' but no lora_B"),
        ({f"{Q}.lora_A.weight": torch.ones(4, 16, 1, 1)}, r"matrices \(4, 16, 1, 1\) and"),
        ({f"{Q}.lora_A.weight": torch.ones(2, 16)}, r"matrices \(2, 16\) and \(16, 4\)"),
        ({f"{Q}.lora_A.weight": torch.ones(4, 16).char()}, r"torch\.int8"),
        (
            {f"lora_te_x.lora_{x}.weight": torch.ones(4, 4) for x in ("down", "up")},
            "unexpected: lora_te_x",
        ),
        (
            {f"transformer_2.blocks.0.{x}.weight": torch.ones(4, 4) for x in ("lora_A", "lora_B")},
            "unexpected: transformer_2",
        ),
    ],
)
def test_what_is_not_carried_is_refused_by_name(tmp_path, extra, message):
    save_file(named(PLAIN) | extra, tmp_path / "a.safetensors")
    network = build()
    with pytest.raises(CheckpointError, match=message):
        load_lora(network, tmp_path / "a.safetensors")
    assert not getattr(network, "peft_config", None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "asks for use_dora = True"),
        ({"bias": "all"}, "asks for bias = 'all'"),
        ({"modules_to_save": ["proj_out"]}, "modules_to_save"),
        ({"something_new": {"a": 1}}, "something_new"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"target_modules": "attn[1"}, "names its layers in a way that peft does not read"),
        ({"rank_pattern": {"(": 4}}, "no regular expression"),
        ({"r": "four"}, "r of adapter_config.json is 'four'"),
        ({"peft_type": "LOHA"}, "type 'LOHA'"),
    ],
)
def test_settings_of_peft_that_are_not_carried_are_refused_by_name(tmp_path, settings, message):
    save_file(named(PLAIN, str), tmp_path / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, **settings}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=message):
        load_lora(build(), tmp_path)


def prepared(rank, alpha):
    network = build()
    add_lora(network, rank=rank, alpha=alpha)
    return network


def test_a_lora_goes_on_from_an_adapter_of_its_real_alpha_alone(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(named(PLAIN), path, {"lora_alpha": "8", "use_rslora": "True"})  # 8 / sqrt(4)
    network = prepared(4, 16)
    load_lora(network, path)
    layer = network.blocks[1].attn2.to_v
    assert torch.equal(layer.lora_B["default"].weight, PLAIN["blocks.1.attn2.to_v"][1])
    with pytest.raises(CheckpointError, match="Add it with rank=4 and alpha=16"):
        load_lora(prepared(4, 8), path)


@pytest.mark.parametrize(
    ("pairs", "settings", "message"),
    [
        (
            matrices(8),
            {"r": 8, "lora_alpha": 8},
            "rank 8 and alpha 8 for .*rank 4 .*Add it with rank=8 and alpha=8",
        ),
        (PLAIN, {"alpha_pattern": {"ffn.net.2": 1}}, "and alpha 1 for .*ffn.net.2.*merge it"),
        (PLAIN, {"lora_alpha": 2.5}, "alpha 2.5 for .*merge it"),
        (PLAIN, {"lora_alpha": 0}, "alpha 0 for .*merge it"),
        (
            matrices(lambda name: 2 if "attn2" in name else 4),
            {"rank_pattern": {".*attn2.*": 2}},
            "rank 2 and alpha 4 for 'blocks.0.attn2.*has rank 4",
        ),
        (
            {name: pair for name, pair in PLAIN.items() if "ffn" not in name},
            {},
            "has none for 'blocks.0.ffn.*has rank 4 and alpha 4. .*merge it",
        ),
    ],
)
def test_a_lora_does_not_go_on_from_an_adapter_of_other_settings(
    tmp_path, pairs, settings, message
):
    save_file(named(pairs, str), tmp_path / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, **settings}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    network = prepared(4, 4)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_lora(network, tmp_path)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_what_is_written_of_patterns_is_short_and_whole(tmp_path):
    pairs = matrices(lambda name: 2 if name.endswith("to_k") else 4)
    save_file(named(pairs), tmp_path / "a.safetensors")
    network = build()
    load_lora(network, tmp_path / "a.safetensors")
    save_lora(network, tmp_path / "ours")
    settings = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert settings["rank_pattern"] == {"attn1.to_k": 2, "attn2.to_k": 2}
    assert settings["alpha_pattern"] == settings["rank_pattern"]
    assert len(load_file(tmp_path / "ours" / "adapter_model.safetensors")) == 40
