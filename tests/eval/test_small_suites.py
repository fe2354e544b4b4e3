"""Verdicts from few prompts: how often a change that is none is called one."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from astrolabe_eval import Evaluation, Suite, compare, verdict, write_report
from astrolabe_eval.comparison import compare_many
from astrolabe_eval.selection import choose
from astrolabe_eval.statistics import bootstrap_interval
from astrolabe_eval.subsets import least_prompts, student_quantile
from astrolabe_eval.win_rates import wilson_interval

#: Name to a sampler of numbers with mean 0.
LAWS = {
    "normal": lambda g, n: g.normal(size=n),
    "skewed": lambda g, n: g.exponential(size=n) - 1,
    "skewed the other way": lambda g, n: 1 - g.exponential(size=n),
    "heavy tails": lambda g, n: g.standard_t(3, size=n),
    "two values": lambda g, n: (g.random(n) < 0.5) - 0.5,
    "one in ten": lambda g, n: (g.random(n) < 0.1) - 0.1,
    "ties": lambda g, n: g.choice([-1.0, 0.0, 0.0, 0.0, 1.0], size=n),
    "rounded": lambda g, n: g.normal(size=n).round(),
}


def _total(prompts, values, **more):
    rewards = {"total": np.asarray(values, dtype=np.float64), **more}
    return Evaluation(suite=Suite("demo", tuple(prompts)), rewards=rewards)


@pytest.mark.parametrize("law", LAWS)
def test_no_change_is_seldom_called_one_whatever_the_number_of_prompts(law):
    generator = np.random.default_rng(0)
    for count in (2, 3, 4, 5, 6, 7, 8, 10, 14, 20):
        wrong = 0
        for seed in range(300):
            low, high = bootstrap_interval(LAWS[law](generator, count), resamples=1000, seed=seed)
            wrong += low > 0 or high < 0
        assert wrong <= 0.07 * 300, (count, wrong)


@pytest.mark.parametrize(
    "sizes",
    [
        [40] * 2,
        [32] * 4,
        [20] * 6,
        [3] * 10,
        [1, 2, 3, 4, 5, 6, 7, 8],
        [30, *[1] * 12],
        [4, 1] * 6,
        [4] * 5 + [3],
    ],
)
def test_more_seeds_of_a_prompt_make_no_verdict_bolder(sizes):
    generator = np.random.default_rng(1)
    prompts = [str(index) for index, size in enumerate(sizes) for _ in range(size)]
    wrong = 0
    for seed in range(200):
        taste = np.repeat(generator.normal(size=len(sizes)), sizes)
        moved = taste + generator.normal(size=len(prompts))
        low, high = bootstrap_interval(moved, prompts=prompts, resamples=1000, seed=seed)
        wrong += low > 0 or high < 0
    assert wrong <= 0.07 * 200


def test_a_real_change_is_seen_from_the_floor_on():
    generator = np.random.default_rng(2)
    for count, size, least in ((6, 4.0, 0.8), (12, 1.5, 0.9), (128, 0.4, 0.97)):
        seen = 0
        for seed in range(60):
            low, _ = bootstrap_interval(size + generator.normal(size=count), seed=seed)
            seen += low > 0
        assert seen >= least * 60


def test_of_many_prompts_the_interval_is_that_of_the_bootstrap():
    samples = np.random.default_rng(3).exponential(size=128)
    ours, theirs = (np.array(bootstrap_interval(samples, method=m)) for m in ("subset", "bca"))
    width = theirs[1] - theirs[0]
    assert np.abs(ours - theirs).max() < 0.06 * width
    assert ours[1] - ours[0] < 1.08 * width


@pytest.mark.parametrize("values", [[0, 0, 0, 0, 1], [0.1] * 5, [0, 1], [0.1] * 50])
def test_what_says_nothing_of_others_has_no_ends(values):
    assert bootstrap_interval(values) == (-math.inf, math.inf)


def test_the_floor_is_where_all_prompts_agreeing_is_rare_enough():
    for level in (0.9, 0.95, 0.99):
        least = least_prompts(level)
        assert 2 ** (1 - least) <= 1 - level < 2 ** (2 - least)
        assert math.isinf(bootstrap_interval(range(least - 1), level=level)[1])
        low, high = bootstrap_interval(range(least), level=level)
        assert low <= 0 < least - 1 <= high


def test_students_quantiles_are_those_of_the_tables():
    for freedom, quantile in ((4, 2.776), (5, 2.571), (10, 2.228), (30, 2.042), (120, 1.980)):
        assert student_quantile(0.975, freedom) == pytest.approx(quantile, rel=1e-3)


def test_a_share_of_wins_holds_its_level_for_few_trials():
    for count in range(1, 31):
        for share in (0.5, 0.2, 0.9):
            outside = sum(
                math.comb(count, wins) * share**wins * (1 - share) ** (count - wins)
                for wins in range(count + 1)
                if not (ends := wilson_interval(wins / count, count))[0] <= share <= ends[1]
            )
            assert outside <= 0.05


def test_too_few_prompts_give_no_verdict_and_every_format_says_how_many(tmp_path):
    prompts = [f"prompt {index}" for index in range(5) for _ in range(3)]
    before, after = _total(prompts, np.arange(15.0)), _total(prompts, np.arange(15.0) + 3)
    result = write_report(tmp_path, before, after)
    change = result["rewards"]["total"]
    assert (change["interval"], change["prompts"]) == (None, 5)
    assert verdict(change) == "no clear change"
    assert json.loads((tmp_path / "report.json").read_text())["rewards"]["total"]["prompts"] == 5
    page = (tmp_path / "report.html").read_text()
    assert "5 independent prompts are too few" in page
    assert '<td data-label="prompts">5</td>' in page
    assert "Over 15 videos of 5 prompts" in page
    assert "| prompts |" in (tmp_path / "report.md").read_text()
    assert "& 5 &" in (tmp_path / "report.tex").read_text()
    for name in ("report.md", "report.tex", "report.html"):
        assert "neither interval nor verdict" in (tmp_path / name).read_text()


def test_a_lost_sample_takes_no_verdict_away():
    prompts = [f"prompt {index}" for index in range(6) for _ in range(4)]
    generator = np.random.default_rng(5)
    moved = 3 + generator.normal(size=24)
    moved[7] = np.nan
    change = compare(_total(prompts, np.zeros(24)), _total(prompts, moved))["rewards"]["total"]
    assert (change["prompts"], change["unscored"], verdict(change)) == (6, 1, "rose")


def test_what_has_no_score_is_left_out_and_counted(tmp_path):
    prompts = [f"prompt {index}" for index in range(10)]
    moved = np.linspace(0.5, 1.5, 10)
    holes = np.where(np.arange(10) < 2, np.nan, moved)
    whole, part = (_total(prompts, row) for row in (np.zeros(10), holes))
    result = write_report(tmp_path, whole, part)
    known = _total(prompts[2:], np.zeros(8)), _total(prompts[2:], moved[2:])
    expected = compare(*known)["rewards"]["total"]
    assert result["rewards"]["total"] == {**expected, "unscored": 2}
    assert result["wins"]["total"]["prompts"] == result["wins"]["total"]["wins"] == 8
    assert not {0, 1} & {*result["best"], *result["worst"]}
    assert result["samples"][0]["difference"] == {"total": None}
    rows = (tmp_path / "report.csv").read_text().splitlines()
    assert rows[11].endswith(",")
    for name in ("report.md", "report.html"):
        assert "left out: total: 2 of 10" in (tmp_path / name).read_text()


def test_a_score_that_nothing_has_is_no_number_anywhere(tmp_path):
    prompts = [f"prompt {index}" for index in range(7)]
    nothing = np.full(7, np.nan)
    models = [_total(prompts, np.arange(7.0), part=nothing) for _ in range(3)]
    result = compare_many(models[0], {"one": models[1], "two": models[2]})
    change = result["rewards"]["part"]
    assert (change["before"], change["difference"], change["unscored"]) == (None, None, 7)
    assert result["wins"]["part"]["rate"] is None
    write_report(tmp_path, models[0], dict(zip("ab", models[1:], strict=True)))
    assert "n/a" in (tmp_path / "report.md").read_text()
    write_report(tmp_path, models[0], _total(prompts, nothing, part=nothing))
    page = (tmp_path / "report.html").read_text()
    assert ">nan<" not in page
    assert "NaN" not in (tmp_path / "report.json").read_text()
    assert "nan" not in (tmp_path / "report.csv").read_text()
    assert "No verdict: no sample has this score." in page


def test_rounding_is_no_change():
    prompts = [f"prompt {index}" for index in range(20)]
    generator = np.random.default_rng(4)
    before = generator.normal(3, 1, size=20)
    noise = 1e-7 * (1 + generator.random(20))  # all of one sign
    result = compare(_total(prompts, before), _total(prompts, before * (1 + noise)))
    assert verdict(result["rewards"]["total"]) == "no clear change"
    assert result["rewards"]["total"]["difference"] == 0
    assert result["wins"]["total"]["ties"] == 20
    shifted = compare(_total(prompts, before), _total(prompts, before * (1 + noise) + 0.5))
    assert shifted["rewards"]["total"]["interval"] is None
    flat = compare(_total(prompts, 1 + noise), _total(prompts, 2 + before))
    assert flat["normalised"]["total"]["unit"] is None


def test_few_scored_samples_are_neither_best_and_worst_at_once_nor_counted_as_all(tmp_path):
    prompts = [f"prompt {index}" for index in range(40)]
    moved = np.where(np.arange(40) < 37, np.nan, np.arange(40.0))
    models = [
        replace(_total(prompts, row), videos=[np.zeros((2, 3, 16, 16), np.uint8)] * 40)
        for row in (np.zeros(40), moved)
    ]
    result = write_report(tmp_path, *models)
    page = (tmp_path / "report.html").read_text()
    assert "3 of 3 videos got a higher total reward" in page
    assert "Best and worst prompts" not in page
    _, most, least = choose(result, extremes=3, random=9)
    assert (most.indices, least.indices) == ((39,), (37,))
    nothing = compare(models[0], replace(models[1], rewards={"total": np.full(40, np.nan)}))
    assert [choice.title for choice in choose(nothing, 3, 9)] == ["A random sample"]


def test_a_sample_that_one_model_has_an_infinite_score_of_is_won_by_none():
    prompts = [f"prompt {index}" for index in range(8)]
    endless = np.where(np.arange(8) == 0, np.inf, 1.0)
    result = compare(_total(prompts, np.zeros(8)), _total(prompts, endless))
    assert result["wins"]["total"]["wins"] == 7
    assert result["rewards"]["total"]["unscored"] == 1


def test_white_space_and_case_make_no_other_prompt(tmp_path):
    prompts = ("a cat", "a cat ", "A cat", "a  cat", "a cat\t", "A CAT", "a dog", "A dog")
    before, after = _total(prompts, np.zeros(8)), _total(prompts, np.arange(1.0, 9.0))
    compared = write_report(tmp_path, before, after)
    assert compared["distinct_prompts"] == 2
    assert compared["rewards"]["total"]["interval"] is None
    assert "8 videos of 2 prompts" in (tmp_path / "report.html").read_text()


def test_videos_that_gained_are_counted_as_videos_and_unscored_ones_are_not(tmp_path):
    prompts = tuple(f"{number // 2}" for number in range(14))
    change = np.array([1.0, -1.0] * 6 + [2.0, np.nan])
    write_report(tmp_path, _total(prompts, np.zeros(14)), _total(prompts, change))
    assert "7 of 13 videos got a higher total reward" in (tmp_path / "report.html").read_text()
