import re

import pytest

from astrolabe_rollout.geometry import Geometry

WAN = Geometry(480, 832)


@pytest.mark.parametrize(("latent", "pixel"), [(3, 9), (21, 81), (240, 957)])
def test_latent_and_pixel_frames_count_each_other(latent, pixel):
    assert WAN.pixel_frames(latent) == pixel
    assert WAN.latent_frames(pixel) == latent


def test_a_video_has_as_many_pixel_frames_as_its_windows_together():
    windows = [WAN.pixel_frames(9, first=index == 0) for index in range(4)]
    assert windows == [33, 36, 36, 36]
    assert sum(windows) == WAN.pixel_frames(36)


def test_a_frame_of_480p_has_1560_tokens():
    assert WAN.latent_size == (60, 104)
    assert WAN.tokens == 1560


def test_the_first_chunk_of_a_window_sees_what_the_cache_has_beside_it():
    assert Geometry(48, 48, window=12, sink=3).context == 9
    assert Geometry(48, 48).context == 0


@pytest.mark.parametrize(
    ("pixel", "advice"),
    [(80, "Take 69 or 81."), (82, "Take 81 or 93."), (77, "Take 69 or 81."), (0, "Take 9 or 21.")],
)
def test_a_wrong_number_of_pixel_frames_names_the_nearest_right_ones(pixel, advice):
    with pytest.raises(ValueError, match=re.escape(advice)):
        WAN.latent_frames(pixel)


def test_a_wrong_number_of_latent_frames_names_the_nearest_right_ones():
    assert WAN.chunks(21) == 7
    for latent in (19, 20):
        with pytest.raises(ValueError, match=r"Take 18 \(69 pixel frames\) or 21 \(81 pixel"):
            WAN.chunks(latent)
    with pytest.raises(ValueError, match=r"Take 3 \(9 pixel frames\) or 6"):
        WAN.chunks(0)


@pytest.mark.parametrize("size", [(40, 48), (48, 40)])
def test_a_picture_that_does_not_divide_into_patches_is_refused(size):
    with pytest.raises(ValueError, match="multiples of 16"):
        Geometry(*size)


def test_a_window_must_hold_the_sink_and_one_chunk():
    assert Geometry(48, 48, window=6, sink=3).context == 3
    with pytest.raises(ValueError, match="Set window to 6 or more"):
        Geometry(48, 48, window=5, sink=3)


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        ({"height": -48}, ValueError, "height is -48. Set it to 1 or more"),
        ({"height": 48.0}, TypeError, r"height is 48\.0, which is no whole number"),
        ({"chunk": 0}, ValueError, "chunk is 0"),
        ({"sink": -1}, ValueError, "sink is -1. Set it to 0 or more"),
    ],
)
def test_sizes_are_whole_numbers_above_zero(sizes, error, message):
    with pytest.raises(error, match=message):
        Geometry(**{"height": 48, "width": 48, **sizes})
