import json
from pathlib import Path

import pytest

from astrolabe_eval.vbench import (
    DIMENSIONS,
    QUALITY,
    SEMANTIC,
    VBenchError,
    read_results,
    totals,
)
from astrolabe_eval.vbench_tables import totals_latex, totals_markdown

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden/vbench/final_score_golden.json").read_text()
)
CASES = {case["case"]: case for case in GOLDEN["cases"]}
MISSING = "missing_dimensions_become_zero"


def _write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))


def _entry(score, video="/v/a-0.mp4"):
    return [score, [{"video_path": video, "video_results": score}]]


def test_constants_are_those_of_the_leaderboard():
    constants = GOLDEN["constants"]
    assert list(QUALITY) == constants["quality"]
    assert list(SEMANTIC) == constants["semantic"]
    for name, (low, high, weight) in DIMENSIONS.items():
        assert [low, high] == constants["normalize"][name]
        assert weight == constants["weight"][name]


@pytest.mark.parametrize("case", [name for name in CASES if name != MISSING])
def test_totals_equal_those_of_vbench_from_its_own_files(tmp_path, case):
    expected = CASES[case]
    _write(tmp_path, expected["files"])
    found = read_results(tmp_path)
    assert found.scores == {
        name.replace(" ", "_"): score for name, score in expected["upload"].items()
    }
    result = totals(found.scores)
    for name, value in expected["normalised_times_weight"].items():
        key = name.replace(" ", "_")
        assert result.normalised[key] * DIMENSIONS[key].weight == pytest.approx(value, abs=1e-12)
    for name in ("quality", "semantic", "total"):
        assert getattr(result, name) == pytest.approx(expected[name], abs=1e-12)
    assert not result.partial


def test_it_is_known_which_file_gave_a_dimension(tmp_path):
    _write(tmp_path, CASES["subfolders"]["files"])
    sources = read_results(tmp_path).sources
    assert len(sources) == 16
    assert sources["scene"] == tmp_path / "sub0" / "scene_eval_results.json"


def test_missing_dimensions_are_named_and_give_no_total(tmp_path):
    expected = CASES[MISSING]
    _write(tmp_path, expected["files"])
    scores = dict(read_results(tmp_path).scores)
    result = totals(scores)
    absent = ("subject_consistency", "dynamic_degree", "multiple_objects", "scene")
    assert result.missing == absent
    assert result.partial
    assert (result.quality, result.semantic, result.total) == (None, None, None)
    # Five dimensions of weight 1 are there.
    present = [result.normalised[name] for name in QUALITY if name in scores]
    assert result.quality_present == pytest.approx(sum(present) / 5)
    # With the zeros written out the formula is the public one.
    zeros = totals(scores | dict.fromkeys(absent, 0.0))
    for name in ("quality", "semantic", "total"):
        assert getattr(zeros, name) == pytest.approx(expected[name], abs=1e-12)


def test_one_whole_group_gives_its_score_without_a_total():
    result = totals(dict.fromkeys(QUALITY, 0.9))
    assert result.quality == result.quality_present
    assert result.semantic_present is None
    assert result.total is None


