import math
import resource
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule

from astrolabe_rewards import CompositeReward, FlowMQ, Reward, SharpnessVQ, WeightsError
from astrolabe_rewards.cache import CachedReward
from astrolabe_rewards.errors import RewardError
from astrolabe_rewards.whole_video import WholeVideo
from astrolabe_rewards.wire import UnavailableError


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


def numbers(rewards):
    """Rewards as a list, None where there is none."""
    return [None if value != value else value for value in rewards.flatten().tolist()]


def videos(*levels):
    levels = torch.tensor(levels, dtype=torch.uint8)
    return levels[:, None, None, None, None].expand(-1, 5, 3, 16, 16).contiguous()


def test_the_reward_is_the_weighted_sum_of_its_terms(make_batch):
    batch = make_batch(videos(1, 4))
    CompositeReward({"first": (first_pixel, 0.5), "fussy": (fussy, -1.0)})(batch)
    assert batch["score", "first"].flatten().tolist() == [1, 4]
    assert batch["score", "fussy"].flatten().tolist() == [2, 8]
    assert batch["next", "reward"].flatten().tolist() == [-1.5, -6]
    # Eight last places of 0.5 and 2, of 2 and 8: weights count without their sign.
    blur = batch["rounding", "next", "reward"].flatten()
    assert (blur / torch.finfo(torch.float32).eps / 8).tolist() == [2.5, 10]
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
    assert numbers(batch["next", "reward"]) == [3, None, None, 12]
    assert batch["score", "first"].flatten()[1] == 7
    assert batch["score", "fussy"].flatten()[1].isnan()


def test_invalid_videos_do_not_enter_running_statistics(make_batch):
    composite = CompositeReward(
        {"first": (first_pixel, 1.0), "fussy": (fussy, 1.0)},
        normalise="running",
        on_error="invalid",
    )
    batch = composite(make_batch(videos(1, 13, 3)))  # the second term could score all of them
    assert numbers(batch["next", "reward"]) == pytest.approx([-2, None, 2])


def grouped(make_batch, levels, groups, windows=None):
    """A batch ``[N]`` or ``[N, T]`` of plain videos with groups, and windows if there are any."""
    groups = torch.tensor(groups)
    batch = make_batch(videos(*levels).reshape(*groups.shape, 5, 3, 16, 16))
    batch.set(("prompt", "group"), groups)
    if windows is not None:
        batch.set(("window", "index"), torch.tensor(windows))
    return batch


def z_scores(*values):
    values = torch.tensor(values, dtype=torch.float64)
    return ((values - values.mean()) / values.std(correction=0)).tolist()


def test_group_normalisation_compares_the_videos_of_a_prompt(make_batch):
    batch = grouped(make_batch, (1, 100, 4, 140, 9, 200), [5, -2, 5, -2, 5, -2])
    terms = {"first": (first_pixel, 2.0), "fussy": (fussy, -0.5)}
    CompositeReward(terms, normalise="group")(batch)
    rewards = batch["next", "reward"].flatten()
    # The second term is twice the first, so its z-score is the same: 2 - 0.5 of it remain.
    torch.testing.assert_close(rewards[::2], 1.5 * torch.tensor(z_scores(1, 4, 9)))
    torch.testing.assert_close(rewards[1::2], 1.5 * torch.tensor(z_scores(100, 140, 200)))
    assert batch["score", "first"].flatten().tolist() == [1, 100, 4, 140, 9, 200]


def test_windows_of_a_video_are_normalised_apart(make_batch):
    batch = grouped(
        make_batch, (1, 50, 3, 90, 8, 60, 8, 20), [[0, 0], [0, 0], [1, 1], [1, 1]], [[0, 1]] * 4
    )
    CompositeReward({"first": (first_pixel, 1.0)}, normalise="group")(batch)
    expected = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 1.0], [0.0, -1.0]])
    torch.testing.assert_close(batch["next", "reward"][..., 0], expected)


def test_a_unit_or_an_offset_of_a_term_changes_no_grouped_reward(make_batch):
    def shifted(batch):
        return first_pixel(batch).set(("score", "first"), 1000 * batch["score", "first"] - 7)

    groups = [0, 0, 0, 1, 1, 1]
    results = [
        CompositeReward({"first": (term, 1.0)}, normalise="group")(
            grouped(make_batch, (1, 4, 9, 100, 140, 200), groups)
        )["next", "reward"]
        for term in (first_pixel, shifted)
    ]
    torch.testing.assert_close(*results)


