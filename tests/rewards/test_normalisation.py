"""Normalised scores: rounding is no signal, and running moments keep their precision."""

import pytest
import torch
from tensordict import TensorDict

from astrolabe_rewards import CompositeReward, normalisation
from astrolabe_rewards.normalisation import merged
from astrolabe_rewards.rounding import as_came, rounding

VALID = torch.ones(8, 1, dtype=torch.bool)
GROUPS = torch.tensor([0] * 4 + [1] * 4)
#: Two groups, each of one score but for the last digits of float32.
JITTER = torch.tensor([0.5 + i * 6e-8 for i in range(4)] + [0.7 + i * 6e-8 for i in range(4)])


def by_group(scores, groups, valid):
    return normalisation.by_group(scores, groups, valid, rounding(scores, scores.dtype))[0]


def by_moments(scores, moments):
    return normalisation.by_moments(scores, moments, rounding(scores, scores.dtype))[0]


def standardised(scores, mean, std):
    return normalisation.standardised(scores, mean, std, rounding(scores, scores.dtype))[0]


@pytest.mark.parametrize("scale", [1e-6, 1.0, -1e6])
def test_a_group_whose_scores_differ_by_rounding_is_0(scale):
    assert JITTER.unique().numel() > 4
    scores = scale * JITTER[:, None]
    assert (by_group(scores, GROUPS, VALID) == 0).all()
    scores[:4] *= torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None]
    normal = by_group(1e6 * scores / scale, GROUPS, VALID).flatten()
    assert normal[:4].sign().tolist() == [-1, -1, 1, 1]
    assert (normal[4:] == 0).all()


def test_an_invalid_score_is_no_tie_breaker():
    scores = JITTER.clone()[:, None]
    scores[0], scores[4] = torch.nan, 1e9
    valid = VALID.clone()
    valid[[0, 4]] = False
    assert (by_group(scores, GROUPS, valid) == 0).all()


def test_small_differences_that_are_none_of_rounding_count_in_full():
    scores = torch.tensor([1e6, 1e6 + 2, 1e6 + 4, 1e6 + 6] * 2)[:, None]
    expected = torch.tensor([-3.0, -1.0, 1.0, 3.0] * 2)[:, None] / 5**0.5
    torch.testing.assert_close(by_group(scores, GROUPS, VALID), expected)


@pytest.mark.parametrize("scale", [1.0, -1e6])
def test_running_moments_of_one_score_give_0(scale):
    scores = scale * JITTER[:4, None]
    moments = merged(torch.zeros(3, dtype=torch.float64), scores.flatten())
    assert (by_moments(scores, moments) == 0).all()
    beyond = by_moments(scores + 1000 * abs(scale), moments)
    assert (beyond > 0).all()


def test_a_score_at_the_given_mean_but_for_rounding_is_0():
    scores = torch.tensor([[0.7], [0.7 + 1.2e-7], [0.75], [torch.nan]])
    normal = standardised(scores, 0.7, 0.1).flatten()
    assert normal[:2].tolist() == [0.0, 0.0]
    assert float(normal[2]) == pytest.approx(0.5, rel=1e-5)
    assert normal[3].isnan()


def test_rounding_is_that_of_the_precision_in_which_scores_come():
    ones = torch.ones(())
    assert float(rounding(ones, torch.bfloat16)) == 2 * 2**-7
    assert float(rounding(ones, torch.float32)) == 8 * 2**-23


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scores_are_found_again_in_the_precision_in_which_they_came(dtype):
    scores = torch.tensor([0.3, -7.0, torch.nan]).to(dtype)
    found = as_came(scores.float(), rounding(scores, dtype).float())
    assert found.dtype == dtype
    assert found[:2].equal(scores[:2])


def scorer(batch):
    return batch.set(("score", "given"), batch["given"])


def composite():
    return CompositeReward({"given": (scorer, 1.0)}, normalise="running")


def batch(values):
    pixels = torch.zeros(len(values), 1, 3, 2, 2, dtype=torch.uint8)
    data = {"given": values[:, None], "video": {"pixels": pixels}}
    return TensorDict(data, batch_size=[len(values)])


CASTS = {
    "bfloat16": lambda module: module.bfloat16(),
    "half": lambda module: module.half(),
    "float": lambda module: module.float(),
    "to": lambda module: module.to(torch.bfloat16),
    "device and dtype": lambda module: module.to("cpu", torch.float16),
    "inside another": lambda module: torch.nn.ModuleList([module]).to(torch.bfloat16)[0],
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
def test_running_moments_keep_their_precision_through_any_cast(cast):
    plain, other = composite(), composite()
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        values = 100 + 0.01 * torch.randn(300, generator=generator)
        expected = plain(batch(values))["next", "reward"]
        assert cast(other)(batch(values))["next", "reward"].equal(expected)
    assert other.moments.dtype == torch.float64
    assert other.moments.equal(plain.moments)
    assert float(other.moments[0, 0]) == 900
    restored = composite().bfloat16()
    restored.load_state_dict(other.state_dict())
    assert restored.moments.equal(plain.moments)


def test_a_state_of_less_precision_that_is_put_in_place_is_gone_on_with_in_full():
    module = composite()
    module.load_state_dict({"moments": torch.zeros(1, 3, dtype=torch.bfloat16)}, assign=True)
    values = torch.full((1001,), 100.25)
    module(batch(values))
    assert module.moments.tolist() == [[1001, 100.25, 0]]


def test_a_long_mean_is_that_of_all_values():
    moments = torch.zeros(3, dtype=torch.float64)
    values = torch.rand(200, 50, generator=torch.Generator().manual_seed(0)) + 1000
    for part in values:
        moments = merged(moments, part)
    assert float(moments[1]) == pytest.approx(float(values.double().mean()), rel=1e-12)
    std = (moments[2] / moments[0]).sqrt()
    assert float(std) == pytest.approx(float(values.double().std(correction=0)), rel=1e-9)


def test_a_mean_between_two_numbers_of_float32_is_subtracted_as_it_is():
    scores = torch.tensor([[1e5 - 2], [1e5 + 1], [1e5 + 3]])
    mean = 1e5 + 0.003  # float32 has steps of 0.008 there
    found = standardised(scores, mean, 2.0)
    expected = torch.tensor([[-1.0015], [0.4985], [1.4985]])
    assert found.dtype == scores.dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
