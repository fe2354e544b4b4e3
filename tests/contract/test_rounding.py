"""What rounding a score took along to its advantage: rewards write it, objectives read it."""

from typing import ClassVar

import pytest
import torch
from tensordict import TensorDict

from astrolabe_objectives import GroupAdvantage, RankDisagreement, group_statistics
from astrolabe_rewards import CompositeReward, Reward
from astrolabe_rewards.scorer import scores_of
from astrolabe_rewards.whole_video import WholeVideo
from astrolabe_rewards.wire import Answer, Request

SHORT = [torch.bfloat16, torch.float16]


def jitter(first, dtype):
    """Four scores that differ by one last place."""
    score = torch.tensor(first, dtype=dtype)
    return torch.stack([score, torch.nextafter(score, torch.tensor(9e4, dtype=dtype))] * 2)


class Given(Reward):
    """Gives the scores it was made with."""

    name: ClassVar[str] = "given"
    unit: ClassVar[str] = "any"

    def __init__(self, scores):
        super().__init__()
        self.kept = scores

    def score(self, pixels, prompts, fps):
        return self.kept


def plain(scores, name="given"):
    return lambda batch: batch.set(("score", name), scores[:, None])


def whole(scores):
    return WholeVideo(Given(scores), "given")


def served(scores):
    """As `Given`, but its scores pass through what a server sends."""

    class Served(Given):
        def score(self, pixels, prompts, fps):
            request = Request(pixels, [""] * len(pixels), fps)
            answer = Answer(scores_of(Given(scores), "given", request), [None] * len(pixels), "")
            return Answer.unpack(bytearray(answer.pack()), len(pixels)).scores

    return Served(scores)


def make_batch(count):
    pixels = torch.zeros(count, 2, 3, 4, 4, dtype=torch.uint8)
    video = {"pixels": pixels, "fps": torch.full((count,), 16.0)}
    video |= {"overview": pixels, "overview_fps": video["fps"]}
    prompt = {"group": torch.arange(count) // 4}
    return TensorDict({"video": video, "prompt": prompt}, batch_size=[count])


def advantage(batch, **settings):
    return GroupAdvantage(std="group", **settings)(batch)["advantage"].squeeze(-1)


@pytest.mark.parametrize("normalise", ["none", "running", "group"])
@pytest.mark.parametrize("make", [Given, plain, whole, served])
@pytest.mark.parametrize("dtype", SHORT)
def test_the_last_place_of_a_score_of_16_bits_is_no_advantage(dtype, make, normalise):
    # The second group differs in truth, so that its spread is no floor for the first.
    scores = torch.cat([jitter(0.5, dtype), torch.tensor([0.1, 0.2, 0.8, 0.9]).to(dtype)])
    batch = CompositeReward({"given": (make(scores), 2.0)}, normalise=normalise)(make_batch(8))
    assert batch["score", "given"].dtype == batch["next", "reward"].dtype == torch.float32
    alone = {"mode": "per_reward", "rewards": {"given": 1.0}}
    for settings in ({}, alone, {"reward_key": ("score", "given")}, {"mode": "rank"}):
        found = advantage(batch, **settings)
        assert (found[:4] == 0).all()
        assert found[4:].abs().min() > 0.2
    assert group_statistics(batch)["advantage/zero_std_fraction"] == 0.5


@pytest.mark.parametrize("dtype", SHORT)
def test_a_reward_alone_says_the_rounding_of_its_scores(dtype):
    batch = Given(jitter(0.5, dtype))(make_batch(4))
    assert (advantage(batch, reward_key=("score", "given")) == 0).all()
    batch["score", "other"] = torch.arange(4.0)[:, None]
    batch["next", "valid"] = torch.ones(4, 1, dtype=torch.bool)
    RankDisagreement("given", ["other"])(batch)
    # All are ranked alike by what differs by rounding alone: the worst of the other stands out.
    assert batch["kl", "selected"].flatten().tolist() == [True, False, False, False]


@pytest.mark.parametrize("normalise", ["none", "fixed"])
def test_terms_that_cancel_leave_no_advantage(normalise):
    first = torch.tensor([1e4, 1e4 + 1e-3, 1e4 - 1e-3, 1e4])
    second = torch.tensor([9999.65, 9999.65, 9999.651, 9999.65])
    assert len((first - second).unique()) > 2
    module = CompositeReward(
        {"given": (plain(first), 1.0), "b": (plain(second, "b"), -1.0)},
        normalise=normalise,
        statistics={"given": (0.0, 1.0), "b": (0.0, 1.0)} if normalise == "fixed" else None,
    )
    assert (advantage(module(make_batch(4))) == 0).all()


def test_what_16_bits_can_tell_apart_counts_in_full():
    scores = torch.tensor([1.0, 1.125, 1.25, 1.375])
    exact = advantage(CompositeReward({"given": (Given(scores), 1.0)})(make_batch(4)))
    short = CompositeReward({"given": (Given(scores.bfloat16()), 1.0)})(make_batch(4))
    assert advantage(short).equal(exact)
