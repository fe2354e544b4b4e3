import math

import pytest
import torch
from tensordict import TensorDict

from astrolabe import monitors
from astrolabe.monitors import groups_of, monitor_metrics
from astrolabe_objectives.rounding import rounding
from astrolabe_rewards import Monitors

GROUPS = torch.tensor([0, 0, 0, 1, 1, 1])


def disagreement(scores, groups):
    return monitors.disagreement(scores, groups, rounding(scores))


def spread(values, groups):
    return monitors.spread(values, groups, rounding(values))


@pytest.mark.parametrize(
    ("second", "expected"),
    [([1, 2, 3, 6, 5, 4], 0.0), ([3, 2, 1, 4, 5, 6], 2.0), ([1, 2, 3, 4, 5, 6], 1.0)],
)
def test_disagreement_is_about_the_order_inside_groups(second, expected):
    first = torch.tensor([10.0, 20, 90, 6, 5, 4])
    scores = torch.stack([first, torch.tensor(second).float()], dim=1)
    assert disagreement(scores, GROUPS) == pytest.approx(expected)


def test_what_cannot_be_compared_is_left_out_of_the_disagreement():
    first = torch.tensor([1.0, 2, 3, 7, 7, 7])
    second = torch.tensor([1.0, 2, math.nan, 1, 2, 3])
    assert disagreement(torch.stack([first, second], 1), GROUPS) == pytest.approx(0.0)
    assert math.isnan(disagreement(first[:, None], GROUPS))
    assert math.isnan(disagreement(torch.full((6, 2), math.nan), GROUPS))


def test_the_spread_is_that_inside_groups():
    values = torch.tensor([1.0, 3.0, math.nan, 101.0, 103.0, 102.0])
    assert spread(values, GROUPS) == pytest.approx(math.sqrt((1 + 1 + 1 + 1 + 0) / 5))
    assert math.isnan(spread(torch.full((6,), math.nan), GROUPS))


def test_the_spread_of_rounding_is_0():
    values = torch.tensor([0.5, 0.5 + 6e-8, 0.5 + 1.2e-7, 1.0, 3.0, 2.0])
    assert spread(values, GROUPS) == pytest.approx(math.sqrt(2 / 6))
    assert spread(values[:3], GROUPS[:3]) == 0.0


def test_rounding_disagrees_with_nothing():
    first = torch.tensor([1.0, 2, 3, 1, 2, 3])
    second = torch.tensor([0.5 + 1.2e-7, 0.5 + 6e-8, 0.5, 4, 5, 6])
    assert disagreement(torch.stack([first, second], dim=1), GROUPS) == pytest.approx(0.0)


def test_scores_made_in_16_bits_vary_by_no_less_than_these_tell_apart():
    values = torch.tensor([0.5, 0.5039, 0.5, 1.0, 3.0, 2.0])
    blur = rounding(values.bfloat16())
    assert monitors.spread(values[:3], GROUPS[:3], blur[:3]) == 0.0
    first = torch.tensor([3.0, 2, 1, 4, 5, 6])
    both = torch.stack([values, first], 1), GROUPS, torch.stack([blur, rounding(first)], 1)
    assert monitors.disagreement(*both) == pytest.approx(0.5)


def batch(windows):
    shape = (4, windows)
    pixels = torch.randint(0, 256, (*shape, 3, 3, 8, 8), dtype=torch.uint8)
    data = TensorDict(
        {
            "video": {"pixels": pixels, "fps": torch.ones(shape)},
            "prompt": {"group": torch.tensor([5, 5, 9, 9])[:, None].expand(shape).clone()},
            "window": {"index": torch.arange(windows).expand(shape).clone()},
            "score": {name: torch.rand(*shape, 1) for name in "ab"},
        },
        batch_size=shape,
    )
    return Monitors()(data)


def test_each_window_has_its_own_groups():
    assert groups_of(batch(2)).tolist() == [0, 1, 0, 1, 2, 3, 2, 3]


@pytest.mark.parametrize("windows", [1, 2])
def test_only_what_can_be_had_is_logged(windows):
    metrics = monitor_metrics(batch(windows), ["a", "b"])
    assert ("monitor/drift" in metrics) == (windows > 1)
    assert "monitor/disagreement" not in monitor_metrics(batch(windows), ["a"])
    assert all(math.isfinite(value) for value in metrics.values())
