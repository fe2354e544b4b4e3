"""Merging: what arrives of an update that is smaller than the steps of a half precision."""

import math
import warnings
import weakref

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from astrolabe_rollout.checkpoints import load_checkpoint, load_into, meta_network
from astrolabe_rollout.conversion import to_original
from astrolabe_rollout.errors import CheckpointError, PrecisionWarning
from astrolabe_rollout.lora import add_lora, load_lora, merge_lora, save_lora
from astrolabe_rollout.merging import merge, with_updates
from astrolabe_rollout.wan import load_network, reload

FULL, HALF, SHORT = torch.float32, torch.bfloat16, torch.float16
LAYER = "blocks.0.attn1.to_q"


def build():
    torch.manual_seed(0)
    network = WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=128, ffn_dim=256, text_dim=16, num_layers=2
    )
    for parameter in network.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.03)
    return network.requires_grad_(False)


def adapter(folder, *, size=1e-4, seed=1, **options):
    """An update as some hundred steps leave it: a tenth of the steps of bfloat16, or less."""
    network = build()
    add_lora(network, **{"rank": 8, "alpha": 16, "seed": seed, **options})
    torch.manual_seed(seed)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=size)
    save_lora(network, folder)
    return folder


def deltas(folder, scale=2.0):
    """The update by the name of its weight, from the file alone."""
    content = load_file(folder / "adapter_model.safetensors")
    return {
        f"{name.removeprefix('base_model.model.').removesuffix('.lora_A.weight')}.weight": scale
        * (content[name.replace("lora_A", "lora_B")] @ down)
        for name, down in content.items()
        if ".lora_A." in name
    }


def share(merged, base, wanted):
    """Projection of the change of all weights onto the update."""
    changes = {name: merged[name].double() - base[name].double() for name in wanted}
    over = sum(float((changes[name] * wanted[name]).sum()) for name in wanted)
    return over / sum(float(delta.double().square().sum()) for delta in wanted.values())


def quiet(function, *arguments, **options):
    """A call that may not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", PrecisionWarning)
        return function(*arguments, **options)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint in two precisions, and adapters."""
    folder = tmp_path_factory.mktemp("merging")
    state = to_original(build().state_dict())
    torch.save({"generator_ema": {f"model.{k}": v for k, v in state.items()}}, folder / "full.pt")
    torch.save({k: v.to(HALF) for k, v in state.items()}, folder / "half.pt")
    adapter(folder / "small")
    adapter(folder / "other", seed=2)
    adapter(folder / "large", size=0.05, seed=3)
    return folder


@pytest.mark.parametrize("dtype", [FULL, HALF, SHORT])
@pytest.mark.parametrize("at_load", [False, True])
def test_all_of_a_small_update_arrives_whatever_the_precision_it_is_loaded_in(
    files, dtype, at_load
):
    base = load_network(files / "full.pt", dtype).state_dict()
    if at_load:
        network = quiet(load_network, files / "full.pt", dtype, lora=files / "small")
    else:
        network = load_network(files / "full.pt", dtype)
        load_lora(network, files / "small")
        strength = quiet(merge_lora, network)
        assert strength.holds
        wanted = deltas(files / "small")
        assert strength.share == pytest.approx(share(network.state_dict(), base, wanted), abs=1e-3)
    merged = network.state_dict()
    assert {name: value.dtype for name, value in merged.items()} == {
        name: value.dtype for name, value in base.items()
    }
    assert share(merged, base, deltas(files / "small")) == pytest.approx(1, abs=0.04)


def test_merged_weights_are_the_sum_in_float32_rounded_once(files):
    network = load_network(files / "full.pt", HALF)
    load_lora(network, files / "small")
    merge_lora(network)
    whole, update = load_checkpoint(files / "full.pt"), deltas(files / "small")
    for name, value in network.state_dict().items():
        expected = (whole[name] + update.get(name, 0)).to(value.dtype)
        apart = (value != expected).float().mean()  # where the product's last bit decides
        assert apart < (2e-4 if name in update else 1e-9), name


