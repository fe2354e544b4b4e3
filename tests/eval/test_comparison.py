import json
from dataclasses import replace

import numpy as np
import pytest

from astrolabe_eval import Evaluation, Suite, SuiteError, compare, paired_interval, verdict
from astrolabe_eval.comparison import compare_many
from astrolabe_eval.grouping import effective_count, per_prompt
from astrolabe_eval.pairing import keep_shared
from astrolabe_eval.win_rates import wilson_interval, win_rate

SUITE = Suite("demo", ("a", "b", "c", "d"))
EIGHT = Suite("demo", tuple("abcdefgh"))


def _evaluation(total, suite=SUITE, **judges):
    row = np.asarray(total, dtype=np.float64)
    return Evaluation(
        suite=suite,
        rewards={"half": row / 2, "total": row},
        judges={name: np.asarray(values, dtype=np.float64) for name, values in judges.items()},
    )


def test_each_score_has_means_difference_and_interval_of_its_pairs():
    before, after = np.arange(8.0), np.add(np.arange(8.0), [0.5, 0.25, 1, 0, 1, 0.5, 0.25, 0])
    result = compare(
        _evaluation(before, EIGHT, check=[0] * 8), _evaluation(after, EIGHT, check=[1, 1] + [0] * 6)
    )
    assert result["rewards"]["total"] == {
        "before": 3.5,
        "after": 3.9375,
        "difference": 0.4375,
        "interval": list(paired_interval(before, after)),
        "prompts": 8,
        "unscored": 0,
    }
    assert list(result["rewards"]) == ["total", "half"]
    assert result["judges"]["check"]["difference"] == 0.25
    assert result["prompts"] == 8


def test_samples_keep_prompt_seed_and_scores_together():
    result = compare(_evaluation([1, 2, 3, 4]), _evaluation([5, 2, 3, 4]))
    assert result["samples"][0] == {
        "prompt": "a",
        "seed": SUITE.seeds[0],
        "before": {"total": 1.0, "half": 0.5},
        "after": {"total": 5.0, "half": 2.5},
        "difference": {"total": 4.0, "half": 2.0},
        "checkpoints": {},
    }
    assert [sample["difference"]["total"] for sample in result["samples"]] == [4, 0, 0, 0]


