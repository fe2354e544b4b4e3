"""The table of rewards in the README says what the classes say, and what they say is so."""

from pathlib import Path

import pytest
import torch

from astrolabe_rewards.cards import END, START, offered, put_table, table
from astrolabe_rewards.hpsv3 import HPSv3
from astrolabe_rewards.videoalign import VideoAlign

README = Path(__file__).parents[2] / "packages" / "astrolabe-rewards" / "README.md"


def test_the_readme_shows_the_present_table():
    text = README.read_text("utf-8")
    assert put_table(text) == text, f"run: uv run python -m astrolabe_rewards.cards {README}"


def test_every_reward_says_what_it_is():
    rewards = offered()
    assert {"hpsv3", "videoalign_vq", "videoalign_mq", "videoalign_ta", "tiny_ta"} <= set(rewards)
    for name, reward in rewards.items():
        assert reward.name == name
        for text in (reward.measures, reward.unit, reward.licence, reward.weights_from):
            assert text
            assert "|" not in text
    assert table().count("\n") == len(rewards) + 2


def test_a_document_without_marks_is_refused():
    with pytest.raises(ValueError, match=f"no {START} followed by {END}"):
        put_table("# A document")


@pytest.mark.parametrize(("reward", "size"), [(HPSv3, "7B"), (VideoAlign, "2B")])
def test_the_memory_of_the_large_models_is_what_their_sizes_come_to(reward, size, real):
    from transformers import AutoModel, Qwen2VLConfig

    config = Qwen2VLConfig.from_dict(real("config", size))
    config.text_config.vocab_size = 151660
    with torch.device("meta"):
        network = AutoModel.from_config(config)
    count = sum(value.numel() for value in network.parameters())
    linear = sum(
        module.weight.numel()
        for module in network.language_model.modules()
        if isinstance(module, torch.nn.Linear)
    )
    # 4 bits, and a float32 scale for every 64 numbers.
    gib = [
        2 * count,
        4 * count,
        linear + 2 * (count - linear),
        0.5625 * linear + 2 * (count - linear),
    ]
    bf16, fp32, eight, four = (f"{value / 2**30:.1f}" for value in gib)
    wanted = f"{bf16} GiB bf16, {fp32} fp32, {eight} at 8 bit, {four} at 4 bit"
    assert reward.memory.startswith(wanted)
