import pytest
import torch
from tensordict import TensorDict

from astrolabe_rewards import CompositeReward, FlowMQ, SharpnessVQ


def first_pixel(batch):
    """A reward that knows nothing of this package: the first pixel, NaN if it is 13."""
    value = batch["video", "pixels"].flatten(-4)[..., 0].float()
    return batch.set(("score", "first"), torch.where(value == 13, torch.nan, value))


def fussy(batch):
    """A reward that cannot bear a first pixel of 7."""
    value = batch["video", "pixels"].flatten(-4)[..., 0].float()
    if (value == 7).any():
        raise RuntimeError("seven")
    return batch.set(("score", "fussy"), 2 * value)


def videos(*levels):
    levels = torch.tensor(levels, dtype=torch.uint8)
    return levels[:, None, None, None, None].expand(-1, 5, 3, 16, 16).contiguous()


def test_the_reward_is_the_weighted_sum_of_its_terms(make_batch):
    batch = make_batch(videos(1, 4))
    CompositeReward({"first": (first_pixel, 0.5), "fussy": (fussy, -1.0)})(batch)
    assert batch["score", "first"].flatten().tolist() == [1, 4]
    assert batch["score", "fussy"].flatten().tolist() == [2, 8]
    assert batch["next", "reward"].flatten().tolist() == [-1.5, -6]
    assert batch["next", "valid"].all()
    assert batch["next", "reward"].shape == batch["next", "valid"].shape == (2, 1)


def test_batches_of_two_dimensions_keep_their_shape(make_batch):
    batch = make_batch(videos(1, 2, 3, 4, 5, 6).reshape(2, 3, 5, 3, 16, 16))
    CompositeReward({"first": (first_pixel, 1.0), "sharpness_vq": (SharpnessVQ(), 0.0)})(batch)
    assert batch["next", "reward"][..., 0].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert batch["score", "sharpness_vq"].shape == (2, 3, 1)


def test_an_empty_batch_passes(make_batch):
    batch = make_batch(videos(1))[:0]
    CompositeReward({"flow_mq": (FlowMQ(), 1.0)})(batch)
    assert batch["next", "reward"].shape == (0, 1)


def test_a_term_listed_under_another_name_writes_that_name(make_batch):
    batch = make_batch(videos(1))
    CompositeReward({"vq": (SharpnessVQ(), 1.0)})(batch)
    assert ("score", "vq") in batch.keys(True)
    assert ("score", "sharpness_vq") not in batch.keys(True)


def test_fixed_normalisation_uses_the_given_numbers(make_batch):
    batch = make_batch(videos(1, 4))
    CompositeReward(
        {"first": (first_pixel, 2.0)}, normalise="fixed", statistics={"first": (3.0, 0.5)}
    )(batch)
    assert batch["next", "reward"].flatten().tolist() == [-8, 4]


def test_running_normalisation_equals_statistics_of_everything_seen(make_batch):
    composite = CompositeReward({"first": (first_pixel, 1.0)}, normalise="running")
    for levels in ((1, 4, 9), (25, 36), (2,)):
        batch = composite(make_batch(videos(*levels)))
    seen = torch.tensor([1.0, 4, 9, 25, 36, 2], dtype=torch.float64)
    expected = (2 - seen.mean()) / seen.std(correction=0)
    assert float(batch["next", "reward"]) == pytest.approx(float(expected), rel=1e-6)


def test_running_statistics_survive_a_checkpoint_and_rest_in_eval_mode(make_batch):
    composite = CompositeReward({"first": (first_pixel, 1.0)}, normalise="running")
    composite(make_batch(videos(1, 4, 9)))
    twin = CompositeReward({"first": (first_pixel, 1.0)}, normalise="running")
    twin.load_state_dict(composite.state_dict())
    twin.eval()
    once = twin(make_batch(videos(30)))["next", "reward"]
    again = twin(make_batch(videos(30)))["next", "reward"]
    assert torch.equal(once, again)
    assert torch.equal(once, composite.eval()(make_batch(videos(30)))["next", "reward"])


