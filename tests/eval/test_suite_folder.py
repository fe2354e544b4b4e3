import json

import numpy as np
import pytest

from astrolabe_eval import Evaluation, Suite, SuiteError, SuiteFolder, fill

SUITE = Suite("demo", ("red", "green", "blue", "grey", "white"))


def video(seed):
    return np.random.default_rng(seed).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8)


def made(suite):
    """What a model and its reward would answer: by the seeds alone."""
    totals = np.array([seed / 7 for seed in suite.seeds])
    return Evaluation(
        suite=suite,
        rewards={"total": totals, "flow": totals / 3},
        judges={"check": totals * 2},
        videos=[video(seed) for seed in suite.seeds],
        fps=8.0,
    )


def folder(path, **options):
    return SuiteFolder(path / "base", SUITE, fps=8.0, **options)


def same(one, other):
    assert one.suite == other.suite
    assert not one.missing
    for first, second in ((one.rewards, other.rewards), (one.judges, other.judges)):
        assert first.keys() == second.keys()
        assert all(np.array_equal(first[name], second[name]) for name in first)


def test_what_is_read_back_is_what_was_made(tmp_path):
    target = folder(tmp_path)
    assert list(fill(target, made, batch_size=2)) == [2, 2, 1]
    found = target.evaluation()
    same(found, made(SUITE))
    assert len(found.videos) == 5
    frames = found.videos[3]
    assert frames.shape == (5, 3, 16, 16)
    assert found.videos[1:3].paths == (target.video(1), target.video(2))


def test_an_interrupted_folder_goes_on_and_makes_nothing_twice(tmp_path):
    seen = []

    def dies_later(suite):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(suite.prompts)
        return made(suite)

    with pytest.raises(KeyboardInterrupt):
        list(fill(folder(tmp_path), dies_later, batch_size=1))
    again = folder(tmp_path)
    assert again.todo() == [2, 3, 4]
    unfinished = again.evaluation()
    assert unfinished.suite.prompts == ("red", "green")
    assert unfinished.missing == dict.fromkeys(again.names[2:], "not finished")
    list(fill(again, made))
    same(again.evaluation(), made(SUITE))


def test_processes_share_the_samples(tmp_path):
    first, second = folder(tmp_path), folder(tmp_path)
    assert first.todo(0, 2) == [0, 2, 4]
    assert first.todo(0, 2, batch_size=2) == [0, 1, 4]
    list(fill(first, made, rank=0, processes=2, batch_size=2))
    assert second.todo() == second.todo(1, 2, batch_size=2) == [2, 3]
    list(fill(second, made, rank=1, processes=2, batch_size=2))
    same(first.evaluation(), made(SUITE))


def test_broken_samples_are_listed_and_left_out(tmp_path):
    target = folder(tmp_path)
    list(fill(target, made))
    target.video(0).unlink()
    target.video(1).write_bytes(target.video(1).read_bytes()[:200])
    scores = sorted((target.path / "scores").iterdir())
    scores[2].write_text("{")
    scores[3].write_bytes(scores[3].read_bytes().replace(b"0", b"1", 1))
    found = target.evaluation()
    assert found.suite.prompts == ("white",)
    assert list(found.missing.values()) == [
        "videos/000000.mp4 is missing",
        "videos/000001.mp4 does not hold what was written",
        "scores/000002.json is no JSON",
        "scores/000003.json does not hold what was written",
    ]


@pytest.mark.parametrize(
    ("suite", "options", "words"),
    [
        (SUITE, {"fps": 16.0}, "another fps: 8.0, now 16.0"),
        (SUITE, {"protocol": {"steps": 4}}, "another protocol"),
        (Suite("demo", ("red", "green", "blue", "grey", "black")), {}, "another prompts"),
        (Suite("demo", SUITE.prompts, (1, 2, 3, 4, 5)), {}, "another seeds"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path, suite, options, words):
    folder(tmp_path)
    with pytest.raises(SuiteError, match=words):
        SuiteFolder(tmp_path / "base", suite, **({"fps": 8.0} | options))


def test_names_that_occur_twice_are_refused(tmp_path):
    with pytest.raises(SuiteError, match="1 different file names for 5"):
        SuiteFolder(tmp_path / "other", SUITE, fps=8.0, names=["a.mp4"] * 5)


def test_an_empty_folder_has_no_evaluation(tmp_path):
    with pytest.raises(SuiteError, match="no finished sample"):
        folder(tmp_path).evaluation()


def test_videos_may_have_names_of_their_own(tmp_path):
    names = [f"{prompt}-0.mp4" for prompt in SUITE.prompts]
    target = folder(tmp_path, names=names)
    list(fill(target, made))
    assert sorted(path.name for path in (target.path / "videos").iterdir()) == sorted(names)


def with_holes(suite):
    """As `made`; no judge has a score of the third sample, no reward of the last one."""
    whole = made(suite)
    blue, white = (np.array([text == name for text in suite.prompts]) for name in ("blue", "white"))
    return Evaluation(
        suite=suite,
        rewards={name: np.where(white, np.nan, row) for name, row in whole.rewards.items()},
        judges={name: np.where(blue, np.nan, row) for name, row in whole.judges.items()},
        videos=whole.videos,
        fps=8.0,
    )


def test_an_unscored_sample_is_null_in_its_file_and_nan_when_read(tmp_path):
    target = folder(tmp_path)
    list(fill(target, with_holes, batch_size=2))
    assert target.todo() == []
    assert target.unscored() == [2, 4]
    assert [target.unscored(rank, 2) for rank in (0, 1)] == [[2, 4], []]
    texts = [path.read_text() for path in sorted((target.path / "scores").iterdir())]
    rows = [json.loads(text, parse_constant=pytest.fail) for text in texts]
    assert [row["judges"]["check"] is None for row in rows] == [False, False, True, False, False]
    assert rows[4]["rewards"] == {"total": None, "flow": None}
    found = target.evaluation()
    assert not found.missing
    expected = with_holes(SUITE)
    for name in ("total", "flow"):
        assert np.array_equal(found.rewards[name], expected.rewards[name], equal_nan=True)
    assert np.array_equal(found.judges["check"], expected.judges["check"], equal_nan=True)


def test_samples_without_a_score_are_asked_again_and_no_others(tmp_path):
    target = folder(tmp_path)
    asked = []

    def measure(answer):
        def evaluate(suite):
            asked.append(suite.prompts)
            return answer(suite)

        return evaluate

    list(fill(target, measure(with_holes), batch_size=2))
    asked.clear()
    # Still nothing: once a call, then left as it is. The batches are those of the first time.
    list(fill(target, measure(with_holes), batch_size=2))
    assert asked == [("blue", "grey"), ("white",)]
    assert list(fill(target, measure(made), batch_size=2)) == [1, 1]
    same(target.evaluation(), made(SUITE))
    assert list(fill(target, measure(made))) == []
