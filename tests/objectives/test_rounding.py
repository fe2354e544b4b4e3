"""What differs by rounding alone is equal, wherever scores are ranked or divided by a spread."""

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

from astrolabe_objectives import GroupAdvantage, RankDisagreement, group_statistics
from astrolabe_objectives.disagreement import rank_gap
from astrolabe_objectives.dpo import best_and_worst
from astrolabe_objectives.nft import implicit_errors
from astrolabe_objectives.rounding import rounding, tied

GROUPS = torch.tensor([0] * 4 + [1] * 4)


def steps(first, size, count=4):
    return [first + i * size for i in range(count)]


def make_batch(dtype=torch.float32, **scores):
    """Scores by name, and the reward ``total``, if any."""
    columns = {name: torch.tensor(values, dtype=dtype)[:, None] for name, values in scores.items()}
    batch = TensorDict(batch_size=[8])
    batch["prompt", "group"] = GROUPS
    if "total" in columns:
        batch["next", "reward"] = columns["total"]
    for name, values in columns.items():
        batch["score", name] = values
    return batch


def advantage(batch, **settings):
    return GroupAdvantage(**settings)(batch)["advantage"].squeeze(-1)


#: Two groups, each of one score but for the last digits of float32.
JITTER = steps(0.5, 6e-8) + steps(0.7, 6e-8)


@pytest.mark.parametrize("eps", [0.0, 1e-4])
@pytest.mark.parametrize("std", ["global", "group", "none"])
@pytest.mark.parametrize("mode", ["reward", "leave_one_out", "rank"])
@pytest.mark.parametrize("scale", [1e-6, 1.0, -1e6])
def test_rounding_gives_no_advantage(mode, std, eps, scale):
    batch = make_batch(total=[scale * value for value in JITTER])
    assert (advantage(batch, mode=mode, std=std, eps=eps) == 0).all()
    assert group_statistics(batch)["advantage/zero_std_fraction"] == 1.0
    assert group_statistics(batch)["advantage/group_std"] == 0.0


@pytest.mark.parametrize("eps", [0.0, 1e-4])
@pytest.mark.parametrize("std", ["global", "group"])
def test_rounding_of_every_reward_gives_no_advantage(std, eps):
    batch = make_batch(a=JITTER, b=[1 + value for value in JITTER])
    weights = {"a": 1.0, "b": 1.0}
    assert (advantage(batch, mode="per_reward", rewards=weights, std=std, eps=eps) == 0).all()


@pytest.mark.parametrize("std", ["global", "group"])
def test_what_is_left_of_rewards_that_cancel_gives_no_advantage(std):
    first = torch.rand(8, generator=torch.Generator().manual_seed(0))
    batch = make_batch(a=first.tolist(), b=(0.7 - 1.3 * first).tolist())
    weights = {"a": 1.0, "b": 1.0}
    assert (advantage(batch, mode="per_reward", rewards=weights, std=std, eps=0.0) == 0).all()


def test_rounding_of_one_reward_leaves_the_advantage_of_the_other():
    batch = make_batch(a=JITTER, b=[1.0, 2.0, 3.0, 4.0, 0.1, 0.2, 0.3, 0.4])
    weights = {"a": 5.0, "b": 1.0}
    found = advantage(batch, mode="per_reward", rewards=weights, std="group", eps=0.0)
    assert_close(found, torch.tensor([-3.0, -1.0, 1.0, 3.0] * 2) / 5**0.5)


