import numpy as np
import pytest

from astrolabe_eval import Evaluation, Suite, compare, paired_interval, verdict

SUITE = Suite("demo", ("a", "b", "c", "d"))


def _evaluation(total, suite=SUITE, **judges):
    row = np.asarray(total, dtype=np.float64)
    return Evaluation(
        suite=suite,
        rewards={"half": row / 2, "total": row},
        judges={name: np.asarray(values, dtype=np.float64) for name, values in judges.items()},
    )


def test_each_score_has_means_difference_and_interval_of_its_pairs():
    before, after = [1.0, 2.0, 3.0, 4.0], [1.5, 2.25, 4.0, 4.0]
    result = compare(
        _evaluation(before, check=[0, 0, 1, 1]), _evaluation(after, check=[1, 1, 1, 0])
    )
    assert result["rewards"]["total"] == {
        "before": 2.5,
        "after": 2.9375,
        "difference": 0.4375,
        "interval": list(paired_interval(before, after)),
    }
    assert list(result["rewards"]) == ["total", "half"]
    assert result["judges"]["check"]["difference"] == 0.25
    assert result["prompts"] == 4


def test_samples_keep_prompt_seed_and_scores_together():
    result = compare(_evaluation([1, 2, 3, 4]), _evaluation([5, 2, 3, 4]))
    assert result["samples"][0] == {
        "prompt": "a",
        "seed": SUITE.seeds[0],
        "before": {"total": 1.0, "half": 0.5},
        "after": {"total": 5.0, "half": 2.5},
        "difference": {"total": 4.0, "half": 2.0},
    }
    assert [sample["difference"]["total"] for sample in result["samples"]] == [4, 0, 0, 0]


def test_one_model_alone_has_no_change():
    result = compare(_evaluation([1, 2, 3, 6]))
    assert result["rewards"]["total"] == {
        "before": 3.0,
        "after": None,
        "difference": None,
        "interval": None,
    }
    assert result["paired"] is False
    assert result["samples"][1]["after"] is None


def test_one_prompt_has_a_difference_but_no_interval():
    suite = Suite("one", ("a",))
    change = compare(_evaluation([1], suite), _evaluation([3], suite))["rewards"]["total"]
    assert change["difference"] == 2
    assert change["interval"] is None
    assert verdict(change) == "no clear change"


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ([0.1, 0.2], "rose"),
        ([-0.2, -0.1], "fell"),
        ([-0.1, 0.2], "no clear change"),
        ([0.0, 0.2], "no clear change"),
    ],
)
def test_verdict_needs_zero_outside_the_interval(interval, expected):
    change = {"before": 0.0, "after": 0.1, "difference": 0.1, "interval": interval}
    assert verdict(change) == expected


def test_models_on_different_prompts_noise_or_scores_are_refused():
    before = _evaluation([1, 2, 3, 4])
    reordered = Suite(
        "demo", ("b", "a", "c", "d"), (SUITE.seeds[1], SUITE.seeds[0], *SUITE.seeds[2:])
    )
    other_noise = Suite("demo", SUITE.prompts, (1, 2, 3, 4))
    for suite in (reordered, other_noise):
        with pytest.raises(ValueError, match="same prompts and seeds"):
            compare(before, _evaluation([1, 2, 3, 4], suite))
    with pytest.raises(ValueError, match="judges of before"):
        compare(before, _evaluation([1, 2, 3, 4], check=[0, 0, 0, 0]))
