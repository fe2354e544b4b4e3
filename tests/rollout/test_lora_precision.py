import pytest
import torch
from diffusers import WanTransformer3DModel

from astrolabe_rollout.lora import add_lora, load_lora, save_lora, trainable_parameters


def build(dtype, **options):
    torch.manual_seed(0)
    network = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        text_dim=16,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
    )
    for name, parameter in network.named_parameters():
        if not any(part in name for part in network._keep_in_fp32_modules):
            parameter.data = parameter.data.to(dtype)
    add_lora(network, rank=8, alpha=8, **options)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in trainable_parameters(network).items():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / 10)
    return network


def multiplied(network):
    """Precisions in which a LoRA matrix is multiplied, its weight's first."""
    seen = set()
    layer = network.blocks[0].attn1.to_q

    def watch(module, inputs, output):
        seen.add((module.weight.dtype, inputs[0].dtype, output.dtype))

    hooks = [part["default"].register_forward_hook(watch) for part in (layer.lora_A, layer.lora_B)]
    run(network)
    for hook in hooks:
        hook.remove()
    return seen


def run(network):
    generator = torch.Generator().manual_seed(2)
    dtype = network.proj_out.weight.dtype
    output = network(
        torch.randn(2, 16, 1, 4, 4, generator=generator).to(dtype),
        torch.tensor([900.0, 300.0]),
        torch.randn(2, 5, 16, generator=generator).to(dtype),
        return_dict=False,
    )[0]
    output.float().square().mean().backward()
    found = trainable_parameters(network)
    return output.detach().float(), torch.cat([p.grad.flatten() for p in found.values()])


HALF, FULL = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("base", "precision", "expected"),
    [
        (HALF, "base", (FULL, HALF, HALF)),
        (HALF, "float32", (FULL, FULL, FULL)),
        (FULL, "base", (FULL, FULL, FULL)),
    ],
)
def test_the_update_is_multiplied_in_the_precision_that_was_asked_for(base, precision, expected):
    network = build(base, precision=precision)
    assert multiplied(network) == {expected}
    assert {p.grad.dtype for p in trainable_parameters(network).values()} == {FULL}


def test_on_a_float32_base_both_precisions_are_the_same_bits():
    one, other = (run(build(FULL, precision=p)) for p in ("base", "float32"))
    assert one[0].equal(other[0])
    assert one[1].equal(other[1])


def test_a_rounded_update_is_no_further_from_float32_than_the_base_is():
    exact = run(build(FULL))
    errors = [
        [float((a - b).norm() / b.norm()) for a, b in zip(run(network), exact, strict=True)]
        for network in (build(HALF, precision="float32"), build(HALF, precision="base"))
    ]
    for of_float32, of_base in zip(*errors, strict=True):
        assert 1e-4 < of_float32 < 3e-2
        assert of_base < 1.5 * of_float32


def test_a_loaded_adapter_is_multiplied_as_a_new_one(tmp_path):
    network = build(HALF)
    save_lora(network, tmp_path)
    other = build(HALF)
    other.unload_lora()
    load_lora(other, tmp_path)
    assert multiplied(other) == {(FULL, HALF, HALF)}
    assert run(other)[0].equal(run(network)[0])


def test_a_rounded_adapter_is_merged_as_any_other():
    network = build(FULL)
    before = run(network)[0]
    network.fuse_lora()
    network.requires_grad_(True)
    torch.testing.assert_close(run(network)[0], before, rtol=0, atol=1e-5)


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision is 'half'"):
        build(FULL, precision="half")