@pytest.mark.parametrize("first", [0.01, 0.5, 1e6])
@pytest.mark.parametrize("mode", ["reward", "rank"])
def test_small_differences_that_are_none_of_rounding_count_in_full(first, mode):
    size = first * 2e-6  # 17 last places
    batch = make_batch(total=steps(first, size) + steps(2 * first, 2 * size))
    found = advantage(batch, mode=mode, std="group", eps=0.0)
    assert_close(found, torch.tensor([-3.0, -1.0, 1.0, 3.0] * 2) / 5**0.5, rtol=0.05, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_that_of_the_precision_in_which_scores_come(dtype):
    place = torch.finfo(dtype).eps / 2  # of numbers from 0.5 to 1
    batch = make_batch(dtype, total=[0.5, 0.5 + place] * 2 + [0.75, 0.75 - place] * 2)
    assert (batch["next", "reward"][0] != batch["next", "reward"][1]).all()
    for mode in ("reward", "rank"):
        assert (advantage(batch, mode=mode, std="group", eps=0.0) == 0).all()
    batch["next", "reward"] = batch["next", "reward"].float()
    assert (advantage(batch, std="group", eps=0.0).abs() > 0.9).all()


def test_each_reward_keeps_its_precision_beside_another():
    place = torch.finfo(torch.bfloat16).eps / 2
    batch = make_batch(b=[1.0, 2.0, 3.0, 4.0] * 2)
    batch["score", "a"] = torch.tensor([0.5, 0.5 + place] * 4, dtype=torch.bfloat16)[:, None]
    weights = {"a": 5.0, "b": 1.0}
    found = advantage(batch, mode="per_reward", rewards=weights, std="group", eps=0.0)
    assert_close(found, torch.tensor([-3.0, -1.0, 1.0, 3.0] * 2) / 5**0.5)
    batch["score", "b"] = torch.arange(8.0)[:, None]
    marks = RankDisagreement("b", ["a"])(batch)["kl", "selected"].squeeze(-1)
    assert marks.tolist() == [False] * 7 + [True]


def test_whole_numbers_have_no_rounding():
    batch = make_batch(torch.int64, total=[10**9, 10**9 + 1, 10**9 + 2, 10**9 + 3] * 2)
    found = advantage(batch, std="group", eps=0.0)
    assert_close(found, torch.tensor([-3.0, -1.0, 1.0, 3.0] * 2) / 5**0.5)


def test_ranks_are_shared_by_scores_that_differ_by_rounding():
    scores = torch.tensor([[1.0, 0.5], [2.0, 0.5 - 6e-8], [3.0, 0.5 - 1.2e-7], [3.0, 0.5 + 6e-8]])
    assert rank_gap(scores, torch.zeros(4)).tolist() == [-1.5, -0.5, 1.0, 1.0]


def test_clips_whose_advantages_differ_by_rounding_are_no_pair():
    values = torch.tensor([0.5, 0.5 + 6e-8, 1.0, 2.0])
    assert best_and_worst(values, torch.tensor([0, 0, 1, 1])).tolist() == [[3, 2]]


def test_an_adaptive_weight_does_not_grow_beyond_the_rounding_of_the_target():
    target = torch.tensor([[1e4, 1e4]])
    old = target + 2e-3  # two last places, where 8 may be rounding
    good, bad = implicit_errors(old, old, target, 1.0, adaptive_unit=torch.ones(1, 1))
    error = float((old - target)[0, 0])
    floor = 8 * torch.finfo(torch.float32).eps * 1e4
    assert 0 < error < floor
    assert float(good) == pytest.approx(error**2 / floor)
    assert float(bad) == pytest.approx(error**2 / floor)


@pytest.mark.parametrize(("scores", "expected"), [([], True), ([3.0], True), ([1.0, 1.1], False)])
def test_fewer_than_two_scores_are_tied(scores, expected):
    assert tied(torch.tensor(scores)) is expected


def test_rounding_grows_with_the_size_of_a_score():
    values = torch.tensor([0.0, -2.0, 2.0], dtype=torch.bfloat16)
    assert rounding(values).tolist() == [0.0, 0.03125, 0.03125]


def test_an_adaptive_weight_is_never_above_that_of_the_public_code():
    old = torch.full((1, 2), 2e-6)
    good, _ = implicit_errors(old, old, torch.zeros(1, 2), 1.0, adaptive_unit=torch.ones(1, 1))
    assert float(good) == pytest.approx(4e-12 / 1e-5)
