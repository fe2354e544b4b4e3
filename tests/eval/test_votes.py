import base64
import json
import re

import numpy as np
import pytest

from astrolabe_eval import Evaluation, Suite, SuiteError, read_mp4
from astrolabe_eval.errors import VoteError
from astrolabe_eval.votes import read_votes, write_votes
from astrolabe_eval.win_rates import wilson_interval

COUNT = 12


def _grey(level):
    return np.full((3, 3, 16, 16), level, dtype=np.uint8)


def _evaluation(level, count=COUNT, prompts=None):
    prompts = prompts or tuple(f"prompt <{index}>" for index in range(count))
    return Evaluation(
        suite=Suite("demo", prompts),
        rewards={"total": np.zeros(count)},
        videos=[_grey(level) for _ in range(count)],
        fps=8.0,
    )


@pytest.fixture
def page(tmp_path):
    """A folder with a page over a dark and a bright model, and its key."""
    write_votes(tmp_path, _evaluation(40), _evaluation(200), labels=("dusk", "dawn"), seed=1)
    return tmp_path


def _key(folder):
    return json.loads((folder / "votes-key.json").read_text())


def _save(folder, author, choose, name=None, **changes):
    """What the page saves; ``choose`` gives the side of the first or second model, or a tie."""
    key = _key(folder)
    sides = {"dawn": lambda after: after, "tie": lambda after: "tie"}
    sides["dusk"] = lambda after: "left" if after == "right" else "right"
    votes = {
        pair: sides[choose(number)](entry["after"])
        for number, (pair, entry) in enumerate(key["pairs"].items())
        if choose(number) is not None
    }
    content = {"format": "astrolabe votes 1", "page": key["page"], "rater": author, "votes": votes}
    path = folder / f"{name or author}.json"
    path.write_text(json.dumps(content | changes))
    return path


def test_sides_in_the_key_are_those_of_the_page_and_mixed(page, tmp_path):
    text = (page / "votes.html").read_text()
    clips = [
        base64.b64decode(data) for data in re.findall(r'src="data:video/mp4;base64,([^"]+)', text)
    ]
    assert len(clips) == 2 * COUNT
    shown = []
    for number, clip in enumerate(clips):
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(clip)
        shown.append("dawn" if read_mp4(path).frames.mean() > 120 else "dusk")
    sides = [entry["after"] for entry in _key(page)["pairs"].values()]
    assert [("left" if left == "dawn" else "right") for left in shown[::2]] == sides
    assert all(left != right for left, right in zip(shown[::2], shown[1::2], strict=True))
    assert 2 < sides.count("left") < COUNT - 2
    samples = [entry["sample"] for entry in _key(page)["pairs"].values()]
    assert sorted(samples) == list(range(COUNT)) != samples


def test_the_page_names_no_model_and_escapes_its_prompts(page):
    text = (page / "votes.html").read_text()
    for secret in ("dusk", "dawn", "sample"):
        assert secret not in text
    assert "prompt &lt;3&gt;" in text
    assert "prompt <3>" not in text
    assert "https://" not in text
    assert "default-src 'none'" in text


def test_the_same_seed_gives_the_same_page_and_another_other_sides(page, tmp_path):
    models = _evaluation(40), _evaluation(200)
    again, other = tmp_path / "again", tmp_path / "other"
    write_votes(again, *models, labels=("dusk", "dawn"), seed=1)
    write_votes(other, *models, labels=("dusk", "dawn"), seed=2)
    assert (again / "votes.html").read_bytes() == (page / "votes.html").read_bytes()
    assert _key(other)["page"] != _key(page)["page"]
    assert _key(other)["pairs"] != _key(page)["pairs"]


def test_votes_become_win_rates_of_each_rater_and_of_all(page):
    _save(page, "anna", lambda number: "dawn" if number < 9 else "tie")
    _save(page, "bo", lambda number: "dawn" if number < 3 else "dusk" if number < 8 else None)
    result = read_votes(page, page / "votes-key.json")
    assert result["labels"] == ["dusk", "dawn"]
    assert result["pairs"] == COUNT
    anna, bo, pooled = result["raters"]["anna"], result["raters"]["bo"], result["pooled"]
    assert (anna["wins"], anna["ties"], anna["losses"], anna["votes"]) == (9, 3, 0, 12)
    assert anna["interval"] == list(wilson_interval(10.5 / 12, 12))
    assert (bo["rate"], bo["votes"]) == (3 / 8, 8)
    assert (pooled["rate"], pooled["votes"]) == (13.5 / 20, 20)
    lefts = [entry["after"] == "left" for entry in _key(page)["pairs"].values()]
    assert anna["left_rate"] == sum(lefts[:9]) / 9


def test_a_second_rater_who_agrees_adds_no_certainty(page):
    anna = _save(page, "anna", lambda number: "dawn" if number % 3 else "dusk")
    alone = read_votes(anna, page / "votes-key.json")["pooled"]
    _save(page, "bo", lambda number: "dawn" if number % 3 else "dusk")
    both = read_votes(page, page / "votes-key.json")["pooled"]
    assert both["votes"] == 2 * alone["votes"]
    assert both["interval"] == pytest.approx(alone["interval"])


