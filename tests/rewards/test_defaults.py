"""The weight-free rewards put a clean video above spoiled ones, on photographs and on the world."""

import pytest
import torch
from skimage.measure import blur_effect

from astrolabe_rewards import FlowMQ, SharpnessVQ
from astrolabe_rewards.attributes import AttributeTA, colour_shares, mean_velocity
from astrolabe_rewards.motion import motion_factors
from astrolabe_rewards.quality import blurriness, frame_factors, noise_level
from astrolabe_rollout.world import Scene, render

SHARP, FLOW = SharpnessVQ(), FlowMQ()
STILL = (0.0, 0.0, 0.0, 0.0)
SCENES = [
    Scene("red", "square", "moves left", "gray", STILL),  # as bright as its ground
    Scene("blue", "circle", "bounces", "black", STILL),
    Scene("cyan", "triangle", "orbits", "white", STILL),
    Scene("yellow", "triangle", "spins", "black", STILL),
    Scene("green", "square", "pulses", "checkered", STILL),
]


def quality(video):
    return float(SHARP.score(video[None], [""], torch.tensor([16.0])))


def motion(video):
    return float(FLOW.score(video[None], [""], torch.tensor([16.0])))


@pytest.fixture(params=SCENES, ids=lambda scene: scene.motion)
def world_video(request):
    return render(request.param, 33)


@pytest.mark.parametrize("kind", ["blurred", "noisy"])
def test_quality_falls_on_a_photograph_that_is(kind, real_video, spoil):
    assert quality(spoil(kind, real_video)) < quality(real_video) - 0.05


@pytest.mark.parametrize("kind", ["flickering", "shuffled", "frozen", "shaken", "wobbling"])
def test_motion_falls_on_a_photograph_that_is(kind, real_video, spoil):
    assert motion(spoil(kind, real_video)) < motion(real_video) - 0.1


@pytest.mark.parametrize(
    "kind", ["blurred", "noisy", "flickering", "shuffled", "frozen", "shaken", "wobbling"]
)
def test_the_sum_falls_on_a_photograph_that_is(kind, real_video, spoil):
    spoiled = spoil(kind, real_video)
    assert quality(spoiled) + motion(spoiled) < quality(real_video) + motion(real_video) - 0.03


@pytest.mark.parametrize("kind", ["blurred", "noisy"])
def test_quality_falls_on_the_world_when(kind, world_video, spoil):
    assert quality(spoil(kind, world_video)) < quality(world_video) - 0.05


@pytest.mark.parametrize("kind", ["flickering", "shuffled", "frozen", "shaken", "wobbling"])
def test_motion_falls_on_the_world_when(kind, world_video, spoil):
    assert motion(spoil(kind, world_video)) < motion(world_video) - 0.1


def test_motion_falls_when_the_object_is_gone_in_one_frame(world_video):
    spoiled = world_video.clone()
    spoiled[10] = world_video[10, :, :1, :1]
    assert motion(spoiled) < motion(world_video) - 0.1


def test_motion_falls_when_the_shape_changes_from_time_to_time():
    square = render(Scene("red", "square", "moves left", "gray", STILL), 33)
    spoiled = square.clone()
    spoiled[::3] = render(Scene("red", "circle", "moves left", "gray", STILL), 33)[::3]
    assert motion(spoiled) < motion(square) - 0.1


def test_things_that_turn_or_pulse_in_place_count_as_moving(world_video):
    assert motion(world_video) > 0.7


def test_clean_renders_leave_room_above():
    assert all(
        quality(render(scene, 9)) < 0.9 and motion(render(scene, 33)) < 0.97 for scene in SCENES
    )


def test_a_flat_picture_has_no_quality():
    assert quality(torch.full((5, 3, 32, 32), 128, dtype=torch.uint8)) < 0.05


def test_more_blur_is_more_blurry(spoil, real_video):
    values = [
        blurriness(spoil("blurred", real_video, sigma)[0].permute(1, 2, 0).float().numpy() / 255)
        for sigma in (0.5, 1.0, 2.0)
    ]
    assert values == sorted(values)


