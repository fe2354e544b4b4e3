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
    list(fill(first, made, rank=0, processes=2))
    assert second.todo() == second.todo(1, 2) == [1, 3]
    list(fill(second, made, rank=1, processes=2))
    same(first.evaluation(), made(SUITE))


def test_broken_samples_are_listed_and_left_out(tmp_path):
    target = folder(tmp_path)
    list(fill(target, made))
    target.video(0).unlink()
    target.video(1).write_bytes(target.video(1).read_bytes()[:200])
    scores = sorted((target.path / "scores").iterdir())
    scores[2].write_text("{")
    row = json.loads(scores[3].read_text())
    scores[3].write_text(json.dumps(row | {"rewards": {"total": float("nan")}}))
    found = target.evaluation()
    assert found.suite.prompts == ("white",)
    reasons = [found.missing[name] for name in target.names[:4]]
    for reason, words in zip(
        reasons, ("is gone", "cut short", "cannot be read", "not finite"), strict=True
    ):
        assert words in reason


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


def test_a_damaged_manifest_and_names_that_occur_twice_are_refused(tmp_path):
    folder(tmp_path)
    (tmp_path / "base" / "manifest.json").write_text("{")
    with pytest.raises(SuiteError, match="Remove its folder"):
        folder(tmp_path)
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
