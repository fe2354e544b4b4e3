import json
import resource

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from astrolabe_rollout.errors import CheckpointError
from astrolabe_rollout.lora import add_lora, load_lora, save_lora, trainable_parameters
from astrolabe_rollout.lora_files import CONFIG_FILE, WEIGHTS_FILE


def build(num_layers=2, head_dim=8, seed=0):
    torch.manual_seed(seed)
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=head_dim,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=16,
        ffn_dim=32,
        num_layers=num_layers,
    )


def output(network):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return network(
            hidden_states=torch.randn(2, 4, 1, 4, 4, generator=generator),
            timestep=torch.tensor([900.0, 300.0]),
            encoder_hidden_states=torch.randn(2, 3, 8, generator=generator),
            return_dict=False,
        )[0]


def trained(seed=5, **options):
    """A network whose LoRA has moved away from its start."""
    network = build()
    add_lora(network, **{"rank": 4, "alpha": 6, **options})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in trainable_parameters(network).values():
            value.copy_(torch.randn(value.shape, generator=generator) / 4)
    return network


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def values(network):
    return {name: value.detach().clone() for name, value in trainable_parameters(network).items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A trained network and the folder of its adapter."""
    folder = tmp_path_factory.mktemp("adapter")
    network = trained()
    save_lora(network, folder)
    return network, folder


def copied(saved, tmp_path):
    for file in saved[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_ten_layers_of_every_block_get_a_lora():
    network = build(num_layers=3)
    add_lora(network, rank=4, alpha=4)
    layers = [
        name.split(".lora_A")[0] for name in trainable_parameters(network) if "lora_A" in name
    ]
    attention = [f"attn{i}.{x}" for i in (1, 2) for x in ("to_q", "to_k", "to_v", "to_out.0")]
    expected = [*attention, "ffn.net.0.proj", "ffn.net.2"]
    assert sorted(layers) == sorted(f"blocks.{n}.{layer}" for n in range(3) for layer in expected)


def test_a_new_lora_changes_no_output():
    network = build()
    before = output(network)
    add_lora(network, rank=4, alpha=8)
    assert torch.equal(output(network), before)


def test_the_update_is_scaled_by_alpha_over_rank():
    network = trained(rank=4, alpha=6)
    layer, x = network.blocks[0].attn1.to_q, torch.randn(3, 16)
    update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    expected = layer.base_layer(x) + 6 / 4 * x @ update.T
    torch.testing.assert_close(layer(x), expected)


def test_gradients_reach_the_lora_alone_and_the_base_stays():
    network = trained()
    before = {k: v.clone() for k, v in network.state_dict().items() if "lora_" not in k}
    network(torch.ones(1, 4, 1, 4, 4), torch.ones(1), torch.ones(1, 2, 8)).sample.sum().backward()
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    assert all(("lora_" in name) == (p.grad is not None) for name, p in network.named_parameters())
    after = {k: v for k, v in network.state_dict().items() if "lora_" not in k}
    assert equal(before, after)


@pytest.mark.parametrize("prepare", [lambda n, _: add_lora(n, rank=4, alpha=6), load_lora])
def test_the_lora_of_a_half_precision_network_is_float32(saved, prepare):
    network = build().to(torch.bfloat16)
    prepare(network, saved[1])
    assert {value.dtype for value in trainable_parameters(network).values()} == {torch.float32}
    assert network.blocks[0].attn1.to_q(torch.ones(1, 16).bfloat16()).dtype == torch.bfloat16


def test_small_steps_of_an_optimiser_reach_the_lora_of_a_half_precision_network():
    network = build().to(torch.bfloat16)
    add_lora(network, rank=4, alpha=4)
    parameters = trainable_parameters(network)
    before = {name: value.detach().clone() for name, value in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-6, weight_decay=0.0)
    for _ in range(10):
        for value in parameters.values():
            value.grad = torch.ones_like(value)
        optimizer.step()
    for name, value in parameters.items():
        assert float((before[name] - value.detach()).mean()) == pytest.approx(1e-5, rel=0.01), name


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch's RMS norm
def test_values_that_are_loaded_under_autocast_are_those_that_run(saved):
    def build_full():
        network = build()
        add_lora(network, rank=4, alpha=6, precision="float32")
        return network

    inputs = (torch.ones(1, 4, 1, 4, 4), torch.ones(1), torch.ones(1, 2, 8))
    network, other = build_full(), build_full()
    load_lora(other, saved[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = other(*inputs).sample
        before = network(*inputs).sample
        load_lora(network, saved[1])
        assert network(*inputs).sample.equal(expected)
    assert not before.equal(expected)


def test_the_seed_makes_the_start_and_the_global_random_state_is_left_alone():
    first, second, third = build(), build(), build()
    add_lora(first, rank=4, alpha=4, seed=1)
    torch.manual_seed(9)
    drawn = torch.rand(3)
    torch.manual_seed(9)
    add_lora(second, rank=4, alpha=4, seed=1)
    assert torch.equal(torch.rand(3), drawn)
    add_lora(third, rank=4, alpha=4, seed=2)
    assert equal(values(first), values(second))
    assert not equal(values(first), values(third))


def test_a_saved_adapter_comes_back_bit_for_bit_in_a_fresh_network(saved):
    network, folder = saved
    fresh = build()
    load_lora(fresh, folder)
    assert equal(values(fresh), values(network))
    assert torch.equal(output(fresh), output(network))


def test_an_earlier_state_is_saved_in_place_of_the_present_one(tmp_path):
    network = trained()
    earlier = values(network)
    with torch.no_grad():
        for parameter in trainable_parameters(network).values():
            parameter += 1
    save_lora(network, tmp_path, earlier)
    fresh = build()
    load_lora(fresh, tmp_path)
    assert equal(values(fresh), earlier)


def test_loading_into_a_network_with_a_lora_keeps_its_parameter_objects(saved):
    network, folder = saved
    other = trained(seed=6)
    before = trainable_parameters(other)
    load_lora(other, folder)
    assert all(value is before[name] for name, value in trainable_parameters(other).items())
    assert equal(values(other), values(network))


def test_diffusers_reads_the_file_with_equal_output(saved):
    network, folder = saved
    fresh = build()
    fresh.load_lora_adapter(folder, prefix="base_model.model", weight_name=WEIGHTS_FILE)
    assert torch.equal(output(fresh), output(network))


def test_peft_reads_the_folder_with_equal_output(saved):
    network, folder = saved
    model = PeftModel.from_pretrained(build(), folder)
    assert torch.equal(output(model.base_model.model), output(network))


def test_what_peft_wrote_is_read(saved, tmp_path):
    network, folder = saved
    PeftModel.from_pretrained(build(), folder).save_pretrained(tmp_path)
    fresh = build()
    load_lora(fresh, tmp_path)
    assert torch.equal(output(fresh), output(network))


def test_diffusers_merges_and_unmerges_the_lora(saved):
    network = build()
    load_lora(network, saved[1])
    before, base = output(network), network.blocks[0].attn1.to_q.base_layer.weight
    plain = base.detach().clone()
    network.fuse_lora()
    assert not torch.allclose(base, plain)
    torch.testing.assert_close(output(network), before, rtol=0, atol=1e-5)
    network.unfuse_lora()
    torch.testing.assert_close(base.detach(), plain, rtol=0, atol=1e-6)
    torch.testing.assert_close(output(network), before, rtol=0, atol=1e-5)


def test_two_saves_of_one_adapter_are_the_same_bytes(saved, tmp_path):
    for _ in range(3):
        save_lora(saved[0], tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    for file in saved[1].iterdir():
        assert file.read_bytes() == (tmp_path / file.name).read_bytes()


def test_a_full_disk_leaves_the_earlier_save_as_it_was(saved, tmp_path):
    folder = copied(saved, tmp_path)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_lora(trained(seed=8), folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize("kept", [0, 7, 5000, -1])
def test_weights_that_were_cut_off_are_refused(saved, tmp_path, kept):
    path = copied(saved, tmp_path) / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="is damaged or cut off"):
        load_lora(build(), tmp_path)


def test_a_folder_without_an_adapter_is_refused(saved, tmp_path):
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors .* holds nothing"):
        load_lora(build(), tmp_path)
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors"):
        load_lora(build(), tmp_path / "gone")
    (copied(saved, tmp_path) / WEIGHTS_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model.* holds adapter_config\.json"):
        load_lora(build(), tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "{'r'", "\udc80"])
def test_a_foreign_configuration_is_refused(saved, tmp_path, text):
    path = copied(saved, tmp_path) / CONFIG_FILE
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match="is not a configuration of peft"):
        load_lora(build(), tmp_path)


def test_an_adapter_of_another_type_is_refused(saved, tmp_path):
    (copied(saved, tmp_path) / CONFIG_FILE).write_text(json.dumps({"peft_type": "LOKR"}))
    with pytest.raises(CheckpointError, match=r"type 'LOKR'\. Only LORA"):
        load_lora(build(), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.popitem(), "one matrix of 'blocks.* but no lora_"),
        (
            lambda w: [w.pop(k) for k in list(w) if "blocks.1.attn1.to_k" in k],
            "2 missing: blocks.*other targets",
        ),
        (
            lambda w: w.update(
                {f"base_model.model.x.lora_{half}.weight": torch.ones(4, 4) for half in "AB"}
            ),
            "2 unexpected: x",
        ),
        (
            lambda w: w.update({name: torch.ones(5) for name in list(w)[:2]}),
            r"has matrices \(5,\) and .* not \[r, in\]",
        ),
        (
            lambda w: [w.update({k.replace("attn1", "self_attn"): w.pop(k)}) for k in list(w)],
            "16 missing: .*; 16 unexpected: .*self_attn",
        ),
    ],
)
@pytest.mark.parametrize("has_lora", [False, True])
def test_an_adapter_that_does_not_fit_is_named_and_changes_nothing(
    saved, tmp_path, change, message, has_lora
):
    path = copied(saved, tmp_path) / WEIGHTS_FILE
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    network = trained(seed=6) if has_lora else build()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_lora(network, tmp_path)
    assert equal(network.state_dict(), before)


def test_an_adapter_of_another_network_is_refused_with_its_cause(saved):
    with pytest.raises(CheckpointError, match=r"20 missing.*another number of blocks"):
        load_lora(build(num_layers=3), saved[1])
    with pytest.raises(CheckpointError, match="another width"):
        load_lora(build(head_dim=16), saved[1])


def test_an_adapter_with_other_settings_than_the_networks_is_refused(saved):
    with pytest.raises(
        CheckpointError, match=r"alpha 6 for .*, the network's LoRA has rank 4 and alpha 12"
    ):
        load_lora(trained(alpha=12), saved[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"alpha": 0}, "alpha 0"),
        ({"alpha": float("nan")}, "alpha nan"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"targets": ["to_q", "to_w"]}, "names 'to_w'.*Did you mean 'to_.'"),
    ],
)
def test_wrong_arguments_are_refused_with_the_way_out(options, message):
    with pytest.raises(ValueError, match=message):
        add_lora(build(), **{"rank": 4, "alpha": 4, **options})


def test_lora_needs_diffusers_transformer_and_comes_once(tmp_path):
    with pytest.raises(TypeError, match=r"Linear.* Pass the \.network of a CausalWan"):
        add_lora(nn.Linear(2, 2), rank=4, alpha=4)
    with pytest.raises(ValueError, match="has a LoRA already"):
        add_lora(trained(), rank=4, alpha=4)
    with pytest.raises(ValueError, match="no LoRA to save"):
        save_lora(build(), tmp_path)
