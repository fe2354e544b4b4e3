"""astrolabe convert and astrolabe export."""

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from peft import PeftConfig
from safetensors.torch import load_file

from astrolabe.cli import main
from astrolabe.load import load
from astrolabe.session import start
from astrolabe_rollout.checkpoints import load_checkpoint


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


@pytest.fixture
def checkpoint(tmp_path, save_small_wan):
    """A small generator in the layout of Self-Forcing."""
    save_small_wan(tmp_path / "made")
    assert run("convert", tmp_path / "made", tmp_path / "sf.pt") == 0
    return tmp_path / "sf.pt"


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_a_checkpoint_goes_through_every_form_and_back_bit_for_bit(checkpoint, capsys):
    folder, file, back = (checkpoint.parent / name for name in ("folder", "a.safetensors", "b.pt"))
    assert run("convert", checkpoint, folder) == 0
    assert run("convert", folder, file) == 0
    assert run("convert", file, back) == 0
    assert "B parameters" in capsys.readouterr().out
    first, last = (torch.load(path, weights_only=True)["generator"] for path in (checkpoint, back))
    assert "model.blocks.1.self_attn.q.weight" in first
    assert same(first, last)
    assert same(load_checkpoint(folder), load_checkpoint(checkpoint))
    assert WanTransformer3DModel.from_pretrained(folder).config.num_attention_heads == 1


def test_the_precision_is_changed_when_asked(checkpoint):
    target = checkpoint.parent / "half.safetensors"
    assert run("convert", checkpoint, target, "--dtype", "bf16") == 0
    assert {value.dtype for value in load_file(target).values()} == {torch.bfloat16}


def test_numbers_beyond_the_precision_are_refused_by_name(checkpoint, capsys):
    content = torch.load(checkpoint, weights_only=True)
    content["generator"]["model.head.head.weight"][0, 0] = 7e4
    large, target = checkpoint.parent / "large.pt", checkpoint.parent / "half.pt"
    torch.save(content, large)
    assert run("convert", large, target, "--dtype", "fp16") == 2
    assert "'proj_out.weight' has numbers up to 7e+04" in capsys.readouterr().err
    assert not target.exists()
    assert run("convert", large, target, "--dtype", "bf16") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.pt", "x"], "there is no checkpoint 'no.pt'"),
        (["sf.pt", "x", "--dtype", "int8"], "Choose from: keep, bf16, fp16, fp32"),
        (["sf.pt", "sf.pt"], "exists. Choose another name, or add --overwrite"),
        (["sf.pt", "x.onnx"], "ends in '.onnx'"),
        (["cut.pt", "x"], "is damaged or cut off"),
        (["other.pt", "x"], "not one of Wan's transformer"),
    ],
)
def test_what_cannot_be_converted_is_refused_in_a_line(
    checkpoint, capsys, monkeypatch, arguments, message
):
    monkeypatch.chdir(checkpoint.parent)
    content = checkpoint.read_bytes()
    (checkpoint.parent / "cut.pt").write_bytes(content[: len(content) // 2])
    torch.save({"a": torch.zeros(1)}, checkpoint.parent / "other.pt")
    capsys.readouterr()
    assert run("convert", *arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert checkpoint.read_bytes() == content
    assert not (checkpoint.parent / "x").exists()


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("export") / "run"
    changes = ["train.steps=1", "evaluation.at_end=false", "snapshots.old_decay=0"]
    start(load(["tiny"], [*small, *changes]), folder)
    return folder


def test_a_run_is_exported_as_adapter_and_as_whole_model(finished, tmp_path, capsys):
    assert run("export", finished, tmp_path / "adapter") == 0
    assert PeftConfig.from_pretrained(str(tmp_path / "adapter")).r > 0
    for name in ("whole", "whole.safetensors"):
        assert run("export", finished, tmp_path / name, "--format", "merged") == 0
    assert same(
        load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "whole.safetensors")
    )
    assert not any("lora" in name for name in load_checkpoint(tmp_path / "whole"))
    capsys.readouterr()
    for arguments, message in (
        (["adapter"], "exists"),
        (["a.pt"], "a LoRA is written as a folder"),
        (["b", "--format", "gguf"], "Choose from: lora, merged"),
        (["b", "--format", "original"], "is written as a file .safetensors"),
        (["b", "--dtype", "bf16"], "--dtype belongs to --format merged"),
        (["b", "--format", "merged", "--dtype", "int8"], "Choose from: keep, bf16, fp16, fp32"),
    ):
        assert run("export", finished, tmp_path / arguments[0], *arguments[1:]) == 2
        assert message in capsys.readouterr().err
