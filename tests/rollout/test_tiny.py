from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from astrolabe_rewards import PixelCheck
from astrolabe_rollout import (
    CheckpointError,
    ChunkStream,
    StreamingPolicy,
    load_tiny,
    tiny,
    world,
)

WEIGHTS = Path(tiny.__file__).parent / "tiny_weights"


@pytest.fixture(scope="module")
def model():
    return load_tiny()


def prompts_batch(model, prompts):
    return TensorDict(
        {
            "prompt": {
                "embeds": model.text(prompts),
                "seed": torch.arange(len(prompts)) + 7,
            },
            "window": {"index": torch.zeros(len(prompts), dtype=torch.int64)},
        },
        batch_size=[len(prompts)],
    )


def test_the_shipped_weights_are_small():
    assert sum(file.stat().st_size for file in WEIGHTS.iterdir()) < 15e6


def test_held_out_prompts_come_out_right(model):
    prompts = world.prompts(held_out=True)[::5]
    pixels = StreamingPolicy(model, 9)(prompts_batch(model, prompts))["video", "pixels"]
    found = PixelCheck().check(pixels, prompts)
    assert found["present"].mean() >= 0.9
    assert found["colour"].mean() >= 0.9
    assert found["direction"].nanmean() >= 0.7


def test_four_times_the_trained_length_keeps_memory_and_object(model):
    prompts = [
        "a red square bounces on a black background",
        "a cyan circle orbits on a gray background",
    ]
    sizes = []
    for frames in (18, 36):
        policy = StreamingPolicy(model, frames)
        pixels = policy(prompts_batch(model, prompts))["video", "pixels"]
        sizes.append(policy.cache_bytes)
    assert sizes[0] == sizes[1]
    assert pixels.shape[1] == 141
    assert PixelCheck().check(pixels[:, -48:], prompts)["colour"].min() == 1


def test_fifty_chunks_take_the_memory_that_the_formula_says(model):
    stream = ChunkStream(model, [0], decode=False)
    embeds = model.text(["a red square bounces on a black background"])
    held = {}
    for number in range(1, 51):
        stream.next(embeds)
        held[number] = stream.cache.nbytes
    assert held[10] == held[25] == held[50]
    geometry, config = model.geometry, model.transformer.network.config
    width = config.num_attention_heads * config.attention_head_dim
    frame = 2 * config.num_layers * geometry.tokens * width * 4  # keys and values in float32
    unrotated_sink = geometry.sink * frame // 2  # its keys, for positions that follow the window
    assert held[50] == geometry.window * frame + unrotated_sink


@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign"])
def test_a_folder_of_other_files_is_refused(tmp_path, damage):
    for file in WEIGHTS.glob("*.safetensors"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    target = tmp_path / "transformer.safetensors"
    if damage == "missing":
        target.unlink()
    elif damage == "truncated":
        target.write_bytes(target.read_bytes()[:100_000])
    else:
        target.write_bytes((tmp_path / "text.safetensors").read_bytes())
    with pytest.raises(
        CheckpointError, match=r"transformer\.safetensors.*(Give a folder with|Copy it)"
    ):
        load_tiny(tmp_path)
