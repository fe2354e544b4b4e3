import pytest
import torch
from tensordict import TensorDict

from astrolabe_rewards import CompositeReward, SharpnessVQ
from astrolabe_rewards.errors import RewardError
from astrolabe_rewards.whole_video import WholeVideo


def batch(shape=(2,)):
    generator = torch.Generator().manual_seed(0)
    pixels = [
        torch.randint(0, 256, (*shape, n, 3, 24, 24), dtype=torch.uint8, generator=generator)
        for n in (5, 4)
    ]
    video = {"pixels": pixels[0], "fps": torch.full(shape, 16.0)}
    video |= {"overview": pixels[1], "overview_fps": torch.full(shape, 2.0)}
    return TensorDict({"video": video}, batch_size=shape)


@pytest.mark.parametrize("shape", [(2,), (2, 3)])
def test_a_reward_sees_the_overview_in_place_of_the_window(shape):
    given = batch(shape)
    expected = batch(shape)
    expected["video", "pixels"] = expected["video", "overview"]
    found = WholeVideo(SharpnessVQ(), "whole")(given)
    assert torch.equal(found["score", "whole"], SharpnessVQ()(expected)["score", "sharpness_vq"])
    assert given["video", "pixels"].shape[-4] == 5  # the window itself stays


def test_a_callable_gets_the_rate_of_the_overview():
    def rate(td):
        return td.set(("score", "rate"), td["video", "fps"][:, None])

    assert WholeVideo(rate, "rate")(batch())["score", "rate"].tolist() == [[2.0], [2.0]]


def test_window_and_whole_video_are_summed_side_by_side():
    reward = CompositeReward(
        {"near": (SharpnessVQ(), 1.0), "far": (WholeVideo(SharpnessVQ(), "far"), 0.5)}
    )
    found = reward(batch())
    near, far = found["score", "near"], found["score", "far"]
    assert not torch.equal(near, far)
    torch.testing.assert_close(found["next", "reward"], near + 0.5 * far)


def test_a_batch_without_an_overview_is_refused():
    given = batch()
    del given["video", "overview"]
    with pytest.raises(KeyError, match="overview=16"):
        WholeVideo(SharpnessVQ(), "whole")(given)


def test_a_callable_must_write_its_score():
    with pytest.raises(RewardError, match="did not write"):
        WholeVideo(lambda td: td, "whole")(batch())
