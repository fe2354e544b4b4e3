import io

import numpy as np
import pytest
from PIL import Image

from astrolabe_eval import contact_sheet, paired_differences, reward_curves


def _solid(*levels):
    """One frame of pure red for each level; letters are grey, so none has this colour."""
    frames = np.zeros((len(levels), 3, 8, 8), dtype=np.uint8)
    frames[:, 0] = np.array(levels)[:, None, None]
    return frames


def _pixels(png):
    return np.asarray(Image.open(io.BytesIO(png))).astype(int)


def _places(picture, level):
    """Rows and columns of the pixels that are pure red of this level."""
    return np.nonzero((picture == [level, 0, 0]).all(axis=-1))


def test_a_sheet_shows_evenly_spaced_frames_from_left_to_right():
    picture = _pixels(contact_sheet([_solid(*range(100, 190, 10))], ["a"], columns=3, tile=32))
    shown = {level: _places(picture, level) for level in range(100, 190, 10)}
    assert [level for level, (rows, _) in shown.items() if len(rows)] == [100, 140, 180]
    assert [shown[level][1].min() for level in (100, 140, 180)] == [14, 49, 84]
    assert [len(shown[level][0]) for level in (100, 140, 180)] == [32 * 32] * 3


def test_a_sheet_puts_after_to_the_right_of_before():
    picture = _pixels(
        contact_sheet([_solid(90), _solid(110)], ["a", "b"], after=[_solid(130), _solid(150)])
    )
    rows, columns = (
        {level: _places(picture, level)[axis].min() for level in (90, 110, 130, 150)}
        for axis in (0, 1)
    )
    assert rows[90] == rows[130] < rows[110] == rows[150]
    assert columns[90] == columns[110] < columns[130] == columns[150]


def test_captions_of_any_length_do_not_widen_a_sheet():
    narrow = _pixels(contact_sheet([_solid(9)], ["a"]))
    wide = _pixels(contact_sheet([_solid(9)], ["many words " * 200]))
    assert narrow.shape == wide.shape
    # The caption fills the line up to the margin, and no letter stands in it.
    ground = wide[0, 0]
    assert (wide[:, -14:] == ground).all()
    assert (wide[14:30, -44:-14] != ground).any()


def test_sheets_without_videos_or_captions_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([], [])
    with pytest.raises(ValueError, match="2 captions"):
        contact_sheet([_solid(1)], ["a", "b"])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_figures_are_complete_files(theme):
    curves = {"total": ([0, 1, 2], [0.0, float("nan"), 1.0]), "cost in $": ([5], [2.0])}
    assert reward_curves(curves, theme=theme).rstrip().endswith(b"</svg>")
    png = paired_differences([0.1, -0.2, 0.3], [-0.1, 0.2], format="png", theme=theme)
    assert Image.open(io.BytesIO(png)).size[0] > 400


def test_a_curve_is_broken_where_there_is_no_number():
    def ink(values):
        """Columns of the picture between the axes' labels that the curve has marked."""
        png = reward_curves({"a": (range(len(values)), values)}, format="png")
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).astype(int)
        blue = (pixels[..., 2] > pixels[..., 0] + 40) & (pixels[..., 3] > 0)
        return np.flatnonzero(blue.any(axis=0))

    whole = ink([0.5] * 9)
    assert (np.diff(whole) == 1).all()
    gap = ink([0.5] * 3 + [float("nan")] * 3 + [0.5] * 3)
    assert np.diff(gap).max() > len(whole) / 3
    # A lone value between two gaps is a dot, and an infinite one no value.
    lone = ink([0.5] * 3 + [float("inf"), 0.5, float("nan")] + [0.5] * 3)
    assert (np.diff(lone) > 1).sum() == 2


def test_improved_and_worsened_prompts_have_different_colours():
    def colours(differences):
        svg = paired_differences(differences, None).decode()
        return "#1f6feb" in svg, "#d9730d" in svg

    assert colours([0.1, 0.2]) == (True, False)
    assert colours([-0.1, -0.2]) == (False, True)
    assert colours([-0.1, 0.2]) == (True, True)


def test_curves_and_differences_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match="no curves"):
        reward_curves({})
    with pytest.raises(ValueError, match="2 steps and 1 values"):
        reward_curves({"a": ([1, 2], [1.0])})
    with pytest.raises(ValueError, match="no differences"):
        paired_differences([], None)


def test_a_caption_of_any_length_is_cut():
    short, long = (contact_sheet([_solid(9)], ["a" * count]) for count in (2000, 5_000_000))
    assert short == long