def test_blurriness_is_near_that_of_scikit_image_on_grey_photographs(real_video, spoil):
    picture = spoil("blurred", real_video)[0].permute(1, 2, 0).float().numpy() / 255
    picture[:] = picture.mean(-1, keepdims=True)
    assert blurriness(picture) == pytest.approx(blur_effect(picture[..., 0]), abs=0.12)


@pytest.mark.parametrize("sigma", [0.02, 0.05])
def test_the_noise_level_is_that_of_white_noise(sigma):
    noise = torch.randn(64, 64, 3, generator=torch.Generator().manual_seed(0))
    # The calmest 80 % of pixels have a little less noise than all.
    assert 0.75 * sigma < noise_level((0.5 + sigma * noise).numpy()) < 1.02 * sigma


def test_contrast_does_not_depend_on_the_size_of_the_object():
    small, large = torch.full((2, 48, 48, 3), 0.2).numpy()
    small[20:28, 20:28, 0] = 0.8
    large[8:40, 8:40, 0] = 0.8
    assert frame_factors(small)["contrast"] == pytest.approx(frame_factors(large)["contrast"])


def test_only_the_best_frames_count(spoil, real_video):
    every = SharpnessVQ(top=1.0)
    mixed = torch.cat([real_video[:3], spoil("blurred", real_video)[3:10]])
    best = float(every.score(real_video[None, :3], [""], torch.ones(1)))
    assert quality(mixed) == pytest.approx(best)
    assert float(every.score(mixed[None], [""], torch.ones(1))) < best - 0.03


@pytest.mark.parametrize("top", [0.0, 1.5])
def test_a_share_of_frames_outside_zero_to_one_is_refused(top):
    with pytest.raises(ValueError, match="not in"):
        SharpnessVQ(top=top)


def test_speed_is_measured_per_second():
    video = render(SCENES[0], 17).permute(0, 2, 3, 1).numpy()
    assert motion_factors(video, 2.0).amplitude < 0.5 * motion_factors(video, 16.0).amplitude


@pytest.mark.parametrize(
    ("towards", "sign"), [("left", (-1, 0)), ("right", (1, 0)), ("up", (0, -1)), ("down", (0, 1))]
)
def test_mean_velocity_points_where_the_object_goes(towards, sign):
    scene = Scene("purple", "circle", f"moves {towards}", "white", STILL)
    velocity = mean_velocity(render(scene, 17).permute(0, 2, 3, 1).contiguous().numpy())
    assert velocity @ sign > 0.8 * (velocity @ velocity) ** 0.5 > 0.2


def test_colour_shares_add_up_and_know_the_ground():
    frames = render(SCENES[1], 3).permute(0, 2, 3, 1).contiguous().numpy()
    shares = colour_shares(frames)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["black"] > 0.8
    assert 0.05 < shares["blue"] < 0.2


def test_attributes_that_are_right_score_above_wrong_ones():
    reward = AttributeTA()
    video = render(Scene("red", "circle", "moves right", "gray", STILL), 33)[None]
    fps = torch.tensor([16.0])
    right = float(reward.score(video, ["a red ball moves right"], fps))
    wrong_way = float(reward.score(video, ["a red ball moves left"], fps))
    wrong_colour = float(reward.score(video, ["a blue ball moves right"], fps))
    assert right > 0.8
    assert max(wrong_way, wrong_colour) < right - 0.3


def test_brightness_words_are_looked_up():
    reward, fps = AttributeTA(), torch.tensor([16.0])
    white = torch.full((1, 3, 3, 16, 16), 240, dtype=torch.uint8)
    assert float(reward.score(white, ["a sunny day"], fps)) > 0.9
    assert float(reward.score(white, ["a dark room"], fps)) < 0.1


def test_a_prompt_without_known_words_is_neutral_and_says_so():
    reward, fps = AttributeTA(), torch.tensor([16.0])
    video = render(SCENES[0], 9)[None]
    assert float(reward.score(video, ["two cats at play"], fps)) == 0.5
    prompts = ["two cats at play", "a red car drives to the left at night", "up a tree"]
    assert reward.coverage(prompts).tolist() == [0, 3, 0]
