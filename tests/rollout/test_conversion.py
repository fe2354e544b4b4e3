import re
from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors.torch import load_file, save_file

from astrolabe_rollout.checkpoints import load_checkpoint, load_into
from astrolabe_rollout.conversion import (
    DIFFUSERS_TO_ORIGINAL,
    ORIGINAL_TO_DIFFUSERS,
    strip_prefixes,
    to_diffusers,
    to_original,
    unwrap,
)
from astrolabe_rollout.errors import CheckpointError

GOLDEN = Path(__file__).parents[1] / "golden/model/weights_original_keys.safetensors"


def build(**options):
    """The sizes of the golden file."""
    torch.manual_seed(0)
    sizes = {
        "num_attention_heads": 4,
        "attention_head_dim": 32,
        "text_dim": 32,
        "freq_dim": 64,
        "ffn_dim": 256,
        "num_layers": 3,
    }
    return WanTransformer3DModel(**{**sizes, **options})


@pytest.fixture(scope="module")
def original():
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def network():
    return build()


def equal(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in state)


def test_the_tables_are_inverses():
    assert len(DIFFUSERS_TO_ORIGINAL) == len(ORIGINAL_TO_DIFFUSERS)
    for name in (pattern.format(7) for pattern in ORIGINAL_TO_DIFFUSERS):
        state = {f"{name}.weight": torch.zeros(1)}
        assert to_original(to_diffusers(state)).keys() == state.keys()


def test_the_golden_names_become_exactly_diffusers_names(original, network):
    assert to_diffusers(original).keys() == network.state_dict().keys()
    assert equal(to_original(to_diffusers(original)), original)


def test_diffusers_own_converter_agrees(original):
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    assert equal(to_diffusers(original), convert_wan_transformer_to_diffusers(dict(original)))


def test_conversion_changes_nothing_that_is_converted_already(original):
    converted = to_diffusers(original)
    assert equal(to_diffusers(converted), converted)
    assert equal(to_original(original), original)


def test_every_weight_arrives_in_the_network(original):
    fresh = build()
    load_into(fresh, load_checkpoint(GOLDEN))
    assert equal(to_original(fresh.state_dict()), original)


def test_block_numbers_of_several_digits_are_kept():
    state = {"blocks.39.self_attn.q.weight": torch.zeros(1), "blocks.10.modulation": torch.zeros(1)}
    assert list(to_diffusers(state)) == [
        "blocks.39.attn1.to_q.weight",
        "blocks.10.scale_shift_table",
    ]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"generator": state, "critic": {"w": torch.zeros(1)}, "step": 7},
        lambda state: {"generator": {"old": torch.zeros(1)}, "generator_ema": state},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {"state_dict": state, "epoch": 3},
    ],
    ids=["flat", "generator", "generator_ema", "model", "state_dict"],
)
def test_a_torch_file_is_read_from_each_known_container(tmp_path, original, wrap):
    path = tmp_path / "checkpoint.pt"
    torch.save(wrap(original), path)
    assert equal(load_checkpoint(path), to_diffusers(original))


@pytest.mark.parametrize(
    "rename",
    [
        "model.{}".format,
        "model.diffusion_model.{}".format,
        "module.model.{}".format,
        "model._fsdp_wrapped_module.{}".format,
        lambda name: re.sub(r"(blocks\.\d+\.)", r"\1_fsdp_wrapped_module.", f"model.{name}"),
        "model._orig_mod.{}".format,
        "_orig_mod.module.{}".format,
        "net.{}".format,
        "pipe.dit.{}".format,
        "transformer.{}".format,
        "generator.model._forward_module.{}".format,
        lambda name: re.sub(
            r"(blocks\.\d+\.)",
            r"\1_checkpoint_wrapped_module._orig_mod.",
            f"model._fsdp_wrapped_module.{name}",
        ),
        lambda name: re.sub(r"(attn\.)", r"\1_orig_mod.module.", f"module.net.{name}"),
    ],
    ids=[
        *("model", "diffusion_model", "ddp", "fsdp", "fsdp blocks", "compiled", "compiled ddp"),
        *("net", "pipeline", "transformer", "lightning", "checkpointed blocks", "inside a block"),
    ],
)
def test_prefixes_of_wrappers_are_taken_away(original, rename):
    wrapped = {rename(name): value for name, value in original.items()}
    assert wrapped.keys() != original.keys()
    assert equal(strip_prefixes(wrapped), original)