def test_invalid_videos_do_not_count_in_their_group(make_batch):
    batch = grouped(make_batch, (1, 13, 3, 7, 200), [0, 0, 0, 0, 1])
    terms = {"first": (first_pixel, 1.0), "fussy": (fussy, 1e-9)}
    CompositeReward(terms, normalise="group", on_error="invalid")(batch)
    assert batch["next", "valid"].flatten().tolist() == [True, False, True, False, True]
    assert numbers(batch["next", "reward"]) == pytest.approx([-1, None, 1, None, 0])


@pytest.mark.parametrize("normalise", ["none", "running", "group", "fixed"])
def test_a_watched_term_that_fails_changes_no_reward_and_no_later_statistics(normalise, make_batch):
    levels = (1, 3, 7, 9, 5, 6)

    def rewards(terms):
        fixed = dict.fromkeys(terms, (2.0, 3.0)) if normalise == "fixed" else None
        composite = CompositeReward(
            terms, normalise=normalise, statistics=fixed, on_error="invalid"
        )
        for _ in range(2):
            batch = composite(grouped(make_batch, levels, [0, 0, 0, 1, 1, 1]))
        return batch

    alone = rewards({"first": (first_pixel, 1.0)})
    watched = rewards({"first": (first_pixel, 1.0), "fussy": (fussy, 0.0)})
    assert numbers(watched["score", "fussy"])[2] is None
    assert watched["next", "valid"].all()
    assert torch.equal(watched["next", "reward"], alone["next", "reward"])


def test_running_statistics_of_a_watched_term_leave_out_what_it_could_not_score(make_batch):
    terms = {"first": (first_pixel, 1.0), "fussy": (fussy, 0.0)}
    composite = CompositeReward(terms, normalise="running", on_error="invalid")
    composite(make_batch(videos(1, 7, 4)))
    assert composite.moments[:, :2].tolist() == [[3, 4], [2, 5]]


def test_where_all_terms_are_watched_all_of_them_say_what_is_valid(make_batch):
    terms = {"first": (first_pixel, 0.0), "fussy": (fussy, 0.0)}
    batch = CompositeReward(terms, on_error="invalid")(make_batch(videos(1, 7, 13)))
    assert numbers(batch["next", "reward"]) == [0, None, None]


def test_a_sum_that_is_no_number_is_no_reward(make_batch):
    terms = {"first": (first_pixel, 3e38), "fussy": (fussy, 3e38)}
    batch = CompositeReward(terms)(make_batch(videos(0, 1)))
    assert batch["next", "valid"].flatten().tolist() == [True, False]
    assert numbers(batch["next", "reward"]) == [0, None]


def test_group_normalisation_needs_groups_before_anything_is_scored(make_batch):
    def expensive(batch):
        raise AssertionError("scored")

    composite = CompositeReward({"first": (expensive, 1.0)}, normalise="group")
    assert composite.in_keys[-1] == ("prompt", "group")
    with pytest.raises(KeyError, match=r"normalise='group' reads \('prompt', 'group'\)"):
        composite(make_batch(videos(1, 2)))
    with pytest.raises(ValueError, match="0 groups and 0 windows for 2 videos"):
        composite(make_batch(videos(1, 2)).set(("prompt", "group"), torch.zeros(2, 1)[:, :0]))


def test_the_entries_of_groups_can_be_renamed(make_batch):
    batch = make_batch(videos(1, 3, 5, 9)).set("team", torch.tensor([0, 0, 1, 1]))
    CompositeReward({"first": (first_pixel, 1.0)}, normalise="group", group_key="team")(batch)
    assert batch["next", "reward"].flatten().tolist() == [-1, 1, -1, 1]


def test_an_empty_batch_has_no_groups(make_batch):
    batch = grouped(make_batch, (1,), [0])[:0]
    CompositeReward({"first": (first_pixel, 1.0)}, normalise="group")(batch)
    assert batch["next", "reward"].shape == (0, 1)


class Judge(Reward):
    """Cannot read its own answer about a first pixel of 13; counts how often it is asked."""

    name = "judge"
    unit = "level"
    may_fail = True

    def __init__(self):
        super().__init__()
        self.asked = []

    def score(self, pixels, prompts, fps):
        value = pixels.flatten(1)[:, 0].float()
        self.asked.append(len(value))
        return torch.where(value == 13, torch.nan, value)


def test_a_term_that_may_fail_is_not_asked_again(make_batch):
    judge, batch = Judge(), make_batch(videos(1, 13, 3))
    CompositeReward({"judge": (judge, 2.0)}, on_error="invalid")(batch)
    assert judge.asked == [3]
    assert batch["next", "valid"].flatten().tolist() == [True, False, True]
    assert numbers(batch["next", "reward"]) == [2, None, 6]
    assert batch["score", "judge"].flatten().isnan().tolist() == [False, True, False]


