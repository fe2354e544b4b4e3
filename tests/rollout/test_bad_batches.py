"""Every tensor that a module reads: without it, of another dtype or of another rank."""

import re

import pytest
import torch
from tensordict import TensorDict

from astrolabe_rollout import Denoiser, StreamingPolicy
from astrolabe_rollout.group_streaming import GroupStreamingPolicy
from astrolabe_rollout.keys import (
    CONTEXT,
    EMBEDS,
    GROUP,
    HISTORY_SEED,
    INDEX,
    LATENTS,
    NOISY,
    READS,
    SCRIPT,
    SEED,
    SIGMA,
    TEXT,
)
from astrolabe_rollout.tiny import build_tiny


@pytest.fixture(scope="module")
def modules():
    model = build_tiny(0).freeze()
    return {
        "policy": StreamingPolicy(model, 3, decode=False),
        "group": GroupStreamingPolicy(model, 3, decode=False),
        "denoiser": Denoiser(model, 3),
    }


def batch():
    numbers = {GROUP: [4, 4], SEED: [1, 2], HISTORY_SEED: [3, 3], INDEX: [0, 0]}
    shapes = {EMBEDS: (12, 96), CONTEXT: (6, 16, 6, 6), SIGMA: (3,)}
    shapes |= dict.fromkeys((LATENTS, NOISY), (3, 16, 6, 6))
    made = TensorDict(batch_size=[2])
    for key, values in numbers.items():
        made[key] = torch.tensor(values)
    for key, shape in shapes.items():
        made[key] = torch.rand(2, *shape)
    made[SCRIPT] = made[TEXT] = ["a red circle"] * 2
    return made


def test_each_entry_is_named_when_it_is_absent_of_another_kind_or_of_another_rank(modules):
    for module in modules.values():
        name = type(module).__name__
        for key in module.in_keys:
            bad = batch()
            value = bad.pop(key)
            with pytest.raises(KeyError) as absent:
                module(bad)
            assert f"{name}: the batch lacks {key}; it reads" in str(absent.value)
            if key == SCRIPT:
                continue
            other = value.float() if key in (GROUP, SEED, HISTORY_SEED, INDEX) else value.long()
            for wrong in (other, value.to(torch.uint8), value.bool()):
                bad[key] = wrong
                with pytest.raises(TypeError) as kind:
                    module(bad)
                dtype = str(wrong.dtype).removeprefix("torch.")
                assert f"{name}: {key} is {dtype} {list(value.shape)}" in str(kind.value)
                assert READS[key] in str(kind.value)
            bad[key] = value[..., None]
            told = re.escape(f"{[*value.shape, 1]} in a batch [2]. Give {READS[key]}.")
            with pytest.raises(ValueError, match=rf"{name}: {re.escape(str(key))} is \w+ {told}"):
                module(bad)


SIZES = [
    ("denoiser", LATENTS, lambda x: x[:, :2], r"'latents'\) is float32 \[2, 2, 16, 6, 6\] for"),
    ("denoiser", SIGMA, lambda x: x[:, :2], r"'sigma'\) is float32 \[2, 2\].*Give \[2, 3\]"),
    ("denoiser", SIGMA, lambda x: 1000 * x, r"'sigma'\) runs from .* not timesteps"),
    ("denoiser", SIGMA, lambda x: x * torch.nan, r"'sigma'\) runs from nan"),
    ("denoiser", CONTEXT, lambda x: x[..., :5], r"'context'\) is .*Give \[2, 6, 16, 6, 6\]"),
    ("denoiser", INDEX, lambda x: x - 1, "windows -1 to -1"),
    ("group", INDEX, lambda x: x - 1, "mixes the windows .*below 0"),
    ("policy", INDEX, lambda x: x - 1, r"asks for windows \[-1\]"),
    ("policy", SEED, lambda x: x * 0, "two videos of group 4 have the seed 0"),
    ("group", SEED, lambda x: x * 0, "two videos of group 4 have the seed 0"),
    ("policy", TEXT, lambda _: ["a", "b"], "group 4 holds the prompts 'a' and 'b'"),
    ("group", SCRIPT, lambda _: ["a", "b"], "group 4 have the scripts"),
    ("group", HISTORY_SEED, lambda x: x * torch.tensor([1, 2]), r"history seeds \[3, 6\]"),
]