def test_an_old_torch_file_is_read_too(tmp_path, original):
    path = tmp_path / "old.pth"
    torch.save({"generator": original}, path, _use_new_zipfile_serialization=False)
    assert equal(load_checkpoint(path), to_diffusers(original))


def test_loading_keeps_the_networks_dtype_and_tensors(original):
    fresh = build().to(torch.bfloat16)
    before = fresh.proj_out.weight
    load_into(fresh, to_diffusers(original))
    assert fresh.proj_out.weight is before
    assert torch.equal(before, original["head.head.weight"].bfloat16())


@pytest.mark.parametrize("kept", [0, 7, 1000, -1])
@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_a_file_that_was_cut_off_is_refused(tmp_path, original, ending, kept):
    whole, path = tmp_path / f"whole{ending}", tmp_path / f"cut{ending}"
    (save_file if ending == ".safetensors" else torch.save)(original, whole)
    path.write_bytes(whole.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"cut\.(safetensors|pt)' is .*ownload it again"):
        load_checkpoint(path)


class Payload:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys):
    path = tmp_path / "foreign.pt"
    torch.save({"generator": Payload()}, path)
    with pytest.raises(CheckpointError, match="could run code and is not opened"):
        load_checkpoint(path)
    assert capsys.readouterr().out == ""


def test_what_is_no_checkpoint_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint .*gone\.pt"):
        load_checkpoint(tmp_path / "gone.pt")
    with pytest.raises(CheckpointError, match=r"no checkpoint .*gone\.safetensors"):
        load_checkpoint(tmp_path / "gone.safetensors")
    with pytest.raises(CheckpointError, match=r"has the ending '\.onnx'"):
        load_checkpoint(tmp_path / "model.onnx")
    for name in ("folder.pt", "folder.safetensors"):
        (tmp_path / name).mkdir()
        with pytest.raises(CheckpointError, match=r"holds no checkpoint.*\.safetensors"):
            load_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not tensors by name"),
        ({}, "holds nothing"),
        ({"generator_lora": {}, "step": 3}, "holds generator_lora, step"),
    ],
)
def test_a_file_without_tensors_by_name_is_refused(content, message):
    with pytest.raises(CheckpointError, match=message):
        unwrap(content)


def test_two_networks_under_one_name_are_refused(original):
    both = {**original, **{f"model.{name}": value for name, value in original.items()}}
    with pytest.raises(CheckpointError, match=r"names the tensor .* twice"):
        strip_prefixes(both)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("proj_out.bias"), r"1 missing: proj_out\.bias\. It is incomplete"),
        (lambda s: s.update(extra=torch.zeros(2)), "1 unexpected: extra"),
        (
            lambda s: s.update({"proj_out.bias": torch.zeros(9)}),
            r"1 of another shape: proj_out\.bias \(9,\) instead of \(64,\)\. .* another width",
        ),
        (lambda s: s.clear(), "96 missing: .* and 93 more"),
        (lambda s: [s.pop(k) for k in list(s) if "blocks.2." in k], "has 2 blocks, the network 3"),
        (
            lambda s: s.update({"blocks.0.attn2.add_k_proj.weight": torch.zeros(2)}),
            "use the text-to-video model",
        ),
        (
            lambda s: s.update({"blocks.0.attn1.to_q.lora_A.weight": torch.zeros(2)}),
            "adapter with load_lora",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named_and_changes_nothing(
    original, network, change, message
):
    state = to_diffusers({name: value + 1 for name, value in original.items()})
    change(state)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_into(network, state)
    assert equal(network.state_dict(), before)
