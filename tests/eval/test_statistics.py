import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from astrolabe_eval import bootstrap_interval, paired_interval

METHODS = pytest.mark.parametrize("method", ["bca", "percentile"])


@METHODS
def test_interval_of_gaussian_data_is_the_analytic_one(method):
    samples = np.random.default_rng(1).normal(2.0, 3.0, size=400)
    low, high = bootstrap_interval(samples, method=method)
    half = 1.959964 * samples.std() / np.sqrt(len(samples))
    assert low == pytest.approx(samples.mean() - half, abs=0.05 * half)
    assert high == pytest.approx(samples.mean() + half, abs=0.05 * half)


@METHODS
def test_intervals_contain_the_true_mean_as_often_as_they_say(method):
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        low, high = bootstrap_interval(
            generator.normal(0.5, 1.0, size=64), method=method, resamples=1000
        )
        hits += low <= 0.5 <= high
    # 285 expected; five standard deviations of a binomial are 19.
    assert 266 <= hits <= 300


def test_bca_agrees_with_scipy_on_skewed_data():
    samples = np.random.default_rng(2).exponential(size=30) ** 1.5
    ours = bootstrap_interval(samples, method="bca", resamples=40_000)
    theirs = stats.bootstrap(
        (samples,), np.mean, n_resamples=40_000, method="BCa", rng=np.random.default_rng(5)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.02 * width)
    # The correction moves both ends to the side of the long tail.
    plain = bootstrap_interval(samples, method="percentile", resamples=40_000)
    assert ours[0] > plain[0] + 0.02 * width
    assert ours[1] > plain[1] + 0.02 * width


@pytest.mark.parametrize("method", ["subset", "bca", "percentile"])
@pytest.mark.parametrize("count", [2, 5, 40])
def test_a_constant_difference_says_nothing_of_its_spread(method, count):
    before = np.random.default_rng(0).normal(size=count).round(2) / 4
    # In binary the sums differ in their last bits.
    assert paired_interval(before, before + 0.1, method=method) == (-math.inf, math.inf)


def test_the_sign_is_after_minus_before():
    generator = np.random.default_rng(3)
    before = generator.normal(size=50)
    after = before + 1 + 0.1 * generator.normal(size=50)
    low, high = paired_interval(before, after)
    assert 0.9 < low < high < 1.1
    mirrored = paired_interval(after, before)
    assert mirrored == pytest.approx((-high, -low), abs=0.01)


def test_pairing_by_order_is_what_makes_the_interval_narrow():
    generator = np.random.default_rng(4)
    before = generator.normal(0, 10, size=64)
    after = before + 0.5 + 0.1 * generator.normal(size=64)
    low, high = paired_interval(before, after)
    assert high - low < 0.1
    low, high = paired_interval(before, generator.permutation(after))
    assert high - low > 2


@METHODS
@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20))
def test_interval_lies_within_the_data_and_is_seeded(method, values):
    low, high = bootstrap_interval(values, method=method, resamples=200)
    slack = 1e-9 * (1 + max(map(abs, values)))
    within = min(values) - slack <= low <= high <= max(values) + slack
    assert within or (low, high) == (-math.inf, math.inf)
    assert bootstrap_interval(values, method=method, resamples=200) == (low, high)


def test_large_samples_are_drawn_in_parts_without_changing_the_answer(monkeypatch):
    samples = np.random.default_rng(6).normal(size=50)
    for method, module in (("bca", "statistics"), ("subset", "subsets")):
        whole = bootstrap_interval(samples, method=method, resamples=4000)
        monkeypatch.setattr(f"astrolabe_eval.{module}._DRAW", 50 * 7)
        in_parts = bootstrap_interval(samples, method=method, resamples=4000)
        assert in_parts == pytest.approx(whole, abs=0.02)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([1.0], {}, "at least 2 samples"),
        ([[1.0, 2.0]], {}, r"\(1, 2\)"),
        ([1.0, float("nan")], {}, "Sample 1 is nan"),
        ([1.0, 2.0], {"level": 95}, "level is 95"),
        ([1.0, 2.0], {"method": "magic"}, "'magic'"),
        ([1.0, 2.0], {"prompts": ["a"]}, "2 samples have 1 prompts"),
    ],
)
def test_unusable_samples_and_options_are_refused(values, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, **options)


def test_pairs_of_different_length_are_refused():
    with pytest.raises(ValueError, match="same order"):
        paired_interval([1.0, 2.0], [1.0, 2.0, 3.0])