@pytest.mark.parametrize(("module", "key", "change", "message"), SIZES)
def test_sizes_and_values_that_do_not_fit_each_other_are_refused(
    modules, module, key, change, message
):
    bad = batch()
    bad[key] = change(bad[key])
    with pytest.raises(ValueError, match=message):
        modules[module](bad)


def test_the_videos_of_a_group_lie_together(modules):
    apart = torch.cat([batch(), batch()])
    apart[GROUP], apart[SEED] = torch.tensor([1, 2, 1, 2]), torch.arange(4)
    with pytest.raises(ValueError, match=r"lie next to each other: \[1, 2, 1, 2\].*together"):
        modules["group"](apart)


def test_a_transformer_names_the_tensor_that_does_not_fit_its_geometry(modules):
    transformer = modules["denoiser"].transformer
    x, time, embeds = torch.zeros(2, 3, 16, 6, 6), torch.zeros(2, 3), torch.zeros(2, 12, 96)
    for bad, message in (
        ((x.transpose(1, 2), time, embeds), r"latents are float32 \[2, 16, 3, 6, 6\]; .*16, 6, 6"),
        ((x[..., :4], time, embeds), r"latents are float32 \[2, 3, 16, 6, 4\]"),
        ((x.long(), time, embeds), "latents are int64"),
        ((x, time[:, 0], embeds), r"timestep is float32 \[2\] for latents \[2, 3, 16, 6, 6\]"),
        ((x, time, embeds[0]), r"embeds are float32 \[12, 96\] for 2 videos"),
        ((x, time, embeds[:1]), r"embeds are float32 \[1, 12, 96\] for 2 videos"),
    ):
        with pytest.raises(ValueError, match=message):
            transformer.forward_window(*bad)
    cache = transformer.new_cache()
    cache.open(2)
    with pytest.raises(ValueError, match=r"latents have 3 frames, the cache's open chunk 2"):
        transformer.forward_chunk(x, time, embeds, cache)
    with pytest.raises(ValueError, match=r"the chunks \(1, 1\) are 2 frames"):
        transformer.forward_window(x, time, embeds, chunks=(1, 1))


def test_windows_after_the_first_are_of_the_length_that_the_denoiser_was_made_for(modules):
    late = batch()
    late[INDEX] += 1
    denoiser = Denoiser(build_tiny(0).freeze(), 6)
    with pytest.raises(ValueError, match=r"windows 1 to 1 of 3 latent frames .* windows of 6"):
        denoiser(late)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda bad: bad[:0], r"the batch \[0\] has no video"),
        (lambda bad: bad.set(EMBEDS, bad[EMBEDS][..., 1:]), r"\[2, 12, 95\]; this .* text of 96"),
    ],
)
def test_text_that_makes_no_video_is_refused(modules, spoil, message):
    with pytest.raises(ValueError, match=message):
        modules["policy"](spoil(batch()))


@pytest.mark.parametrize("name", ["policy", "group"])
def test_text_that_is_no_numbers_is_refused(modules, name):
    bad = batch()
    bad[EMBEDS][1, 3, 5] = torch.inf
    with pytest.raises(ValueError, match=r"StreamingPolicy: .*'embeds'\) has NaN or infinite"):
        modules[name](bad)


def test_what_cannot_be_sampled_is_refused_when_a_policy_is_made():
    model = build_tiny(0).freeze()
    for kind in (StreamingPolicy, GroupStreamingPolicy):
        with pytest.raises(ValueError, match="overview=4 is made of pixels, which decode=False"):
            kind(model, 3, decode=False, overview=4)
        with pytest.raises(ValueError, match="an overview of 1 frames"):
            kind(model, 3, overview=1)
        with pytest.raises(TypeError, match=r"number of latent frames is 3\.0"):
            kind(model, 3.0)
    for kind in (StreamingPolicy, GroupStreamingPolicy, Denoiser):
        with pytest.raises(TypeError, match=rf"{kind.__name__}: model is a CausalWan"):
            kind(model.transformer, 3)