def test_seeds_of_one_prompt_count_once(tmp_path):
    prompts = ("a",) * 6 + ("b",) * 6
    models = (_evaluation(level, prompts=prompts) for level in (40, 200))
    write_votes(tmp_path, *models, labels=("dusk", "dawn"))
    _save(tmp_path, "anna", lambda number: "dawn")
    tally = read_votes(tmp_path, tmp_path / "votes-key.json")["pooled"]
    assert tally["interval"] == list(wilson_interval(1, 2))


def test_only_ties_have_no_side(page):
    file = _save(page, "anna", lambda number: "tie")
    tally = read_votes(file, page / "votes-key.json")["raters"]["anna"]
    assert (tally["rate"], tally["left_rate"]) == (0.5, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"page": "other"}, "votes of page 'other'"),
        ({"format": "astrolabe votes 9"}, "has format 'astrolabe votes 9'"),
        ({"votes": {}}, "holds no votes"),
        ({"votes": {"pair-99": "left"}}, "'pair-99', which the page does not show"),
        ({"votes": {"pair-1": "up"}}, "Votes are 'left', 'tie' and 'right'"),
        ({"rater": " "}, "names no rater"),
    ],
)
def test_votes_that_do_not_fit_the_page_are_refused(page, changes, message):
    file = _save(page, "anna", lambda number: "dawn", **changes)
    with pytest.raises(VoteError, match=message):
        read_votes(file, page / "votes-key.json")


def test_broken_missing_and_double_files_are_refused(page):
    key = page / "votes-key.json"
    with pytest.raises(VoteError, match="no votes in"):
        read_votes(page, key)
    with pytest.raises(VoteError, match="is missing"):
        read_votes(page / "none.json", key)
    _save(page, "anna", lambda number: "dawn")
    _save(page, "anna", lambda number: "tie", name="anna (1)")
    with pytest.raises(VoteError, match="both by 'anna'"):
        read_votes(page, key)
    (page / "anna.json").write_bytes(b"\xff{")
    with pytest.raises(VoteError, match="is no JSON"):
        read_votes(page / "anna.json", key)
    (page / "anna.json").write_text("[]")
    with pytest.raises(VoteError, match=r"Give votes-key\.json"):
        read_votes(page, page / "anna.json")
    content = _key(page)
    content["pairs"]["pair-1"]["after"] = "up"
    key.write_text(json.dumps(content))
    with pytest.raises(VoteError, match="does not hold what was written"):
        read_votes(page, key)


def test_a_key_in_which_one_side_was_swapped_is_refused(page):
    _save(page, "anna", lambda number: "dawn")
    key = page / "votes-key.json"
    whole = key.read_bytes()
    key.write_bytes(whole.replace(b'"right"', b'"left"', 1))
    with pytest.raises(VoteError, match="does not hold what was written"):
        read_votes(page, key)
    key.write_bytes(whole.replace(b'"sha256"', b'"sha255"'))
    with pytest.raises(VoteError, match="has been changed"):
        read_votes(page, key)
    key.write_bytes(b"")
    with pytest.raises(VoteError, match=r"is empty. Give votes-key\.json"):
        read_votes(page, key)


def test_a_key_of_a_version_without_seals_is_read(page):
    _save(page, "anna", lambda number: "dawn")
    key = page / "votes-key.json"
    sealed = read_votes(page, key)
    entries = json.loads(key.read_bytes())
    assert entries.pop("sha256")
    key.write_text(json.dumps(entries))
    assert read_votes(page, key) == sealed
    key.write_text(json.dumps(entries | {"labels": ["dusk"]}))
    with pytest.raises(VoteError, match="has been changed"):
        read_votes(page, key)


def test_a_page_that_would_be_too_large_has_coarser_videos(tmp_path):
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (3, 3, 64, 64), dtype=np.uint8)
    suite = Suite("demo", ("a", "b"))
    model = Evaluation(suite=suite, rewards={"total": np.zeros(2)}, videos=[noise] * 2, fps=8.0)
    fine, _ = write_votes(tmp_path / "fine", model, model)
    coarse, _ = write_votes(tmp_path / "coarse", model, model, max_bytes=1000)
    assert coarse.stat().st_size < 0.7 * fine.stat().st_size


def test_pages_that_cannot_be_voted_on_are_refused(tmp_path):
    model = _evaluation(40)
    with pytest.raises(SuiteError, match="same prompts"):
        write_votes(tmp_path, model, _evaluation(40, 3))
    bare = Evaluation(suite=model.suite, rewards=model.rewards)
    with pytest.raises(ValueError, match="no videos"):
        write_votes(tmp_path, model, bare)
    with pytest.raises(ValueError, match="Take 1 to 12"):
        write_votes(tmp_path, model, model, pairs=13)
    assert list(tmp_path.iterdir()) == []
    write_votes(tmp_path, model, model, pairs=2)
    assert len(_key(tmp_path)["pairs"]) == 2