def test_a_term_that_may_fail_stops_a_run_that_allows_no_failures(make_batch):
    with pytest.raises(ValueError, match=r"'judge' scored videos \[1\]"):
        CompositeReward({"judge": (Judge(), 1.0)})(make_batch(videos(1, 13)))


def test_an_infinite_score_is_kept_as_none(make_batch):
    def endless(batch):
        return batch.set(("score", "endless"), torch.tensor([1.0, torch.inf]))

    batch = make_batch(videos(1, 2))
    CompositeReward({"endless": (endless, 1.0)}, on_error="invalid")(batch)
    assert batch["score", "endless"].flatten().isnan().tolist() == [False, True]
    assert numbers(batch["next", "reward"]) == [1, None]


@pytest.mark.parametrize("error", [WeightsError, ImportError])
def test_faults_of_the_set_up_are_never_a_matter_of_single_videos(make_batch, error):
    def lacking(batch):
        raise error("what it needs is not there")

    with pytest.raises(error, match="not there"):
        CompositeReward({"lacking": (lacking, 1.0)}, on_error="invalid")(make_batch(videos(1)))


def test_failures_end_the_run_by_default(make_batch):
    with pytest.raises(RuntimeError, match="seven"):
        CompositeReward({"fussy": (fussy, 1.0)})(make_batch(videos(7)))
    with pytest.raises(ValueError, match=r"'first' scored videos \[0\]"):
        CompositeReward({"first": (first_pixel, 1.0)})(make_batch(videos(13)))


def test_a_callable_that_writes_another_name_is_refused_even_when_errors_are_allowed(make_batch):
    composite = CompositeReward({"second": (first_pixel, 1.0)}, on_error="invalid")
    with pytest.raises(RewardError, match="did not write"):
        composite(make_batch(videos(1)))


def test_terms_leave_nothing_else_in_the_batch(make_batch):
    def untidy(batch):
        batch.set("scratch", batch["video", "fps"])
        return batch.set(("score", "untidy"), batch["video", "fps"])

    batch = make_batch(videos(1))
    CompositeReward({"untidy": (untidy, 1.0)})(batch)
    assert "scratch" not in batch


class Painter(Reward):
    """Changes what it is shown, in a way of its choice."""

    name, unit = "painter", "level"

    def __init__(self, paint):
        super().__init__()
        self._paint = paint

    def score(self, pixels, prompts, fps):
        self._paint(pixels, fps)
        return torch.zeros(len(pixels))


def through_numpy(pixels, fps):
    pixels.numpy()[0, 2, 1, 5, 3] += 7


PAINTS = {
    "all at once": ("pixels", lambda pixels, fps: pixels.mul_(2)),
    "one part": ("pixels", lambda pixels, fps: pixels[:, 1].clamp_(min=9)),
    "through numpy": ("pixels", through_numpy),
    "the rate": ("fps", lambda pixels, fps: fps.div_(2)),
}


@pytest.mark.parametrize("paint", PAINTS)
@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("on_error", ["raise", "invalid"])
def test_what_is_shown_to_other_rewards_cannot_be_changed(make_batch, paint, inference, on_error):
    entry, change = PAINTS[paint]
    reward = Painter(change)

    def function(batch):
        change(batch["video", "pixels"], batch["video", "fps"])
        return batch.set(("score", "function"), torch.zeros(batch.shape))

    alone = rf"changed \('video', '{entry}'\) of the batch in place"
    terms = {"painter": reward, "function": function}
    for name, term in terms.items():
        composite = CompositeReward({name: (term, 1.0)}, on_error=on_error)
        with torch.inference_mode(inference):
            batch = make_batch(videos(1, 2))
            with pytest.raises(RewardError, match=rf"{name}.* {alone}"):
                composite(batch)
    with pytest.raises(RewardError, match=f"painter {alone}"):
        reward(make_batch(videos(1, 2)))


def test_a_copy_may_be_changed(make_batch):
    batch = make_batch(videos(1, 2))
    Painter(lambda pixels, fps: pixels.clone().zero_())(batch)
    pixels = torch.zeros(1, 1, 3, 1, 3, dtype=torch.uint8)  # no multiple of eight bytes
    Painter(lambda pixels, fps: pixels.numpy().copy().fill(3))(make_batch(pixels))
    with pytest.raises(RewardError, match="in place"):
        Painter(lambda pixels, fps: pixels.numpy().reshape(-1)[-1:].fill(3))(make_batch(pixels))