def test_a_failing_video_is_marked_and_the_others_are_scored(make_batch):
    batch = make_batch(videos(1, 7, 13, 4))
    terms = {"first": (first_pixel, 1.0), "fussy": (fussy, 1.0)}
    CompositeReward(terms, on_error="invalid")(batch)
    assert batch["next", "valid"].flatten().tolist() == [True, False, False, True]
    assert batch["next", "reward"].flatten().tolist() == [3, 0, 0, 12]
    assert batch["score", "first"].flatten()[1] == 7
    assert batch["score", "fussy"].flatten()[1].isnan()


def test_invalid_videos_do_not_enter_running_statistics(make_batch):
    composite = CompositeReward(
        {"first": (first_pixel, 1.0)}, normalise="running", on_error="invalid"
    )
    batch = composite(make_batch(videos(1, 13, 3)))
    assert batch["next", "reward"].flatten().tolist() == pytest.approx([-1, 0, 1])


def test_failures_end_the_run_by_default(make_batch):
    with pytest.raises(RuntimeError, match="seven"):
        CompositeReward({"fussy": (fussy, 1.0)})(make_batch(videos(7)))
    with pytest.raises(ValueError, match=r"'first' scored videos \[0\]"):
        CompositeReward({"first": (first_pixel, 1.0)})(make_batch(videos(13)))


def test_a_callable_that_writes_another_name_is_refused_even_when_errors_are_allowed(make_batch):
    composite = CompositeReward({"second": (first_pixel, 1.0)}, on_error="invalid")
    with pytest.raises(KeyError, match="did not write"):
        composite(make_batch(videos(1)))


def test_terms_leave_nothing_else_in_the_batch(make_batch):
    def untidy(batch):
        batch.set("scratch", batch["video", "fps"])
        return batch.set(("score", "untidy"), batch["video", "fps"])

    batch = make_batch(videos(1))
    CompositeReward({"untidy": (untidy, 1.0)})(batch)
    assert "scratch" not in batch


def test_wrong_pixels_are_never_a_matter_of_single_videos(make_batch):
    composite = CompositeReward({"fussy": (fussy, 1.0)}, on_error="invalid")
    with pytest.raises(TypeError, match=r"not torch\.uint8"):
        composite(make_batch(videos(1).float()))
    with pytest.raises(KeyError, match="lacks"):
        composite(TensorDict({}, batch_size=[1]))


def test_seconds_are_kept_per_term(make_batch):
    composite = CompositeReward({"first": (first_pixel, 1.0), "flow_mq": (FlowMQ(), 1.0)})
    composite(make_batch(videos(1)))
    assert set(composite.seconds) == {"first", "flow_mq"}
    assert min(composite.seconds.values()) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rewards": {}}, "no rewards"),
        ({"rewards": {"first": (first_pixel, "a lot")}}, "weight of 'first' is 'a lot'"),
        ({"rewards": {"first": (first_pixel, float("nan"))}}, "finite number"),
        ({"rewards": {"first": first_pixel}}, "not a pair"),
        ({"normalise": "runing"}, "Did you mean 'running'"),
        ({"on_error": "ignore"}, "Choose from"),
        ({"normalise": "fixed"}, "needs a finite mean"),
        ({"statistics": {"first": (0.0, 1.0)}}, "Set normalise='fixed'"),
        (
            {"normalise": "fixed", "statistics": {"frist": (0.0, 1.0)}},
            "Did you mean 'first'",
        ),
        ({"normalise": "fixed", "statistics": {"first": (0.0, 0.0)}}, "positive std"),
    ],
)
def test_wrong_settings_are_refused_with_a_way_out(arguments, message):
    with pytest.raises(ValueError, match=message):
        CompositeReward(**({"rewards": {"first": (first_pixel, 1.0)}} | arguments))
