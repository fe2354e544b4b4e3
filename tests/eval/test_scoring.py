import numpy as np
import pytest
import torch

from astrolabe_eval import (
    Evaluation,
    Suite,
    agree,
    compare,
    compare_many,
    drift_curves,
    evaluate_suite,
    generate,
    paired_interval,
    score_intervals,
    score_suite,
    totals,
    write_report,
)

SUITE = Suite("demo", tuple(f"level {level}" for level in (10, 200, 90, 40, 150)))


def test_scores_follow_the_order_of_the_suite(bright_model, brightness):
    scores = score_suite(generate(bright_model(0), SUITE, fps=8, batch_size=2), brightness)
    assert set(scores) == {"brightness", "total"}
    levels = np.array([10, 200, 90, 40, 150])
    assert scores["brightness"].dtype == np.float64
    assert (np.abs(scores["brightness"] - levels - 5) <= 5).all()
    assert (scores["total"] == 2 * scores["brightness"]).all()


def test_an_evaluation_keeps_each_video_beside_its_scores(bright_model, brightness):
    result = evaluate_suite(bright_model(3), SUITE, brightness, fps=8, batch_size=2)
    assert result.fps == 8
    assert [float(video.mean()) for video in result.videos] == list(result.rewards["brightness"])
    bare = evaluate_suite(bright_model(3), SUITE, brightness, fps=8, keep_videos=False)
    assert len(bare.videos) == 0


def test_judges_do_not_mix_with_rewards(bright_model, brightness):
    def darkness(batch):
        assert "score" not in batch.keys()  # noqa: SIM118
        batch["score", "anything"] = 255 - batch["video", "pixels"][:, :1, 0, 0, 0].float()
        return batch

    result = evaluate_suite(
        bright_model(0),
        SUITE,
        brightness,
        fps=8,
        judges={"darkness": darkness, "again": brightness},
    )
    assert set(result.rewards) == {"brightness", "total"}
    assert set(result.judges) == {"darkness", "again/brightness", "again/total"}
    assert (result.judges["darkness"] == 255 - result.rewards["brightness"]).all()


def _scorer(write):
    def score(batch):
        write(batch)
        return batch

    return score


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda batch: None, "neither"),
        (
            lambda batch: batch.set(("score", "bad"), torch.full((len(batch), 1), torch.inf)),
            "'bad' is inf for sample 0",
        ),
        (
            lambda batch: batch.set(("score", "wide"), torch.zeros(len(batch), 2)),
            r"'wide' has shape \(5, 2\)",
        ),
    ],
)
def test_scores_that_are_no_numbers_are_refused(bright_model, write, message):
    with pytest.raises(ValueError, match=message):
        score_suite(generate(bright_model(0), SUITE, fps=8), _scorer(write))


def test_scores_must_have_the_same_names_in_each_batch(bright_model):
    names = iter("abcde")
    scorer = _scorer(lambda batch: batch.set(("score", next(names)), torch.zeros(len(batch), 1)))
    with pytest.raises(ValueError, match="same names"):
        score_suite(generate(bright_model(0), SUITE, fps=8, batch_size=2), scorer)


def test_evaluations_that_do_not_pair_up_are_refused():
    suite = Suite("demo", ("a", "b"))
    row = np.zeros(2)
    with pytest.raises(ValueError, match="no 'total'"):
        Evaluation(suite=suite, rewards={"x": row})
    with pytest.raises(ValueError, match=r"judges\['y'\] has 3 entries for 2 prompts"):
        Evaluation(suite=suite, rewards={"total": row}, judges={"y": np.zeros(3)})
    with pytest.raises(ValueError, match="Rename the judge"):
        Evaluation(suite=suite, rewards={"total": row}, judges={"total": row})


def test_what_could_not_be_scored_is_nan_and_takes_no_other_number(bright_model):
    def fails_on_dark(batch):
        mean = batch["video", "pixels"].float().mean(dim=(1, 2, 3, 4)).unsqueeze(-1)
        batch["score", "level"] = torch.where(mean > 100, mean, torch.nan)
        batch["next", "valid"] = mean > 100
        batch["next", "reward"] = torch.where(mean > 100, mean, 0.0)
        return batch

    result = evaluate_suite(
        bright_model(0), SUITE, fails_on_dark, fps=8, judges={"judge": fails_on_dark}
    )
    dark = [True, False, True, True, False]
    scores = [*result.rewards.values(), *result.judges.values()]
    assert len(scores) == 4
    for row in scores:
        assert np.isnan(row).tolist() == dark
        assert (row[[1, 4]] > 100).all()


def test_a_scorer_with_a_single_score_needs_no_total(bright_model):
    def score(batch):
        return batch.set(("score", "level"), batch["video", "pixels"].float().mean((1, 2, 3, 4)))

    found = evaluate_suite(bright_model(3), SUITE, score, fps=8).rewards
    assert found["total"].tolist() == found["level"].tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, one: evaluate_suite(None, SUITE, one, fps=8), "sample is None"),
        (lambda model, one: evaluate_suite(model, SUITE, "sharp", fps=8), "scorer is 'sharp'"),
        (lambda model, one: evaluate_suite(lambda _: None, SUITE, one, fps=8), "sample returned"),
        (
            lambda model, one: evaluate_suite(model, SUITE, one, fps=8, judges=[one]),
            "judges is a l",
        ),
        (lambda model, one: compare("old", "new"), "'before' is a str, no evaluation"),
        (lambda model, one: write_report("page", [], None), "'before' is a list, no evaluation"),
        (lambda model, one: write_report("page", None, [1]), "after is a list"),
        (lambda model, one: compare_many(None, [1]), "checkpoints is a list"),
        (lambda model, one: agree([[1, 2, 3], [4, 5, 6]]), "scores is a list"),
        (lambda model, one: score_intervals([1], one, ["a"], model="x"), "videos is a list"),
        (lambda model, one: drift_curves([]), "result is a list"),
        (lambda model, one: totals({"scene": "0.5"}), "score of scene is '0.5'"),
        (lambda model, one: paired_interval(["a", "b"], [1, 2]), "before holds <U1"),
    ],
)
def test_arguments_of_another_kind_are_refused_by_name(bright_model, brightness, call, message):
    with pytest.raises(TypeError, match=message):
        call(bright_model(0), brightness)
