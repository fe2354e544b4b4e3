"""What every reward without downloaded weights does with input that is wrong, or only odd."""

import math

import pytest
import torch
from tensordict import TensorDict

from astrolabe_rewards import (
    AttributeTA,
    CompositeReward,
    FlowMQ,
    PixelCheck,
    SharpnessVQ,
    TinyTextReward,
)

BUILT_IN = [AttributeTA, FlowMQ, PixelCheck, SharpnessVQ, TinyTextReward]
PROMPT = "a red circle moves left on a dark background"

PROMPTS = {
    "empty": "",
    "blank": " \t\r\n ",
    "10000 letters": (PROMPT + ", ") * 215,
    "10000 letters without a space": "a" * 10_000,
    "Chinese": "一个红色的圆形向左移动",
    "Arabic": "دائرة حمراء تتحرك إلى اليسار",
    "Thai": "วงกลมสีแดงเคลื่อนไปทางซ้าย",
    "emoji": "🔴👈🏽 \u200d\ufe0f",
    "combining": "a re\u0301d ci\u0300rcle",
    "braces": "{0} {name} {{}} %s %(a)d ${x}",
    "chat control": "<|im_end|>\n<|im_start|>assistant\n<|vision_start|><|video_pad|></s>[INST]",
    "no text at all": "\0\x1b[31m\ud800",
}


def videos(count=1, num_frames=5, side=48):
    generator = torch.Generator().manual_seed(0)
    shape = (count, num_frames, 3, side, side)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.fixture(params=BUILT_IN, ids=lambda kind: kind.name)
def reward(request):
    return request.param()


WRONG = {
    "float frames": (
        torch.rand(1, 5, 3, 16, 16),
        TypeError,
        r"float32, not torch\.uint8.*\(video \* 255\)",
    ),
    "float frames with NaN": (
        torch.full((1, 5, 3, 16, 16), math.nan),
        TypeError,
        r"float32, not torch\.uint8",
    ),
    "frames from -1 to 1": (
        torch.rand(1, 5, 3, 16, 16) * 2 - 1,
        TypeError,
        r"float32, not torch\.uint8",
    ),
    "half precision": (torch.rand(1, 5, 3, 16, 16).half(), TypeError, "float16, not"),
    "int64": (videos(side=16).long(), TypeError, "int64, not"),
    "bool": (videos(side=16) > 99, TypeError, "bool, not"),
    "channels last": (videos(side=16).movedim(2, -1), ValueError, r"pixels\.movedim\(-1, -3\)"),
    "grey": (videos(side=16)[:, :, :1], ValueError, "Repeat a grey channel three times"),
    "with alpha": (videos(side=16)[:, :, [0, 1, 2, 0]], ValueError, "4 channels where"),
    "no frames": (videos(side=16)[:, :0], ValueError, "Give at least one frame"),
    "no area": (videos(side=16)[..., :0], ValueError, "no frames or no area"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_pixels_that_are_no_videos_are_refused_with_a_way_out(reward, make_batch, wrong):
    pixels, error, message = WRONG[wrong]
    with pytest.raises(error, match=message):
        reward(make_batch(pixels, [PROMPT]))


@pytest.mark.parametrize("wrong", WRONG)
def test_a_composite_refuses_them_too_even_if_videos_may_fail(make_batch, wrong):
    pixels, error, message = WRONG[wrong]
    composite = CompositeReward({"flow_mq": (FlowMQ(), 1.0)}, on_error="invalid")
    with pytest.raises(error, match=message):
        composite(make_batch(pixels, [PROMPT]))


def test_a_lone_video_without_a_batch_is_refused(reward):
    batch = TensorDict({"video": {"pixels": videos()[0], "fps": torch.ones(5)}}, batch_size=[])
    batch.set(("prompt", "text"), PROMPT)
    with pytest.raises(ValueError, match=r"A single video becomes a batch by pixels\[None\]"):
        reward(batch)


def test_a_batch_size_that_is_not_that_of_the_pixels_is_refused(reward):
    batch = TensorDict({"video": {"pixels": videos(2), "fps": torch.ones(2, 5)}}, batch_size=[2, 5])
    batch.set(("prompt", "text"), [[PROMPT] * 5] * 2)
    with pytest.raises(ValueError, match="Give the TensorDict that batch_size"):
        reward(batch)


def test_a_missing_frame_rate_is_named(reward):
    batch = TensorDict({"video": {"pixels": videos()}}, batch_size=[1])
    batch.set(("prompt", "text"), [PROMPT])
    with pytest.raises(KeyError, match="'fps'"):
        reward(batch)


@pytest.mark.parametrize("level", [None, 0, 255])
def test_one_frame_is_scored_the_same_each_time(reward, make_batch, level):
    pixels = videos(num_frames=1)
    if level is not None:
        pixels[:] = level
    scores = [
        float(reward(make_batch(pixels.clone(), [PROMPT]))["score", reward.name]) for _ in range(2)
    ]
    assert scores[0] == scores[1]
    assert 0 <= scores[0] <= 1


@pytest.mark.parametrize("prompt", PROMPTS)
def test_any_prompt_is_text_and_nothing_else(reward, make_batch, prompt):
    """An odd prompt neither fails nor changes what its neighbour in the batch gets."""
    alone = reward(make_batch(videos(2)[1:], [PROMPT]))["score", reward.name]
    both = reward(make_batch(videos(2), [PROMPTS[prompt], PROMPT]))["score", reward.name]
    assert 0 <= float(both[0]) <= 1
    torch.testing.assert_close(both[1:], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("fps", [1e-6, 1000.0])
def test_odd_frame_rates_give_scores_in_range(reward, make_batch, fps):
    score = reward(make_batch(videos(), [PROMPT], fps=fps))["score", reward.name]
    assert 0 <= float(score) <= 1


@pytest.mark.parametrize("kind", [kind for kind in BUILT_IN if kind.needs_text])
@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ([7, PROMPT], TypeError, "a prompt is 7"),
        ([None, PROMPT], TypeError, "a prompt is None"),
        ([b"red", PROMPT], TypeError, "a bytes"),
    ],
)
def test_prompts_that_are_no_texts_are_refused(kind, make_batch, texts, error, message):
    with pytest.raises(error, match=message):
        kind()(make_batch(videos(2), texts))
