import pytest
import torch

from astrolabe_rollout import world
from astrolabe_rollout.world import COLOURS, GROUNDS, MOTIONS, SHAPES, SIZE, Scene, render

STILL = (0.0, 0.0, 0.0, 0.0)


def centre(frame, ground):
    """Centre of what is not ground, ``(x, y)`` in pixels."""
    shown = (frame.float() - ground).abs().sum(0)
    places = torch.arange(SIZE) + 0.5
    return torch.stack([shown.sum(0) @ places, shown.sum(1) @ places]) / shown.sum()


def test_held_out_combinations_are_never_trained_on_but_all_their_attributes_are():
    training, held_out = set(world.combinations(False)), set(world.combinations(True))
    assert not training & held_out
    assert not set(world.prompts(False)) & set(world.prompts(True))
    for attribute, all_of_it in enumerate((COLOURS, SHAPES, MOTIONS)):
        assert {triple[attribute] for triple in training} == set(all_of_it)
    assert 0.15 < len(held_out) / len(training | held_out) < 0.25


def test_scenes_are_drawn_from_the_side_that_was_asked_for():
    for held_out in (False, True):
        scenes = world.sample_scenes(50, torch.Generator().manual_seed(0), held_out)
        assert {scene.caption for scene in scenes} <= set(world.prompts(held_out))
        assert scenes == world.sample_scenes(50, torch.Generator().manual_seed(0), held_out)
        assert all(-1 <= number <= 1 for scene in scenes for number in scene.jitter)


def test_a_caption_names_the_scene_and_nothing_else():
    scene = Scene("red", "square", "moves left", "checkered", STILL)
    assert scene.caption == "a red square moves left on a checkered background"
    assert scene.caption == Scene("red", "square", "moves left", "checkered", (1, 1, 1, 1)).caption


@pytest.mark.parametrize(
    ("motion", "direction"),
    [
        ("moves left", (-1, 0)),
        ("moves right", (1, 0)),
        ("moves up", (0, -1)),
        ("moves down", (0, 1)),
    ],
)
def test_an_object_moves_where_its_caption_says(motion, direction):
    video = render(Scene("yellow", "circle", motion, "black", STILL), 31)
    ground = GROUNDS["black"][0]
    travelled = centre(video[30], ground) - centre(video[0], ground)
    expected = 30 * world.TRAVEL_PER_FRAME * torch.tensor(direction)
    torch.testing.assert_close(travelled, expected, rtol=0, atol=0.2)


@pytest.mark.parametrize("motion", ["bounces", "orbits", "pulses"])
def test_other_motions_move_too(motion):
    video = render(Scene("blue", "circle", motion, "white", STILL), 9).float()
    assert (video[8] - video[0]).abs().amax() > 50


@pytest.mark.parametrize("shape", SHAPES)
def test_the_picture_shows_the_named_colour_on_the_named_ground(shape):
    for colour, ground in zip(COLOURS, list(GROUNDS) * 2, strict=False):
        frame = render(Scene(colour, shape, "pulses", ground, STILL), 1)[0]
        assert frame.shape == (3, SIZE, SIZE)
        assert tuple(frame[:, SIZE // 2, SIZE // 2].tolist()) == COLOURS[colour]
        corner_and_next_cell = (frame[0, 0, 0].item(), frame[0, 0, world.CELL].item())
        assert corner_and_next_cell == GROUNDS[ground]


@pytest.mark.parametrize("motion", MOTIONS)
def test_drawing_from_a_later_frame_equals_cutting_a_longer_video(motion):
    scene = Scene("green", "triangle", motion, "checkered", (0.5, -0.5, 1.0, 0.3))
    assert torch.equal(render(scene, 5, start=12), render(scene, 17)[12:])
