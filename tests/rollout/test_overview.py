import pytest
import torch

from astrolabe_rollout.overview import Overview


def numbered(start, stop, videos=1, offset=0):
    """Frames of one pixel whose red is their number, blue the video."""
    pixels = torch.zeros(videos, stop - start, 3, 1, 1, dtype=torch.uint8)
    pixels[:, :, 0, 0, 0] = torch.arange(start, stop, dtype=torch.uint8)
    pixels[:, :, 2, 0, 0] = torch.arange(videos, dtype=torch.uint8)[:, None] + offset
    return pixels


def red(frames):
    return frames[:, :, 0, 0, 0].tolist()


def test_frames_are_spread_evenly_over_the_whole_video():
    overview = Overview(5)
    for start in range(0, 240, 12):
        overview.add(numbered(start, start + 12))
    (found,) = red(overview.frames())
    expected = [0, 60, 120, 179, 239]
    assert found[0] == 0
    assert all(abs(a - b) <= 240 / 10 for a, b in zip(found, expected, strict=True))
    assert overview.fps(16.0) == pytest.approx(16 * 4 / 239)


def test_memory_stays_bounded():
    overview = Overview(4)
    sizes = []
    for start in range(0, 250, 5):
        overview.add(numbered(start, start + 5))
        sizes.append(overview._kept.untyped_storage().nbytes())
    assert max(sizes) <= 2 * 4 * 3
    assert overview.end == 250


def test_candidates_share_the_overview_of_their_history():
    history = Overview(4)
    history.add(numbered(0, 8, videos=2))
    group = Overview(4, before=history)
    group.add(numbered(8, 12, videos=6, offset=100))
    frames = group.frames()
    assert red(frames) == [[0, 4, 7, 11]] * 6
    assert frames[:, 0, 2, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert frames[:, -1, 2, 0, 0].tolist() == [100, 101, 102, 103, 104, 105]
    assert red(history.frames()) == [[0, 2, 5, 7]] * 2  # untouched


def test_a_short_video_shows_frames_twice():
    overview = Overview(6)
    overview.add(numbered(0, 3))
    assert red(overview.frames()) == [[0, 0, 1, 1, 2, 2]]


def test_an_overview_needs_two_frames_and_a_video():
    with pytest.raises(ValueError, match="2 or more"):
        Overview(1)
    with pytest.raises(ValueError, match="no frames yet"):
        Overview(2).frames()
