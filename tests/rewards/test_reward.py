import pytest
import torch
from tensordict import TensorDict

from astrolabe_rewards import AttributeTA, FlowMQ, PixelCheck, Reward, SharpnessVQ, TinyTextReward

ALL = [AttributeTA, FlowMQ, PixelCheck, SharpnessVQ, TinyTextReward]


class Brightness(Reward):
    name = "brightness"
    unit = "0 to 1"

    def score(self, pixels, prompts, fps):
        return pixels.float().mean((1, 2, 3, 4)) / 255


class Length(Reward):
    name = "length"
    unit = "letters"
    needs_text = True

    def score(self, pixels, prompts, fps):
        return torch.tensor([float(len(prompt)) for prompt in prompts])


def videos(*shape):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (*shape, 9, 3, 48, 48), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("kind", ALL)
def test_permuting_a_batch_permutes_scores(kind, make_batch):
    reward, pixels = kind(), videos(3)
    pixels[0] = 16
    pixels[0, :, 0, 10:30, 10:30] = 226
    texts = ["a red square spins", "a blue circle moves left", "a dark green wood"]
    order = torch.tensor([2, 0, 1])
    first = reward(make_batch(pixels, texts))["score", reward.name]
    second = reward(make_batch(pixels[order], [texts[i] for i in order]))["score", reward.name]
    torch.testing.assert_close(second, first[order], atol=1e-6, rtol=0)


def test_batches_of_two_dimensions_are_scored_in_place(make_batch):
    pixels = videos(2, 3)
    scores = Brightness()(make_batch(pixels))["score", "brightness"]
    assert scores.shape == (2, 3, 1)
    torch.testing.assert_close(scores[..., 0], pixels.float().mean((2, 3, 4, 5)) / 255)


def test_texts_of_two_dimensions_stay_with_their_videos(make_batch):
    texts = [["a", "bb", "ccc"], ["dddd", "eeeee", "ffffff"]]
    scores = Length()(make_batch(videos(2, 3), texts))["score", "length"]
    assert scores[..., 0].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_one_text_may_serve_a_whole_batch(make_batch):
    assert Length()(make_batch(videos(2), "abc"))["score", "length"].flatten().tolist() == [3, 3]


@pytest.mark.parametrize("kind", ALL)
def test_an_empty_batch_gives_no_scores(kind, make_batch):
    reward = kind()
    batch = make_batch(videos(2), ["a", "b"])[:0]
    assert reward(batch)["score", reward.name].shape == (0, 1)


def test_scores_may_take_part_in_a_loss(make_batch):
    scores = Brightness()(make_batch(videos(2)))["score", "brightness"]
    weight = torch.ones(1, requires_grad=True)
    (weight * scores).sum().backward()  # an inference tensor would be refused here
    assert weight.grad is not None


def test_keys_can_be_renamed():
    batch = TensorDict({"clip": videos(2), "rate": torch.ones(2)}, batch_size=[2])
    reward = Brightness(in_keys=["clip", "rate"], out_keys=["light"])
    assert reward(batch)["light"].shape == (2, 1)
    assert ("score", "brightness") not in batch.keys(True)


@pytest.mark.parametrize(
    ("pixels", "error", "message"),
    [
        (torch.zeros(1, 9, 3, 8, 8), TypeError, r"not torch.uint8.*clamp"),
        (torch.zeros(1, 9, 8, 8, 3, dtype=torch.uint8), ValueError, r"movedim\(-1, -3\)"),
        (torch.zeros(1, 9, 1, 8, 8, dtype=torch.uint8), ValueError, "Repeat a grey channel"),
        (torch.zeros(1, 0, 3, 8, 8, dtype=torch.uint8), ValueError, "no frames"),
    ],
)
def test_wrong_pixels_are_refused_with_a_way_out(pixels, error, message, make_batch):
    with pytest.raises(error, match=message):
        Brightness()(make_batch(pixels))


def test_a_video_without_a_batch_dimension_is_refused():
    batch = TensorDict({"video": {"pixels": videos(1)[0], "fps": torch.ones(9)}}, batch_size=[])
    with pytest.raises(ValueError, match=r"pixels\[None\]"):
        Brightness()(batch)


def test_a_missing_entry_is_named(make_batch):
    with pytest.raises(KeyError, match=r"length: the batch lacks \[\('prompt', 'text'\)\]"):
        Length()(make_batch(videos(2)))


def test_a_prompt_that_is_no_text_is_refused(make_batch):
    with pytest.raises(TypeError, match="a prompt is 7, a int"):
        Length()(make_batch(videos(2), ["a", 7]))


def test_scores_that_are_not_finite_are_refused(make_batch):
    class Broken(Brightness):
        def score(self, pixels, prompts, fps):
            return torch.tensor([0.0, float("nan")])

    with pytest.raises(ValueError, match=r"videos \[1\] are not finite"):
        Broken()(make_batch(videos(2)))


def test_a_reward_that_may_fail_may_answer_with_nan_and_with_nothing_else(make_batch):
    class Judge(Brightness):
        may_fail = True
        answer = torch.tensor([0.5, torch.nan])

        def score(self, pixels, prompts, fps):
            return self.answer

    scores = Judge()(make_batch(videos(2)))["score", "brightness"]
    assert scores.flatten().isnan().tolist() == [False, True]
    judge = Judge()
    judge.answer = torch.tensor([torch.nan, -torch.inf])
    with pytest.raises(ValueError, match=r"videos \[1\] are not finite"):
        judge(make_batch(videos(2)))


def test_scores_of_the_wrong_shape_are_refused(make_batch):
    class Broken(Brightness):
        def score(self, pixels, prompts, fps):
            return torch.zeros(2, 1)

    with pytest.raises(ValueError, match=r"shape \(2, 1\) for 2 videos"):
        Broken()(make_batch(videos(2)))


def test_the_fingerprint_tells_settings_and_weights_apart():
    assert SharpnessVQ().fingerprint() == SharpnessVQ().fingerprint()
    assert SharpnessVQ().fingerprint() != SharpnessVQ(top=0.5).fingerprint()
    assert SharpnessVQ().fingerprint() != FlowMQ().fingerprint()
    changed = TinyTextReward()
    changed.matcher.heads["colour"].bias[0] += 1
    assert changed.fingerprint() != TinyTextReward().fingerprint()


def test_the_fingerprint_tells_lists_and_single_numbers_apart():
    class Listed(Brightness):
        def __init__(self, levels, scale=1.0):
            super().__init__()
            self.levels = levels
            self.register_buffer("scale", torch.tensor(scale))  # of no dimension

    assert Listed([1, 2]).fingerprint() == Listed([1, 2]).fingerprint()
    assert Listed([1, 2]).fingerprint() != Listed([1, 3]).fingerprint()
    assert Listed([1, 2]).fingerprint() != Listed([1, 2], 2.0).fingerprint()
    renamed = Brightness(in_keys=["clip", "rate"], out_keys=["light"])
    assert renamed.fingerprint() == Brightness().fingerprint()


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("shape", [(1, 48, 48), (2, 12, 10), (5, 7, 64)])
def test_short_and_small_videos_are_scored(kind, shape, make_batch):
    num_frames, height, width = shape
    pixels = videos(1)[:, :num_frames, :, :height, :width].contiguous()
    pixels = torch.nn.functional.pad(pixels, (0, width - pixels.shape[-1]))
    reward = kind()
    score = reward(make_batch(pixels, ["a red circle moves left"]))["score", reward.name]
    assert 0 <= float(score) <= 1
