import csv
import io
import re

import numpy as np
import pytest

from astrolabe_eval import Evaluation, Suite, compare
from astrolabe_eval.comparison import compare_many
from astrolabe_eval.tables import (
    csv_cell,
    csv_table,
    csv_text,
    escape_latex,
    latex_table,
    markdown_table,
)

PROMPTS = ("plain", 'with "quotes", commas', "two\nlines", "=1+1", *"efgh")
FIRST = np.array([1, 2, 3, 6, 1, 2, 3, 6])
SECOND = np.array([2, 4, 3.5, 9, 2.5, 4.5, 4, 8])
THIRD = np.array([0, 1, 2, 4, 0.5, 1, 2, 5])


def _evaluation(total, **more):
    row = np.asarray(total, dtype=np.float64)
    return Evaluation(
        suite=Suite("a_b", PROMPTS),
        rewards={"total": row, "p_1": row / 3},
        judges={"check|50%": row / 1000},
        **more,
    )


@pytest.fixture
def pair():
    return compare(_evaluation(FIRST), _evaluation(SECOND))


@pytest.fixture
def several():
    checkpoints = {"step 10": _evaluation(SECOND), "step 20": _evaluation(THIRD)}
    return compare_many(_evaluation(FIRST), checkpoints)


def _rows(markdown):
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_markdown_has_a_row_for_each_score_with_interval_and_win_rate(pair):
    text = markdown_table(pair, title="What *changed*")
    assert text.startswith("## What \\*changed\\*\n\n| score | before | after |")
    heads, rule, total, part, check = _rows(text)
    assert len({len(row) for row in (heads, rule, total, part, check)}) == 1
    change = pair["rewards"]["total"]
    low, high = change["interval"]
    assert total[:3] == ["total", "3.000", "4.688"]
    assert total[3] == f"**+1.688 [{low:+.3f}, {high:+.3f}]**"
    assert total[4] == "8"
    assert total[5].startswith("1.00 [0.60, 1.00]")
    assert total[6] == f"{pair['normalised']['total']['difference']:+.2f}"
    assert part[0] == r"p\_1"
    assert check[0] == r"check\|50% †"
    assert check[1] == "0.00300"
    assert "† Held out" in text


def test_checkpoints_stand_in_rows_of_one_table(several):
    _, _, *rows = _rows(markdown_table(several))
    assert [row[:2] for row in rows[:3]] == [
        ["total", "step 10"], ["total", "step 20"], [r"p\_1", "step 10"],
    ]  # fmt: skip
    assert "**" in rows[1][4]
    assert rows[1][4].startswith("**-")


def test_one_model_alone_has_means_only():
    alone = compare(_evaluation(FIRST))
    assert _rows(markdown_table(alone))[2] == ["total", "3.000"]
    assert r"\begin{tabular}{lr}" in latex_table(alone)


def test_a_change_that_may_be_chance_is_not_bold():
    result = compare(_evaluation(FIRST), _evaluation([2, 1, 4, 5, 2, 1, 4, 5]))
    assert "**" not in markdown_table(result)
    assert "textbf" not in latex_table(result)


def test_latex_is_balanced_has_equal_rows_and_no_bare_special_letter(several):
    hostile = r"50% of {x} & $y$_1 #2 ~ ^ \end{table} [a] <b> |c|"
    text = latex_table(several, title=hostile)
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    depth = 0
    for mark in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if mark == "{" else -1
        assert depth >= 0
    assert depth == 0
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 1 + 6
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {7}
    assert lines[2].startswith(" & step 20")
    assert r"p\_1" in body
    assert r"check\textbar{}50\%" in body
    assert "-" not in "".join(lines)
    assert not re.search(r"(?<!\\)[$#_^~]", text)


def test_latex_letters_print_as_they_are():
    assert escape_latex("a\\b") == r"a\textbackslash{}b"
    assert escape_latex("x\n y") == "x y"


def test_latex_labels_that_would_break_the_file_are_refused(pair):
    assert r"\label{tab:my-scores}" in latex_table(pair, label="tab:my-scores")
    with pytest.raises(ValueError, match="Use letters"):
        latex_table(pair, label="tab:}")


def test_csv_gives_back_every_score_of_every_video(several):
    rows = list(csv.DictReader(io.StringIO(csv_table(several))))
    assert len(rows) == 3 * 8
    assert [row["model"] for row in rows[::8]] == ["base", "step 10", "step 20"]
    assert [csv_text(row["prompt"]) for row in rows[8:16]] == list(PROMPTS)
    assert rows[11]["prompt"] == "'=1+1"
    assert [float(row["total"]) for row in rows[16:]] == list(THIRD)
    assert float(rows[3]["p_1"]) == 6 / 3
    assert float(rows[1]["check|50%"]) == 2 / 1000
    assert rows[9]["seed"] == str(Suite("a_b", PROMPTS).seeds[1])


def test_csv_of_two_models_has_both(pair):
    rows = list(csv.DictReader(io.StringIO(csv_table(pair))))
    assert [float(row["total"]) for row in rows] == [*FIRST, *SECOND]


def test_tables_say_what_they_lack_and_in_which_unit():
    part = _evaluation(SECOND, missing={"x": "broken", "y": "not finished"})
    result = compare(_evaluation(FIRST), part, units={"p_1": 0.25})
    for text in (markdown_table(result), latex_table(result)):
        assert "Partial: 2 samples of after were left out or are not finished." in text
        assert "by the unit given (p" in text


def test_no_cell_is_a_formula():
    assert [csv_cell(text) for text in ("-1.5e-3", "+.5", "-a", "", "a=b", "=a\n", "'a")] == [
        *("-1.5e-3", "+.5", "'-a", "", "a=b", "'=a\n", "'a")
    ]
