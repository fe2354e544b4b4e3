import base64
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from astrolabe_eval.agreement import agree, correlations, places
from astrolabe_eval.agreement_plots import agreement_map, rank_scatter
from astrolabe_eval.agreement_report import write_agreement
from astrolabe_eval.video_io import Video

HOSTILE = '<img src=x onerror="alert(1)"> & $x_1$'


def pair_of(scores, **options):
    (pair,) = agree(scores, resamples=options.pop("resamples", 50), **options)["pairs"]
    return pair


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=40))
def test_both_correlations_equal_those_of_scipy_ties_included(rows):
    first, second = np.array(rows, dtype=float).T
    pair = pair_of({"a": first, "b": second}, resamples=2)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert pair["spearman"] is pair["kendall"] is pair["spearman_interval"] is None
        return
    assert pair["spearman"] == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)
    assert pair["kendall"] == pytest.approx(stats.kendalltau(first, second).statistic, abs=1e-12)


def test_weights_count_a_video_as_often_as_they_say():
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 9, (2, 30)).astype(float)
    weights = generator.integers(0, 4, (5, 30)).astype(float)
    spearman, kendall = correlations(first, second, weights)
    for row, rho, tau in zip(weights.astype(int), spearman, kendall, strict=True):
        x, y = first.repeat(row), second.repeat(row)
        assert rho == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
        assert tau == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)


def test_large_sets_are_compared_in_parts(monkeypatch):
    first, second = np.random.default_rng(0).normal(size=(2, 40))
    whole = correlations(first, second, np.ones((1, 40)))
    monkeypatch.setattr("astrolabe_eval.agreement._DRAW", 100)
    np.testing.assert_allclose(correlations(first, second, np.ones((1, 40))), whole)
    assert pair_of({"a": first, "b": second})["videos"] == 40


def test_intervals_contain_the_true_correlation_as_often_as_they_say():
    generator = np.random.default_rng(0)
    strength = 0.5
    # Of a bivariate normal distribution (Kruskal 1958).
    rho, tau = 6 / np.pi * np.arcsin(strength / 2), 2 / np.pi * np.arcsin(strength)
    hits = np.zeros(2)
    for _ in range(150):
        x = generator.normal(size=60)
        y = strength * x + np.sqrt(1 - strength**2) * generator.normal(size=60)
        pair = pair_of({"a": x, "b": y}, resamples=300)
        for index, (name, true) in enumerate((("spearman", rho), ("kendall", tau))):
            low, high = pair[f"{name}_interval"]
            hits[index] += low <= true <= high
    # 142.5 expected; four standard deviations of a binomial are 11.
    assert (hits >= 131).all()


def test_a_unit_an_offset_and_any_rising_function_change_nothing():
    x, y = np.random.default_rng(1).normal(size=(2, 25))
    assert pair_of({"a": x, "b": y}) == pair_of({"a": 1e6 * x + 7, "b": np.exp(y)})


def test_the_same_seed_gives_the_same_intervals_and_another_others():
    x, y = np.random.default_rng(1).normal(size=(2, 25))
    first = pair_of({"a": x, "b": y}, seed=3)
    assert first == pair_of({"a": x, "b": y}, seed=3)
    assert first["spearman_interval"] != pair_of({"a": x, "b": y}, seed=4)["spearman_interval"]


def test_a_missing_score_leaves_the_video_out_of_that_pair_alone():
    a = np.arange(10.0)
    b = np.where(a == 3, np.nan, -a)
    result = agree({"a": a, "b": b, "c": a}, resamples=20)
    counts = {(pair["first"], pair["second"]): pair["videos"] for pair in result["pairs"]}
    assert counts == {("a", "b"): 9, ("a", "c"): 10, ("b", "c"): 9}
    assert 3 not in [entry["video"] for entry in agree({"a": a, "b": b}, disputed=99)["disputed"]]


def test_the_most_disputed_video_is_the_one_with_the_widest_gap():
    a = np.arange(12.0)
    b = a.copy()
    b[[2, 9]] = b[[9, 2]]
    result = agree({"a": a, "b": b, "flat": np.ones(12)}, disputed=3, resamples=20)
    first, second, third = result["disputed"]
    assert {first["video"], second["video"]} == {2, 9}
    assert first["gap"] == pytest.approx(7 / 11)
    assert (first["highest"], first["lowest"]) == ("b", "a")
    assert third["gap"] == 0
    assert "flat" not in first["places"]
    assert {entry["spearman"] for entry in result["pairs"][1:]} == {None}


def test_too_few_videos_have_a_correlation_without_interval(tmp_path):
    scores = {"a": [0.0, 1.0, 2.0, 3.0, 4.0], "b": [0.0, 2.0, 3.0, 5.0, 9.0]}
    pair = pair_of(scores)
    assert pair["spearman"] == pair["kendall"] == pytest.approx(1)
    assert pair["spearman_interval"] is pair["kendall_interval"] is None
    write_agreement(tmp_path, scores, list("vwxyz"))
    assert "5 independent prompts are too few" in (tmp_path / "agreement.html").read_text()


def test_a_perfect_order_of_few_videos_is_not_certainty():
    pair = pair_of({"a": np.arange(6), "b": np.arange(6) ** 2})
    for low, high in (pair["spearman_interval"], pair["kendall_interval"]):
        assert 0.3 < low < 0.8
        assert high == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("prompts", "seeds"), [(4, 8), (6, 1), (6, 8), (8, 1), (10, 4)])