def test_equal_results_may_lie_in_two_files_but_not_different_ones(tmp_path):
    _write(tmp_path, {"a_eval_results.json": {"color": _entry(0.5)}})
    _write(tmp_path, {"old/b_eval_results.json": {"color": _entry(0.5)}})
    assert read_results(tmp_path).scores == {"color": 0.5}
    _write(tmp_path, {"old/b_eval_results.json": {"color": _entry(0.6)}})
    with pytest.raises(VBenchError, match=r"a_eval_results.*b_eval_results.*color"):
        read_results(tmp_path)
    # The same file named twice is no conflict.
    one = tmp_path / "a_eval_results.json"
    assert read_results([one, one]).scores == {"color": 0.5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"color": [0.5, [', r"bad_eval.*damaged"),
        ("[]", "no dimensions"),
        ("{}", "no dimensions"),
        ('{"Human_Anatomy": [0.5, []]}', "VBench-2.0"),
        ('{"color": 0.5, "scene": [0.5, []]}', "another version"),
        ('{"colour": 0.5}', "no dimension"),
        ('{"color": 0.5, "scene": 20.5}', "cannot be told"),
        ('{"color": 166.0}', "above 100 %"),
        ('{"color": null}', "no number"),
        ('{"color": 0.5, "Color": 0.5}', "twice"),
        ('{"color": [0.5]}', "another version"),
        ('{"color": [NaN, []]}', "no video was found"),
        ('{"color": [null, []]}', "no video was found"),
        ('{"color": [true, []]}', "no video was found"),
        ('{"imaging_quality": [69.87, []]}', "in percent"),
    ],
)
def test_damaged_and_foreign_files_are_named(tmp_path, content, message):
    path = tmp_path / "bad_eval_results.json"
    path.write_text(content)
    with pytest.raises(VBenchError, match=message) as caught:
        read_results(path)
    assert "bad_eval_results.json" in str(caught.value)


def test_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(VBenchError, match="no result file"):
        read_results(tmp_path / "x_eval_results.json")
    with pytest.raises(VBenchError, match=r"has no \*_eval_results\.json"):
        read_results(tmp_path)


def test_scores_of_unknown_dimensions_or_without_a_value_are_refused():
    with pytest.raises(VBenchError, match="'colour' is no dimension"):
        totals({"colour": 0.5})
    with pytest.raises(VBenchError, match="color is nan"):
        totals({"color": float("nan")})


def test_tables_show_percent_and_say_what_is_missing():
    full = totals({name: bounds.high for name, bounds in DIMENSIONS.items()})
    partial = totals(dict.fromkeys(QUALITY, 1.0) | {"scene": 0.4111})
    markdown = totals_markdown({"base_1|x": full, "tuned": partial})
    assert r"| base_1\|x | 100.00 | 100.00 | 100.00 |" in markdown
    assert "| tuned | n/a |" in markdown
    assert "tuned lacks 8 of 16 dimensions (object_class, multiple_objects" in markdown
    latex = totals_latex({"base_1": full, "tuned": totals({"color": 0.5})})
    assert r"base\_1 & 100.00 & 100.00 & 100.00 \\" in latex
    assert r"tuned & n/a & n/a & n/a \\" in latex
    assert "% partial: tuned lacks 15" in latex


def test_percentages_are_refused_where_shares_are_due():
    with pytest.raises(VBenchError, match=r"color is 83\.0.*divide all scores by 100"):
        totals({"color": 83.0})


@pytest.mark.parametrize("scale", ["share", "percent", "text"])
@pytest.mark.parametrize("spelling", [str, lambda name: name.replace("_", " ").title()])
def test_a_flat_file_of_the_leaderboard_is_read(tmp_path, scale, spelling):
    written = {
        "share": lambda score: score,
        "percent": lambda score: 100 * score,
        "text": lambda score: f"{100 * score:.10f}%",
    }[scale]
    scores = {name: 0.02 + 0.97 * bounds.high for name, bounds in DIMENSIONS.items()}
    scores = {name: min(score, 0.99) for name, score in scores.items()}
    content = {spelling(name): written(score) for name, score in scores.items()}
    path = tmp_path / "leaderboard.json"
    path.write_text(json.dumps({"Total Score": written(0.8), **content}))
    found = read_results(path)
    assert found.scores == pytest.approx(scores)
    assert totals(found.scores).total == pytest.approx(totals(scores).total)
    assert totals(found.scores).total <= 1.1


@pytest.mark.parametrize(
    ("name", "score", "told"),
    [
        ("color", -1.0, "was not computed"),
        ("overall_consistency", -1.0, "was not computed"),
        ("motion_smoothness", 1.01, "percent"),
    ],
)
def test_what_no_run_of_vbench_gives_is_refused(name, score, told):
    with pytest.raises(VBenchError, match=rf"The score of {name} is {score}.*{told}"):
        totals({name: score})


def test_a_still_video_may_exceed_one_by_the_rounding_of_cosines():
    assert totals({"subject_consistency": 1.0000002}).quality_present == pytest.approx(1)


def test_a_score_of_zero_is_zero_percent(tmp_path):
    path = tmp_path / "flat.json"
    path.write_text('{"dynamic_degree": 0.0, "color": 85.0}')
    assert read_results(path).scores == {"dynamic_degree": 0.0, "color": 0.85}
    path.write_text('{"dynamic_degree": 0.5, "color": 85.0}')
    with pytest.raises(VBenchError, match="cannot be told"):
        read_results(path)


def test_scores_that_are_normalised_already_are_refused(tmp_path):
    path = tmp_path / "flat.json"
    path.write_text('{"scene": 0.61, "appearance_style": 0.77}')
    with pytest.raises(VBenchError, match=r"appearance_style is 0\.77.*normalised already"):
        read_results(path)
