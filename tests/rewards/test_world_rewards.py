"""tiny_ta and pixel_check against videos of the world that the embedded model learns."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from tensordict import TensorDict

from astrolabe_rewards import (
    CompositeReward,
    FlowMQ,
    PixelCheck,
    SharpnessVQ,
    TinyTextReward,
    WeightsError,
)
from astrolabe_rewards.matcher import clips_of
from astrolabe_rewards.pixel_check import PALETTE
from astrolabe_rewards.weights import TensorFiles
from astrolabe_rewards.words import VOCABULARY, named_attributes
from astrolabe_rollout.tiny import load_tiny
from astrolabe_rollout.world import COLOURS, GROUNDS, MOTIONS, SHAPES, render, sample_scenes

COUNT = 24


@pytest.fixture(scope="module", params=[False, True], ids=["training", "held-out"])
def world(request):
    scenes = sample_scenes(COUNT, torch.Generator().manual_seed(3), held_out=request.param)
    return scenes, torch.stack([render(scene, 33) for scene in scenes])


@pytest.fixture(scope="module")
def tiny():
    return TinyTextReward()


def other(value, values):
    """A value that is wrong."""
    return values[(values.index(value) + 1) % len(values)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_precision_of_the_caller_changes_a_score(world, tiny, dtype):
    scenes, videos = world
    batch = TensorDict(batch_size=[2])
    batch["video", "pixels"], batch["video", "fps"] = videos[:2], torch.full((2,), 16.0)
    batch["prompt", "text"] = [scene.caption for scene in scenes[:2]]
    exact = tiny(batch.clone())["score", "tiny_ta"]
    with torch.autocast("cpu", dtype=dtype):
        assert tiny(batch.clone())["score", "tiny_ta"].equal(exact)
    cast = CompositeReward({"tiny_ta": (TinyTextReward(), 1.0)}).to(dtype)
    assert cast(batch)["score", "tiny_ta"].equal(exact)


def test_the_vocabulary_is_that_of_the_world():
    assert {
        "colour": tuple(COLOURS),
        "shape": SHAPES,
        "motion": MOTIONS,
        "ground": tuple(GROUNDS),
    } == VOCABULARY
    assert PALETTE == COLOURS


def test_every_caption_names_all_four_attributes(world):
    for scene in world[0]:
        assert named_attributes(scene.caption) == {
            "colour": scene.colour,
            "shape": scene.shape,
            "motion": scene.motion,
            "ground": scene.ground,
        }


def test_the_check_passes_every_render(world):
    scenes, videos = world
    checks = PixelCheck().check(videos, [scene.caption for scene in scenes])
    for name, values in checks.items():
        assert values.nanmean() == 1, name
    directed = [scene.motion.startswith("moves") for scene in scenes]
    assert checks["direction"].isnan().logical_not().tolist() == directed


def test_haze_costs_quality_and_text_reward_and_no_motion_reward(world, tiny):
    prompts, fps = [scene.caption for scene in world[0]], torch.full((COUNT,), 16.0)
    hazy = [
        torch.stack([render(replace(scene, haze=haze), 33) for scene in world[0]])
        for haze in (0.0, 0.5, 1.0)
    ]
    for reward in (SharpnessVQ(), tiny):
        clear, some, thick = (reward.score(video, prompts, fps).mean() for video in hazy)
        assert clear > some > thick
    motion = torch.stack([FlowMQ().score(video, prompts, fps) for video in hazy[:2]])
    assert (motion[0] - motion[1]).abs().mean() < 0.02


@pytest.mark.parametrize("attribute", ["colour", "shape", "motion"])
def test_the_check_refuses_a_wrong(attribute, world):
    scenes, videos = world
    prompts = []
    for scene in scenes:
        value = getattr(scene, attribute)
        prompts.append(scene.caption.replace(value, other(value, VOCABULARY[attribute])))
    checks = PixelCheck().check(videos, prompts)
    assert (checks.pop(attribute) == 0).all()
    checks.pop("direction")
    assert all((values == 1).all() for values in checks.values())


def test_the_check_knows_shapes_through_the_embedded_codec(world):
    scenes, videos = world
    codec = load_tiny().codec
    latents = codec.encode(videos)
    generator = torch.Generator().manual_seed(0)
    imprecise = latents + 0.3 * torch.randn(latents.shape, generator=generator)
    found = PixelCheck().check(codec.decode(imprecise), [scene.caption for scene in scenes])
    assert found["shape"].mean() >= 0.95
    assert found["colour"].mean() == 1


def test_the_check_bears_a_little_blur_and_noise(world, spoil):
    scenes, videos = world
    prompts = [scene.caption for scene in scenes]
    for kind, amount in (("blurred", 0.8), ("noisy", 6)):
        spoiled = torch.stack([spoil(kind, video, amount) for video in videos])
        assert all(
            values.nanmean() == 1 for values in PixelCheck().check(spoiled, prompts).values()
        )


def test_the_check_finds_nothing_on_empty_ground():
    empty = torch.full((1, 9, 3, 48, 48), 110, dtype=torch.uint8)
    checks = PixelCheck().check(empty, ["a red circle moves left"])
    assert {name: float(values) for name, values in checks.items()} == {
        "present": 0,
        "colour": 0,
        "shape": 0,
        "motion": 0,
        "direction": 0,
    }


def test_the_check_counts_frames_without_the_object(world):
    scenes, videos = world
    spoiled = videos[:1].clone()
    spoiled[0, 5:16] = 110
    assert float(PixelCheck().check(spoiled, ["a video"])["present"]) == pytest.approx(22 / 33)
    del scenes


def test_the_check_sees_that_a_frozen_video_does_not_move(world, spoil):
    scenes, videos = world
    frozen = torch.stack([spoil("frozen", video) for video in videos])
    checks = PixelCheck().check(frozen, [scene.caption for scene in scenes])
    assert checks["motion"].sum() == 0
    assert checks["shape"].mean() == 1


def test_the_check_scores_only_what_the_prompt_names(world):
    scenes, videos = world
    fps = torch.full((1,), 16.0)
    wrong = other(scenes[0].colour, VOCABULARY["colour"])
    assert float(PixelCheck().score(videos[:1], [f"something {wrong}"], fps)) == 0.5
    assert float(PixelCheck().score(videos[:1], ["something"], fps)) == 1


def test_the_matcher_knows_held_out_combinations(world, tiny):
    scenes, videos = world
    with torch.inference_mode():
        logits = tiny.matcher(clips_of(videos))
    for name, values in VOCABULARY.items():
        truth = torch.tensor([values.index(getattr(scene, name)) for scene in scenes])
        assert (logits[name].argmax(-1) == truth).float().mean() >= 0.9, name


@pytest.mark.parametrize("attribute", ["colour", "shape", "motion", "ground"])
def test_the_matcher_prefers_the_right(attribute, world, tiny):
    scenes, videos = world
    fps = torch.full((COUNT,), 16.0)
    right = [scene.caption for scene in scenes]
    wrong = [
        scene.caption.replace(
            getattr(scene, attribute), other(getattr(scene, attribute), VOCABULARY[attribute])
        )
        for scene in scenes
    ]
    with torch.inference_mode():
        gap = tiny.score(videos, right, fps) - tiny.score(videos, wrong, fps)
    assert (gap > 0).float().mean() >= 0.9
    assert gap.mean() > 0.12


@pytest.mark.parametrize("kind", ["shuffled", "frozen", "wobbling"])
def test_the_matcher_is_less_sure_of_a_video_that_is(kind, world, tiny, spoil):
    scenes, videos = world
    prompts, fps = [scene.caption for scene in scenes], torch.full((COUNT,), 16.0)
    with torch.inference_mode():
        clean = tiny.score(videos, prompts, fps)
        spoiled = tiny.score(torch.stack([spoil(kind, video) for video in videos]), prompts, fps)
    assert spoiled.mean() < clean.mean() - 0.01
    assert clean.mean() < 0.97


def test_the_matcher_is_neutral_on_other_prompts(world, tiny):
    _, videos = world
    assert float(tiny.score(videos[:1], ["two cats at play"], torch.ones(1))) == 0.5


def test_the_matcher_takes_other_sizes(world, tiny):
    scenes, videos = world
    large = videos[:4].repeat_interleave(2, -1).repeat_interleave(2, -2)
    prompts, fps = [scene.caption for scene in scenes[:4]], torch.full((4,), 16.0)
    small = tiny.score(videos[:4], prompts, fps)
    torch.testing.assert_close(tiny.score(large, prompts, fps), small, atol=0.05, rtol=0)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(WeightsError, match="train_tiny_reward"):
        TinyTextReward(path=str(tmp_path / "none.safetensors"))


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\xff" * 64])
def test_damaged_weights_are_refused(content, tmp_path):
    file = tmp_path / "damaged.safetensors"
    file.write_bytes(content)
    with pytest.raises(WeightsError, match="holds no weights of tiny_ta"):
        TinyTextReward(path=str(file))


def test_weights_of_another_network_are_refused(tmp_path):
    from safetensors.torch import save_file

    file = tmp_path / "foreign.safetensors"
    save_file({"blocks.0.weight": torch.zeros(3)}, file)
    with pytest.raises(WeightsError, match="holds no weights of tiny_ta"):
        TinyTextReward(path=str(file))


def test_weights_of_a_reward_that_are_no_numbers_are_refused_by_name(tiny, tmp_path):
    state = {name: value.clone() for name, value in tiny.matcher.state_dict().items()}
    state["frame.0.weight"][0, 0, 0, 0] = torch.nan
    save_file(state, tmp_path / "t.safetensors")
    with pytest.raises(WeightsError, match=r"t\.safetensors'.*'frame\.0\.weight'"):
        TinyTextReward(path=str(tmp_path / "t.safetensors"))
    with (
        TensorFiles([tmp_path / "t.safetensors"]).opened() as read,
        pytest.raises(WeightsError, match=r"'frame\.0\.weight'"),
    ):
        read("frame.0.weight")
