import pytest
import torch

from astrolabe_rewards import CompositeReward, Reward
from astrolabe_rewards.cache import CachedReward
from astrolabe_rewards.errors import RewardError


def kind(**declared):
    """A class of rewards that declares this; None takes something away."""

    def score(self, pixels, prompts, fps):
        return pixels.flatten(1)[:, 0].float()

    whole = {"name": "first", "unit": "level", "score": score} | declared
    return type("Odd", (Reward,), {key: value for key, value in whole.items() if value is not None})


def asked_by_position(self, one, two, three):
    return one.flatten(1)[:, 0].float()


def two_only(self, pixels, prompts):
    return pixels


def one_more(self, pixels, prompts, fps, strength):
    return pixels


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"name": None}, r"Odd declares no name\. Write name = '\.\.\.'"),
        ({"name": ""}, "Odd.name is empty"),
        ({"name": 3}, "Odd.name is 3, a int. Give a str"),
        ({"unit": None}, "Odd declares no unit"),
        ({"needs_text": "yes"}, "Odd.needs_text is 'yes', a str. Give a bool"),
        ({"may_fail": 1}, "Odd.may_fail is 1, a int. Give a bool"),
        ({"need_text": True}, "would have no effect. Did you mean 'needs_text'"),
        ({"needs_texts": True}, "Did you mean 'needs_text'"),
        ({"mayfail": True}, "Did you mean 'may_fail'"),
        ({"units": "level"}, "Did you mean 'unit'"),
        ({"license": "MIT"}, "Did you mean 'licence'"),
        ({"scope": "video"}, r"would have no effect.*WholeVideo\(reward, name\)"),
        ({"weight": 0.5}, r"CompositeReward\(\{name: \(reward, 0\.5\)\}\)"),
        ({"higher_is_better": False}, "return the negative"),
        ({"score": None}, "Reward without a score method"),
        ({"score": two_only}, r"Odd\.score\(self, pixels, prompts\) cannot be called"),
        ({"score": one_more}, "missing a required argument: 'strength'"),
    ],
)
def test_a_wrong_declaration_is_refused_when_the_reward_is_made(declared, message):
    with pytest.raises(RewardError, match=message):
        kind(**declared)()


def test_what_is_ones_own_may_be_declared_beside(make_batch):
    odd = kind(threshold=0.5, frames=8, names=["a", "b"], score=asked_by_position)()
    batch = odd(make_batch(torch.full((1, 2, 3, 4, 4), 9, dtype=torch.uint8)))
    assert batch["score", "first"].tolist() == [[9.0]]


class Polite(Reward):
    """Reads the prompt, and says so or not."""

    name = "polite"
    unit = "0 or 1"

    def score(self, pixels, prompts, fps):
        return torch.tensor([float("please" in prompt) for prompt in prompts])


class Declared(Polite):
    needs_text = True


PIXELS = torch.zeros(2, 2, 3, 4, 4, dtype=torch.uint8)
TEXTS = ["a cat, please", "a cat"]


@pytest.mark.parametrize("on_error", ["raise", "invalid"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_reward_reads_prompts_only_if_it_says_so(on_error, cached, tmp_path, make_batch):
    def reward(inner):
        inner = CachedReward(inner, tmp_path) if cached else inner
        return CompositeReward({"polite": (inner, 1.0)}, on_error=on_error)

    scored = reward(Declared())(make_batch(PIXELS, TEXTS))
    assert scored["score", "polite"].flatten().tolist() == [1.0, 0.0]
    with pytest.raises(RewardError, match=r"polite: score failed.*needs_text = True"):
        reward(Polite())(make_batch(PIXELS, TEXTS))


def test_an_error_that_prompts_have_no_part_in_keeps_its_type(make_batch):
    def score(self, pixels, prompts, fps):
        return pixels + "one"

    with pytest.raises(TypeError, match="unsupported operand"):
        kind(score=score)()(make_batch(PIXELS))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([1.0, 2.0], "score returned a list for 2 videos"),
        (1.0, "score returned a float"),
        (None, "score returned a NoneType"),
        (torch.tensor([1, 2]), r"score returned torch\.int64"),
        (torch.ones(2, dtype=torch.complex64), r"score returned torch\.complex64"),
        (torch.ones(2, 1), r"score returned shape \(2, 1\) for 2 videos"),
        (torch.ones(()), r"score returned shape \(\) for 2 videos"),
        (torch.ones(3), r"score returned shape \(3,\) for 2 videos"),
    ],
)
def test_an_answer_that_is_no_score_is_refused_by_name(answer, message, make_batch):
    odd = kind(score=lambda self, pixels, prompts, fps: answer, may_fail=True)()
    with pytest.raises(RewardError, match=f"first: {message}"):
        CompositeReward({"first": (odd, 1.0)}, on_error="invalid")(make_batch(PIXELS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_of_any_floating_type_are_taken(dtype, make_batch):
    odd = kind(score=lambda self, pixels, prompts, fps: torch.tensor([0.5, 2.0], dtype=dtype))()
    scores = odd(make_batch(PIXELS))["score", "first"]
    assert scores.dtype == torch.float32
    assert scores.flatten().tolist() == [0.5, 2.0]


def test_a_score_beyond_float32_is_not_finite(make_batch):
    def score(self, pixels, prompts, fps):
        return torch.tensor([1e300, 1.0], dtype=torch.float64)

    with pytest.raises(ValueError, match=r"videos \[0\] are not finite"):
        kind(score=score)()(make_batch(PIXELS))


@pytest.mark.parametrize("base", [Reward, torch.nn.Module])
def test_a_module_whose_constructor_leaves_out_that_of_its_base_is_refused(base):
    def nothing(self):
        pass

    careless = type("Odd", (base,), {"name": "odd", "unit": "level", "__init__": nothing})()
    with pytest.raises(RewardError, match=r"constructor of Odd does not call super\(\)"):
        CompositeReward({"odd": (careless, 1.0)})
