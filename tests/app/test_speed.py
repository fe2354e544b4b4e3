"""What tuning costs in speed."""

import json

import pytest
import torch

from astrolabe.checkpoint_files import LORA
from astrolabe.compose import build_model
from astrolabe.load import load
from astrolabe.run_folder import RunFolder
from astrolabe.sampling import load_trained
from astrolabe.session import start
from astrolabe.speed import VARIANTS, Variants, speed
from astrolabe_rollout.chunks import ChunkStream
from astrolabe_rollout.errors import CheckpointError


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("speed") / "run"
    changes = ["train.steps=1", "evaluation.at_end=false", "snapshots.old_decay=0"]
    start(load(["tiny"], [*small, *changes]), folder)
    return folder


def parts(finished):
    folder, run = RunFolder.open(finished)
    model = build_model(run.model)
    return model, load_trained(model, folder)


def latents(model):
    embeds = model.text(["a red circle bounces on a white background"])
    return ChunkStream(model, [7], decode=False).next(embeds).latents


def test_one_network_is_base_and_tuned_in_any_order(finished):
    model, checkpoint = parts(finished)
    tuned = latents(model)
    network = model.transformer.network
    variants = Variants(model, checkpoint / LORA)
    base = {name: value.clone() for name, value in network.state_dict().items()}
    untuned = latents(model)
    original = build_model(RunFolder.open(finished)[1].model)
    assert torch.equal(untuned, latents(original))
    assert not torch.allclose(untuned, tuned, atol=1e-4)
    plain, merged, apart = VARIANTS
    for name in (apart, merged, apart, plain, merged, merged, plain):
        variants.become(name)
        layers = [key for key in network.state_dict() if "lora" in key]
        assert bool(layers) == (name == apart)
        if name == plain:
            assert all(torch.equal(base[key], value) for key, value in network.state_dict().items())
        expected = untuned if name == plain else tuned
        torch.testing.assert_close(latents(model), expected, atol=1e-5, rtol=1e-4)


def test_speed_writes_figures_of_every_variant_with_the_protocol(finished):
    said = []
    result = speed(finished, seconds=1.5, repeats=2, say=said.append)
    written = json.loads((finished / "speed.json").read_text())
    assert written == json.loads(json.dumps(result))
    protocol = written["protocol"]
    assert (protocol["width"], protocol["height"], protocol["batch"]) == (48, 48, 1)
    assert (protocol["chunks"], protocol["repeats"], protocol["threads"]) == (2, 2, 1)
    assert protocol["warm_up_chunks"] == 3  # the window of nine frames is full
    assert protocol["checkpoint"] == "step-000001"
    assert 0 < protocol["process_peak_memory_gib"] < 64
    for mode in ("with_decoding", "without_decoding"):
        assert list(written[mode]) == list(VARIANTS)
        assert written[mode]["base"]["ratio"] == 1
        for figures in written[mode].values():
            assert figures["chunks"] == 4
            assert len(figures["rounds"]) == 2
            # Twelve frames of a chunk, whose median time is known too.
            rate = 12 / figures["percentiles"]["p50"]
            assert figures["frames_per_second"] == pytest.approx(rate, rel=0.9)
            # Two rounds tell nothing of others; of the base itself the ratio is known.
            assert figures["interval"] == ([1, 1] if figures["ratio"] == 1 else None)
    text = (finished / "speed.md").read_text()
    assert said[-1] == text
    assert text.count("| tuned, merged |") == 2


def test_a_run_without_checkpoint_is_refused(finished, tmp_path):
    (tmp_path / "config.json").write_bytes((finished / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        speed(tmp_path, seconds=None, repeats=2, say=print)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