def test_one_model_alone_has_no_change():
    result = compare(_evaluation([1, 2, 3, 6]))
    assert result["rewards"]["total"] == {
        "before": 3.0,
        "after": None,
        "difference": None,
        "interval": None,
        "prompts": 4,
        "unscored": 0,
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
    for suite, differs in (
        (reordered, "2 samples stand elsewhere"),
        (other_noise, "4 seeds of the same prompts are only in before, 4 only in after"),
        (
            Suite("demo", ("a", "b", "x", "y")),
            r"2 prompts are only in before, 2 only in after. First, sample 2: 'c' \(seed 1000002\) "
            r"in before and 'x' \(seed 1000002\) in after. Generate both with one suite",
        ),
        (
            Suite("demo", SUITE.prompts[:3]),
            "1 prompts are only in before, 0 only in after. .* and nothing in after",
        ),
    ):
        other = _evaluation(range(len(suite)), suite)
        with pytest.raises(SuiteError, match=f"same prompts and seeds.*{differs}"):
            compare(before, other)
        with pytest.raises(SuiteError, match=r"step 5 .*same prompts and seeds"):
            compare_many(before, {"step 5": other})
    with pytest.raises(SuiteError, match=r"judges of before.*\['check'\] only in 'after'"):
        compare(before, _evaluation([1, 2, 3, 4], check=[0, 0, 0, 0]))


def test_wins_count_ties_half_and_come_with_wilsons_interval():
    wins = compare(_evaluation([1, 2, 3, 4]), _evaluation([2, 3, 3, 1]))["wins"]["total"]
    assert (wins["wins"], wins["ties"], wins["losses"], wins["rate"]) == (2, 1, 1, 0.625)
    assert wins["interval"] == list(wilson_interval(0.625, 4))


def test_wilsons_interval_is_that_of_the_literature():
    # Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I, methods 3
    # and 4.
    for count, wins, plain, corrected in (
        (263, 81, (0.2553, 0.3662), (0.2535, 0.3682)),
        (148, 15, (0.0624, 0.1605), (0.0598, 0.1644)),
        (20, 0, (0.0, 0.1611), (0.0, 0.2005)),
        (29, 1, (0.0061, 0.1718), (0.0018, 0.1963)),
    ):
        share = wins / count
        assert wilson_interval(share, count, continuity=False) == pytest.approx(plain, abs=6e-5)
        assert wilson_interval(share, count) == pytest.approx(corrected, abs=6e-5)


def test_a_perfect_record_is_not_certainty():
    low, high = win_rate([1.0] * 10, [str(index) for index in range(10)])["interval"]
    assert 0.6 < low < 0.8
    assert high == 1


def test_changes_are_given_in_units_of_the_base_or_in_those_asked_for():
    before = _evaluation([1, 2, 3, 6] * 2, EIGHT)
    after = _evaluation([2, 4, 3, 6] * 2, EIGHT)
    result = compare(before, after, units={"half": 0.25})
    unit = np.std([1, 2, 3, 6] * 2, ddof=1)
    low, high = result["rewards"]["total"]["interval"]
    assert result["normalised"]["total"] == {
        "unit": pytest.approx(unit),
        "given": False,
        "difference": pytest.approx(0.75 / unit),
        "interval": pytest.approx([low / unit, high / unit]),
    }
    assert result["normalised"]["half"]["unit"] == 0.25
    assert result["normalised"]["half"]["difference"] == 1.5
    assert result["normalised"]["half"]["given"] is True
    for units, message in (({"none": 1.0}, "the scores are"), ({"half": 0.0}, "above 0")):
        with pytest.raises(ValueError, match=message):
            compare(before, after, units=units)


def test_a_score_without_spread_has_no_unit():
    result = compare(_evaluation([1, 2, 3, 4], check=[1] * 4), _evaluation([1] * 4, check=[2] * 4))
    assert result["normalised"]["check"]["unit"] is None
    assert result["normalised"]["check"]["difference"] is None
    assert result["judges"]["check"]["difference"] == 1


def test_best_and_worst_prompts_are_named_by_the_change_of_the_total():
    result = compare(_evaluation([0, 0, 0, 0]), _evaluation([1, -3, 2, 0]))
    assert result["best"] == [2, 0, 3, 1]
    assert result["worst"] == [1, 3, 0, 2]


def test_several_checkpoints_are_each_what_two_models_alone_would_be():
    base, first, last = (_evaluation(row) for row in ([1, 2, 3, 4], [2, 2, 4, 4], [0, 5, 4, 6]))
    result = compare_many(base, {"step 10": first, "step 20": last}, units={"half": 2.0})
    for label, other in (("step 10", first), ("step 20", last)):
        alone = compare(base, other, units={"half": 2.0})
        for part in ("rewards", "judges", "wins", "normalised", "best", "worst"):
            assert result["checkpoints"][label][part] == alone[part]
    assert result["rewards"] == result["checkpoints"]["step 20"]["rewards"]
    assert result["labels"] == ["base", "step 10", "step 20"]
    assert result["samples"][1]["checkpoints"] == {
        "step 10": {"total": 2.0, "half": 1.0},
        "step 20": {"total": 5.0, "half": 2.5},
    }
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_checkpoints_need_labels_of_their_own():
    base = _evaluation([1, 2, 3, 4])
    with pytest.raises(ValueError, match="at least one"):
        compare_many(base, {})
    with pytest.raises(ValueError, match="Two models are called 'base'"):
        compare_many(base, {"base": base})


def test_held_out_are_judges_and_what_no_checkpoint_was_trained_on():
    base = _evaluation([1, 2, 3, 4], check=[0, 0, 0, 1])
    watched = replace(base, held_out=("half",))
    assert compare(base)["held_out"] == ["check"]
    assert compare(base, watched)["held_out"] == ["half", "check"]
    assert compare_many(base, {"a": watched, "b": base})["held_out"] == ["check"]
    for name in ("total", "check", "none"):
        with pytest.raises(ValueError, match="held_out names"):
            replace(base, held_out=(name,))


def test_an_unfinished_evaluation_makes_a_partial_comparison():
    base = _evaluation([1, 2, 3, 4])
    result = compare(base, replace(base, missing={"e-0.mp4": "cut short"}))
    assert result["partial"] is True
    assert result["missing"] == {"after": {"e-0.mp4": "cut short"}}
    assert compare(base, base)["partial"] is False


def test_seeds_of_one_prompt_are_resampled_together():
    suite = Suite("demo", tuple(prompt for prompt in "abcdefgh" for _ in range(3)))
    of_prompts = [0.0, 1.0, 2.0, 5.0, 1.5, 3.0, 2.5, 4.0]
    change = np.repeat(of_prompts, 3)
    result = compare(_evaluation(np.zeros(24), suite), _evaluation(change, suite))
    whole = result["rewards"]["total"]["interval"]
    assert whole == pytest.approx(paired_interval(np.zeros(8), of_prompts))
    low, high = paired_interval(np.zeros(24), change)
    assert whole[1] - whole[0] > 1.5 * (high - low)
    assert result["wins"]["total"]["interval"] == list(wilson_interval(15 / 16, 8))
    assert (result["prompts"], result["distinct_prompts"]) == (24, 8)
    assert result["rewards"]["total"]["prompts"] == result["wins"]["total"]["prompts"] == 8


def test_one_prompt_with_many_seeds_has_no_interval():
    suite = Suite("demo", ("a",) * 4)
    change = compare(_evaluation([1, 2, 3, 4], suite), _evaluation([2, 3, 4, 4], suite))
    assert change["rewards"]["total"]["interval"] is None


def test_prompts_with_unequal_numbers_of_seeds_keep_the_mean_and_its_spread():
    generator = np.random.default_rng(0)
    counts = generator.integers(1, 6, size=400)
    prompts = [str(index) for index, count in enumerate(counts) for _ in range(count)]
    values = np.repeat(generator.normal(size=400), counts) + 0.1 * generator.normal(
        size=len(prompts)
    )
    grouped = per_prompt(values, prompts)
    assert grouped.mean() == pytest.approx(values.mean())
    # The same by brute force: draw whole prompts and take the mean of all that they bring.
    members = np.split(values, np.cumsum(counts)[:-1])
    picks = generator.integers(400, size=(2000, 400))
    means = [np.concatenate([members[index] for index in pick]).mean() for pick in picks]
    assert grouped.std() / 20 == pytest.approx(np.std(means), rel=0.06)
    assert effective_count(prompts) < 400


def test_only_shared_samples_are_kept_and_the_rest_is_listed(moving_square):
    videos = [moving_square(index) for index in range(4)]
    whole = replace(_evaluation([1, 2, 3, 4], check=[5, 6, 7, 8]), videos=videos)
    suite = Suite("demo", ("d", "b"), (SUITE.seeds[3], SUITE.seeds[1]))
    part = replace(_evaluation([9, 8], suite, check=[1, 1]), missing={"a": "cut short"})
    with pytest.raises(SuiteError, match="keep_shared keeps"):
        compare(whole, part)
    kept = keep_shared({"before": whole, "after": part})
    assert kept["before"].suite.prompts == kept["after"].suite.prompts == ("b", "d")
    assert list(kept["before"].rewards["total"]) == [2, 4]
    assert list(kept["after"].rewards["total"]) == [8, 9]
    assert (kept["before"].videos[1] == videos[3]).all()
    assert [len(kept["before"].videos[:1]), len(kept["after"].videos)] == [1, 0]
    result = compare(kept["before"], kept["after"])
    assert result["partial"] is True
    assert result["missing"]["after"]["a"] == "cut short"
    assert result["missing"]["before"] == {
        f"'a' (seed {SUITE.seeds[0]})": "not in 'after'",
        f"'c' (seed {SUITE.seeds[2]})": "not in 'after'",
    }


def test_samples_that_cannot_be_told_apart_or_are_not_shared_are_refused():
    one = _evaluation([1, 2], Suite("demo", ("a", "a"), (7, 7)))
    with pytest.raises(SuiteError, match="'a' with seed 7 twice"):
        keep_shared({"one": one})
    first, second = (_evaluation([1], Suite("demo", ("a",), (seed,))) for seed in (1, 2))
    with pytest.raises(SuiteError, match="in common"):
        keep_shared({"first": first, "second": second})