def test_wrong_pixels_are_never_a_matter_of_single_videos(make_batch):
    composite = CompositeReward({"fussy": (fussy, 1.0)}, on_error="invalid")
    with pytest.raises(TypeError, match=r"not torch\.uint8"):
        composite(make_batch(videos(1).float()))
    with pytest.raises(KeyError, match="lacks"):
        composite(TensorDict({}, batch_size=[1]))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (torch.tensor([1, 2]), r"'odd' returned torch\.int64.*scores\.float\(\)"),
        (torch.tensor([True, False]), r"'odd' returned torch\.bool"),
        (torch.ones(2, 3), r"'odd' returned shape \(2, 3\) for 2 videos"),
    ],
)
def test_answers_that_are_no_scores_are_never_a_matter_of_single_videos(
    answer, message, make_batch
):
    def odd(batch):
        return batch.set(("score", "odd"), answer)

    with pytest.raises(RewardError, match=message):
        CompositeReward({"odd": (odd, 1.0)}, on_error="invalid")(make_batch(videos(1, 2)))


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def below_peak():
    """Bytes that can be taken before the peak of this process is passed."""
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return peak - pages * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_time_and_memory_are_kept_per_term(make_batch):
    def greedy(batch):
        torch.ones(below_peak() + 2**28, dtype=torch.uint8, device=DEVICE)  # touched: resident
        return batch.set(("score", "greedy"), batch["video", "fps"])

    composite = CompositeReward({"first": (first_pixel, 1.0), "greedy": (greedy, 1.0)})
    composite(make_batch(videos(1)))
    assert set(composite.seconds) == set(composite.gib) == {"first", "greedy"}
    assert min(composite.seconds.values()) > 0
    assert composite.gib["greedy"] > 0.2
    assert composite.gib["first"] < 0.1


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


def test_a_scorer_that_is_gone_is_not_asked_again_for_each_video(make_batch):
    asked = []

    def gone(batch):
        asked.append(len(batch))
        raise UnavailableError("no answer in 60 s")

    batch = make_batch(torch.zeros(3, 2, 3, 8, 8, dtype=torch.uint8))
    scored = CompositeReward({"gone": (gone, 1.0)}, on_error="invalid")(batch)
    assert asked == [3]
    assert not scored["next", "valid"].any()
    assert scored["score", "gone"].isnan().all()


class Wordless(Reward):
    """Has no number for black videos, and does not declare that it may lack one."""

    name, unit = "wordless", "none"

    def score(self, pixels, prompts, fps):
        levels = pixels[:, 0, 0, 0, 0].float()
        return torch.where(levels > 0, levels, math.nan)


def test_a_reward_that_lacks_a_number_undeclared_is_told_of_once_without_advice(
    make_batch, caplog, tmp_path
):
    for term in (Wordless(), CachedReward(Wordless(), tmp_path)):
        composite = CompositeReward({"mute": (term, 1.0)}, on_error="invalid")
        caplog.clear()
        for _ in range(2):
            batch = composite(make_batch(videos(7, 0, 0, 9)))
            assert batch["next", "valid"].flatten().tolist() == [True, False, False, True]
            assert batch["next", "reward"].flatten()[[0, 3]].tolist() == [7, 9]
        (line,) = [record.getMessage() for record in caplog.records]
        assert "wordless: scores of videos [1, 2] are not finite; " in line
        assert "on_error" not in line
        with pytest.raises(ValueError, match=r"'mute' scored videos \[1, 2\].*on_error='invalid'"):
            CompositeReward({"mute": (term, 1.0)})(make_batch(videos(7, 0, 0, 9)))


def latents(batch):
    return batch.set("look", batch["video", "latents"].mean(-1))


def test_a_composite_reads_what_its_terms_read_each_once():
    class Liked(Reward):
        name, unit, needs_text = "liked", "1", True

        def score(self, pixels, prompts, fps):
            return torch.ones(len(pixels))

    def composite(*terms, **options):
        return CompositeReward({str(i): (term, 1) for i, term in enumerate(terms)}, **options)

    seen, fps, text = ("video", "pixels"), ("video", "fps"), ("prompt", "text")
    far = WholeVideo(Liked(), "far")
    renamed = SharpnessVQ().set_keys(pixels="clip", fps="rate")
    own = TensorDictModule(latents, in_keys=[("video", "latents")], out_keys=["look"])
    assert composite(SharpnessVQ(), FlowMQ()).in_keys == [seen, fps]
    assert composite(SharpnessVQ(), Liked()).in_keys == [seen, fps, text]
    assert composite(renamed, normalise="group").in_keys == ["clip", "rate", ("prompt", "group")]
    assert composite(far).in_keys == [("video", "overview"), ("video", "overview_fps"), text]
    assert composite(own, renamed).in_keys == [("video", "latents"), "clip", "rate"]
    assert composite(first_pixel).in_keys == [seen, fps, text]  # it does not say