def test_what_a_precision_cannot_hold_is_measured_and_warned_of(files):
    network = load_network(files / "half.pt", HALF)
    base = {name: value.clone() for name, value in network.state_dict().items()}
    load_lora(network, files / "small")
    with pytest.warns(PrecisionWarning, match=r"(?s)strength .* in bfloat16.*load_lora alone"):
        strength = merge_lora(network)
    wanted = deltas(files / "small")
    found = network.state_dict()
    assert strength.share == pytest.approx(share(found, base, wanted), abs=1e-3)
    assert strength.share < 0.9
    same = torch.cat([(found[name] == base[name]).flatten() for name in wanted])
    assert strength.unchanged == pytest.approx(float(same.float().mean()))
    assert strength.unchanged > 0.5
    one = {LAYER + ".weight": wanted[LAYER + ".weight"]}
    assert strength.layers[LAYER] == pytest.approx(share(found, base, one), abs=1e-3)
    assert set(strength.layers) == {name.removesuffix(".weight") for name in wanted}
    with pytest.warns(PrecisionWarning):
        load_network(files / "half.pt", HALF, lora=files / "small")


def test_a_wider_precision_holds_what_the_checkpoints_own_does_not(files):
    network = load_network(files / "half.pt", HALF)
    base = load_checkpoint(files / "half.pt")
    load_lora(network, files / "small")
    strength = quiet(merge_lora, network, FULL)
    assert {value.dtype for value in network.state_dict().values()} == {FULL}
    assert share(network.state_dict(), base, deltas(files / "small")) == pytest.approx(1, abs=1e-4)
    assert strength.share == pytest.approx(1, abs=1e-4)
    assert strength.unchanged < 0.01


def test_a_large_update_is_held_by_any_precision(files):
    network = load_network(files / "half.pt", HALF)
    load_lora(network, files / "large")
    assert quiet(merge_lora, network).share == pytest.approx(1, abs=0.01)


def test_an_update_of_zero_has_no_strength_and_changes_nothing(files):
    network = load_network(files / "full.pt", HALF)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    add_lora(network, rank=2, alpha=2)
    strength = quiet(merge_lora, network)
    assert math.isnan(strength.share)
    assert strength.holds
    assert strength.unchanged == 1
    assert "0 everywhere" in strength.in_words
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("checkpoint", ["full.pt", "half.pt"])
def test_an_adapter_on_a_merged_one_is_rounded_once_with_it(files, checkpoint):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrecisionWarning)
        network = load_network(files / checkpoint, HALF, lora=files / "other")
        load_lora(network, files / "small")
        merge_lora(network)
    whole = load_checkpoint(files / checkpoint)
    first, second = deltas(files / "other"), deltas(files / "small")
    found = network.state_dict()
    for name in first:
        expected = (whole[name].float() + first[name] + second[name]).to(HALF)
        assert (found[name] != expected).float().mean() < 2e-4, name


def test_adapters_merged_one_after_the_other_are_rounded_once_together(files):
    network = load_network(files / "full.pt", HALF)
    for name in ("other", "small", "large"):
        load_lora(network, files / name)
        assert quiet(merge_lora, network).holds
    whole = load_checkpoint(files / "full.pt")
    first, second, third = (deltas(files / name) for name in ("other", "small", "large"))
    found, again = network.state_dict(), reload(network).state_dict()
    for name in first:
        summed = whole[name] + first[name] + second[name] + third[name]
        assert (found[name] != summed.to(HALF)).float().mean() < 2e-4, name
        torch.testing.assert_close(again[name], summed, rtol=0, atol=1e-7)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_an_adapter_that_diverged_is_refused_by_name(files, tmp_path, number):
    network = load_network(files / "full.pt", HALF)
    load_lora(network, files / "small")
    with torch.no_grad():
        network.get_submodule(LAYER).lora_B["default"].weight[0, 0] = number
    save_lora(network, tmp_path / "diverged")
    with pytest.raises(CheckpointError, match=f"adapter of '{LAYER}' adds numbers that are not"):
        merge_lora(network)
    with pytest.raises(CheckpointError, match=r"1 of 40 tensors hold NaN or infinite"):
        load_network(files / "full.pt", HALF, lora=tmp_path / "diverged")