def test_rewards_that_have_nothing_in_common_seldom_seem_to_agree(prompts, seeds):
    generator = np.random.default_rng(0)
    texts = [str(index) for index in range(prompts) for _ in range(seeds)]
    wrong = np.zeros(2)
    for _ in range(150):
        taste = generator.normal(size=(2, prompts)).repeat(seeds, axis=1)
        first, second = taste + 0.3 * generator.normal(size=taste.shape)
        (pair,) = agree({"a": first, "b": second}, prompts=texts, resamples=100)["pairs"]
        ends = [pair["spearman_interval"], pair["kendall_interval"]]
        wrong += [end is not None and (end[0] > 0 or end[1] < 0) for end in ends]
    assert (wrong <= 0.07 * 150).all()
    assert pair["prompts"] == prompts


def test_places_share_ties_and_end_at_one():
    assert places(np.array([5.0, 5.0, 1.0, 9.0])).tolist() == [0.5, 0.5, 0, 1]
    assert places(np.array([3.0])).tolist() == [0]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"a": [1, 2, 3]}, "two rewards or more"),
        ({"a": [1, 2, 3], "b": [1, 2]}, "one score for each video"),
        ({"a": [1, 2], "b": [1, 2]}, "Agreement over 2 videos means nothing"),
    ],
)
def test_what_cannot_be_compared_is_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        agree(scores)


@pytest.mark.parametrize("draw", [agreement_map, lambda _, pairs: rank_scatter({}, pairs)])
def test_a_figure_of_nothing_is_refused(draw):
    with pytest.raises(ValueError, match="no pairs to draw"):
        draw([], [])


@pytest.fixture
def report(tmp_path, moving_square):
    """A page about nine videos, one hostile by name, one without a score of the second reward."""

    def make(count=9, read=True, **options):
        generator = np.random.default_rng(0)
        a, c = generator.normal(size=(2, count))
        scores = {"a": a, "b$": -a, "c": c}
        scores["b$"][1] = np.nan
        content = write_agreement(
            tmp_path / "new",
            scores,
            [HOSTILE, *(f"{index}.mp4" for index in range(1, count))],
            prompts=[HOSTILE] * count,
            read=(lambda index: Video(moving_square(index), 4.0 + index)) if read else None,
            **options,
        )
        return content, (tmp_path / "new" / "agreement.html").read_text()

    return make


def test_the_page_loads_nothing_from_elsewhere_and_runs_nothing_of_a_prompt(report):
    _, page = report()
    sources = re.findall(r'(?:src|srcset|href|poster)="([^"]*)"', page)
    assert sources
    assert all(source.startswith("data:") for source in sources)
    assert "default-src 'none'" in page
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror" in page


def test_the_page_plays_the_disputed_videos_and_only_these(report, tmp_path):
    content, page = report()
    videos = re.findall(r'data-fps="([\d.]+)".*?src="data:video/mp4;base64,([^"]*)"', page, re.S)
    assert [float(fps) for fps, _ in videos] == [
        4.0 + entry["video"] for entry in content["disputed"]
    ]
    assert len(videos) == 8
    assert 1 not in [entry["video"] for entry in content["disputed"]]
    assert base64.b64decode(videos[0][1])[4:8] == b"ftyp"


def test_the_json_has_every_number_and_none_for_what_is_missing(report, tmp_path):
    content, _ = report(details={"folder": "videos"})
    stored = json.loads((tmp_path / "new" / "agreement.json").read_text())
    assert stored == content
    assert stored["samples"][1]["scores"]["b$"] is None
    assert stored["details"] == {"folder": "videos"}
    assert len(stored["pairs"]) == 3
    assert stored["pairs"][-1]["spearman"] == pytest.approx(-1)


def test_a_page_without_videos_names_them(report):
    content, page = report(read=False)
    assert "<video" not in page
    assert page.count("<meter") == 3 * len(content["disputed"])


def test_a_small_page_shows_fewer_videos(report):
    _, page = report(max_bytes=1)
    assert page.count("data:video/mp4") == 4


def test_names_that_do_not_pair_up_are_refused(tmp_path):
    with pytest.raises(ValueError, match="3 videos have 2 names"):
        write_agreement(tmp_path, {"a": [1, 2, 3], "b": [1, 2, 3]}, ["x", "y"])


def test_scores_that_differ_by_rounding_alone_have_no_order():
    constant = np.float32(0.35) + np.arange(20, dtype=np.float32) % 3 * np.float32(3e-8)
    other = np.arange(20.0)
    for scores in (constant, constant.astype(np.float64)):
        (pair,) = agree({"a": scores, "b": other})["pairs"]
        assert pair["spearman"] is None
        assert agree({"a": scores, "b": other})["disputed"] == []
    tied = np.arange(20) // 2 + constant  # ten pairs of equal scores
    (pair,) = agree({"a": tied, "b": np.arange(20) // 2})["pairs"]
    assert pair["spearman"] == 1.0
    (pair,) = agree({"a": 1e-6 * other, "b": other})["pairs"]  # small, and no rounding
    assert pair["spearman"] == pytest.approx(1.0)