def test_terms_without_pixels_and_with_an_entry_of_their_own_are_summed():
    own = TensorDictModule(lambda x: x.mean(-1, keepdim=True), in_keys=["x"], out_keys=["look"])
    batch = TensorDict({"x": torch.tensor([[1.0, 3.0], [5.0, 5.0]])}, batch_size=[2])
    found = CompositeReward({"mine": (own, 2.0)})(batch)
    assert found["next", "reward"].flatten().tolist() == [4.0, 10.0]
    assert found["score", "mine"].flatten().tolist() == [2.0, 5.0]
    assert "look" not in found
    with pytest.raises(KeyError, match=r"the batch lacks \['x'\].*set_keys"):
        CompositeReward({"mine": (own, 2.0)})(TensorDict(batch_size=[2]))


def test_every_entry_of_a_composite_can_have_another_name(make_batch):
    terms = {"vq": (SharpnessVQ(), 1.0), "first": (first_pixel, 2.0)}
    usual = make_batch(videos(1, 4), ["a", "b"])
    usual["prompt", "group"] = torch.tensor([0, 0])
    other = TensorDict({"clip": usual["video", "pixels"], "rate": usual["video", "fps"]}, [2])
    other["words"], other["team"] = ["a", "b"], usual["prompt", "group"]
    expected = CompositeReward(terms, normalise="group")(usual)

    reads, writes = ["clip", "rate", "words", "team"], [("s", "vq"), "first", "ok", "total"]
    blurred = [("s", "vq"), ("first",), ("total",)]
    by_lists = CompositeReward(terms, normalise="group", in_keys=reads, out_keys=writes)
    by_name = CompositeReward(terms, normalise="group").set_keys(
        pixels="clip", fps="rate", text="words", group="team", reward="total", valid="ok"
    )
    by_name.set_keys(vq=("s", "vq"), first="first")
    for composite in (by_lists, by_name):
        assert (composite.in_keys, composite.out_keys[:4]) == (reads, writes)
        found = composite(other.copy())
        assert torch.equal(found["total"], expected["next", "reward"])
        assert torch.equal(found["s", "vq"], expected["score", "vq"])
        assert torch.equal(found["ok"], expected["next", "valid"])
        new = {*found.keys(True, True)} - {*other.keys(True, True)}
        assert new == {*composite.out_keys} == {*writes, *(("rounding", *key) for key in blurred)}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"in_keys": "pixels"}, TypeError, "in_keys is 'pixels'. Give a list"),
        ({"in_keys": {"a": "b"}}, TypeError, "Give a list of keys"),
        ({"in_keys": ["a"]}, ValueError, r"in_keys has 1 entries. Give 2 keys, for \[\('video'"),
        ({"in_keys": ["a", 3]}, TypeError, "in_keys holds 3. A key is a text"),
        ({"out_keys": ["a", "a", "b"]}, ValueError, "names an entry twice"),
    ],
)
def test_keys_that_are_none_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        CompositeReward({"vq": (SharpnessVQ(), 1.0)}, **options)


def test_an_entry_that_there_is_not_cannot_be_renamed():
    composite = CompositeReward({"vq": (SharpnessVQ(), 1.0)})
    with pytest.raises(ValueError, match=r"no entry 'pixel'. Did you mean 'pixels'"):
        composite.set_keys(pixel="clip")
    with pytest.raises(ValueError, match="names an entry twice"):
        composite.set_keys(valid=("next", "reward"))
    with pytest.raises(TypeError, match=r"fps holds \(\)"):
        composite.set_keys(fps=())


def test_scores_that_are_combined_are_one_for_each_video(make_batch):
    composite = CompositeReward({"first": (first_pixel, 1.0)})
    batch = make_batch(videos(1, 4))
    with pytest.raises(KeyError, match=r"lacks \('score', 'first'\)"):
        composite.combine(batch)
    batch["score", "first"] = torch.tensor([1.0, 4.0])
    assert composite.combine(batch)["next", "reward"].tolist() == [[1.0], [4.0]]
    batch["score", "first"] = torch.ones(2, 2)
    with pytest.raises(ValueError, match=r"\('score', 'first'\) is torch.float32 \(2, 2\)"):
        composite.combine(batch)
