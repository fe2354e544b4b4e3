"""The text encoder: equal to diffusers' Wan pipeline, remembered, released."""

import logging

import pytest
import torch
from diffusers.pipelines.wan.pipeline_wan import WanPipeline, prompt_clean
from transformers import UMT5Config, UMT5EncoderModel

from astrolabe_rollout.text import TextEncoder, clean, word_tokenizer

WORDS = ["a", "red", "cat", "&", "dog", "runs", "on", "the", "moon"]


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    tokenizer = word_tokenizer(WORDS)
    config = UMT5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2
    )
    model = UMT5EncoderModel(config).eval().requires_grad_(False)
    return TextEncoder(model, tokenizer, length=8)


@pytest.mark.parametrize("prompt", ["a  cat &amp;amp; dog\n", "the moonâ€™s cat", " red ", ""])
def test_prompts_are_cleaned_as_diffusers_does(prompt):
    assert clean(prompt) == prompt_clean(prompt)


def test_embeddings_equal_those_of_the_pipeline_of_diffusers(encoder):
    prompts = ["a cat runs", "a red cat &amp; dog runs on the moon on the moon", ""]
    pipeline = WanPipeline.__new__(WanPipeline)  # its text half needs no other part
    pipeline.text_encoder, pipeline.tokenizer = encoder.encoder, encoder.tokenizer
    expected = pipeline._get_t5_prompt_embeds(
        prompts, max_sequence_length=8, device="cpu", dtype=torch.float32
    )
    torch.testing.assert_close(encoder.embed(prompts), expected, rtol=0, atol=0)


def test_a_prompt_that_is_too_long_is_warned_about_and_counted(encoder, caplog):
    with caplog.at_level(logging.WARNING):
        encoder.embed(["a cat", "a red cat runs on the moon on the moon"])
    assert encoder.num_cut == 1
    assert "a prompt of 11 tokens is cut to 8" in caplog.text


def test_equal_prompts_are_encoded_once_and_remembered(encoder):
    calls = []
    encoder.encoder.register_forward_hook(lambda *_: calls.append(1))
    first = encoder.embed(["a cat", "a dog", "a cat"])
    assert torch.equal(first[0], first[2])
    assert torch.equal(encoder.embed(["a dog"])[0], first[1])
    assert len(calls) == 1


def test_no_more_is_remembered_than_allowed(encoder):
    encoder.remember = 2
    for prompt in ("a", "cat", "a", "dog"):
        encoder.embed([prompt])
    assert list(encoder._known) == ["a", "dog"]


def test_an_encoder_in_training_is_not_remembered(encoder):
    encoder.encoder.requires_grad_(True)
    encoder.embed(["a cat"])
    assert not encoder._known


def test_a_released_encoder_knows_what_it_embedded(encoder):
    before = encoder.embed(["a cat"])
    encoder.release()
    assert torch.equal(encoder.embed(["a cat"]), before)
    with pytest.raises(RuntimeError, match=r"does not know 'a dog'.*before release\(\)"):
        encoder.embed(["a dog"])