def test_reloading_gives_the_precision_of_the_checkpoint_with_what_is_merged(files):
    network = load_network(files / "full.pt", HALF, lora=files / "other")
    again, whole, update = (
        reload(network),
        load_checkpoint(files / "full.pt"),
        deltas(files / "other"),
    )
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, whole[name] + update.get(name, 0), rtol=0, atol=1e-7)
    own = build()
    assert reload(own) is own


def test_weights_that_were_changed_since_loading_are_merged_as_they_are(files):
    network = load_network(files / "full.pt", HALF)
    with torch.no_grad():
        network.get_submodule(LAYER).weight.mul_(3)
    changed = network.get_submodule(LAYER).weight.clone()
    load_lora(network, files / "large")
    merge_lora(network)
    expected = (changed.float() + deltas(files / "large")[LAYER + ".weight"]).to(HALF)
    assert torch.equal(network.get_submodule(LAYER).weight, expected)


@pytest.mark.parametrize("fate", ["gone", "another"])
def test_without_its_file_a_network_is_merged_as_it_is_and_the_loss_is_told(files, tmp_path, fate):
    path = tmp_path / "a.pt"
    path.write_bytes((files / "full.pt").read_bytes())
    network = load_network(path, HALF)
    path.unlink()
    if fate == "another":
        torch.save({"x": torch.ones(1)}, path)
    load_lora(network, files / "small")
    with pytest.warns(PrecisionWarning):
        assert merge_lora(network).share < 0.9


def test_a_network_of_unknown_origin_is_merged_as_it_is_and_the_loss_is_told(files):
    state = load_checkpoint(files / "full.pt")
    network = meta_network(build().config)
    load_into(network, state, HALF)
    load_lora(network, files / "small")
    with pytest.warns(PrecisionWarning):
        assert merge_lora(network).share < 0.9


def test_numbers_beyond_the_precision_are_refused_by_name(files):
    network = build()
    with torch.no_grad():
        network.proj_out.weight[0, 0] = 7e4
    load_lora(network, files / "small")
    with pytest.raises(CheckpointError, match=r"'proj_out.weight' has numbers up to 7e\+04"):
        merge_lora(network, SHORT)
    with pytest.raises(CheckpointError, match="Choose bf16 or fp32"):
        load_into(meta_network(network.config), network.state_dict(), SHORT)


def test_an_adapter_that_is_no_plain_sum_is_refused_by_name():
    network = build()
    network.add_adapter(LoraConfig(r=2, target_modules=["to_q"], use_dora=True), "default")
    with pytest.raises(CheckpointError, match=r"'blocks\.0\.attn1\.to_q' is no plain LoRA"):
        merge_lora(network)


class Watched(TorchDispatchMode):
    """Sees the most bytes of tensors that were alive at a time."""

    def __init__(self):
        super().__init__()
        self.live, self.peak = weakref.WeakSet(), 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        if isinstance(result, torch.Tensor):
            self.live.add(result)
        alive = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in self.live}
        self.peak = max(self.peak, sum(alive.values()))
        return result


def test_merging_holds_no_float32_copy_of_more_than_a_layer(files):
    network = load_network(files / "full.pt", HALF)
    load_lora(network, files / "small")
    layers = {name: x for name, x in network.named_modules() if isinstance(x, LoraLayer)}
    network.unload_lora()
    exact = with_updates(load_checkpoint(files / "full.pt"), [], "default")
    with Watched() as watched:
        strength = merge(network, layers, "default", exact=exact)
    assert strength.holds
    half = sum(value.nbytes for value in network.state_dict().values())
    largest = 4 * 128 * 256
    assert watched.peak < half + 10 * largest
    assert 10 * largest < 2 * half  # or the bound would say nothing
