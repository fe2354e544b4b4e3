"""Rewards on files, and as the reward functions of flow_grpo and TRL are called."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase

from astrolabe_eval import write_mp4
from astrolabe_rewards import CachedReward, CompositeReward, Reward
from astrolabe_rewards.errors import UnscoredError, VideoError


class Level(Reward):
    """First level of red, plus a hundredth of the rate; NaN for black."""

    name, unit, may_fail = "level", "0 to 255", True

    def score(self, pixels, prompts, fps):
        red = pixels[:, 0, 0, 0, 0].float()
        return torch.where(red == 0, torch.nan, red + fps / 100)


class Words(Reward):
    name, unit, needs_text = "words", "number", True

    def score(self, pixels, prompts, fps):
        return torch.tensor([float(len(prompt.split())) for prompt in prompts])


class Other(TensorDictModuleBase):
    in_keys, out_keys = [("video", "pixels"), ("prompt", "metadata")], [("score", "other")]

    def forward(self, batch):
        return batch.set(("score", "other"), torch.ones(len(batch)))


def video(red, frames=3, side=16):
    """uint8 [F, H, W, 3]."""
    pixels = np.zeros((frames, side, side, 3), np.uint8)
    pixels[..., 0] = red
    return pixels


def first(tensor):
    return torch.from_numpy(tensor).movedim(-1, -3)


#: Every form in which a video of red 51, 255 and 102 can come, of three frames or one.
FORMS = {
    "arrays, channels last": lambda videos: np.stack(videos),
    "arrays, floating": lambda videos: np.stack(videos).astype(np.float32) / 255,
    "tensor": lambda videos: first(np.stack(videos)),
    "tensor, bfloat16": lambda videos: (first(np.stack(videos)).float() / 255).bfloat16(),
    "list of arrays": lambda videos: [*videos],
    "list of tensors, mixed": lambda videos: [first(videos[0]), *map(torch.from_numpy, videos[1:])],
    "lists of arrays": lambda videos: [list(each) for each in videos],
    "lists of pictures": lambda videos: [list(map(Image.fromarray, each)) for each in videos],
    "tuple of floating": lambda videos: tuple(each / 255 for each in videos),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("frames", [3, 1])
def test_a_video_has_the_same_score_in_every_form(form, frames):
    given = FORMS[form]([video(red, frames) for red in (51, 255, 102)])
    scores, info = Level().as_reward_fn(fps=16.0)(given, ["a", "b", "c"], {}, only_strict=False)
    rounded = 1 if "bfloat16" in form else 1e-4
    assert scores == pytest.approx([51.16, 255.16, 102.16], abs=rounded)
    assert info == {"scores": {"level": scores}, "unscored": 0}


@pytest.mark.parametrize("form", ["tensor", "array", "pictures", "frames"])
def test_pictures_are_videos_of_one_frame_and_need_no_rate(form):
    pictures = [video(red, 1)[0] for red in (51, 255)]
    given = {
        "tensor": first(np.stack(pictures)).float() / 255,  # as flow_grpo gives them: [N, 3, H, W]
        "array": np.stack(pictures),
        "pictures": [Image.fromarray(each) for each in pictures],
        "frames": [pictures[0], first(pictures[1])],
    }[form]
    assert Level().as_reward_fn()(given, ["a", "b"], None)[0] == pytest.approx([51.01, 255.01])


def composite(**options):
    terms = {"level": (Level(), 1.0), "words": (Words(), 10.0)}
    return CompositeReward(terms, on_error="invalid", **options)


def test_flow_grpo_gets_every_score_and_the_sum_it_trains_on():
    fn = composite().as_reward_fn(fps=100)
    videos = [video(51), video(0, frames=5), video(9, side=8)]  # of three sizes
    scores, info = fn(videos, ("a", "b c", "d"), [{"fps": 200}, {}, {}], None, only_strict=True)
    # What its loops do with them.
    rows = {key: torch.as_tensor(value).float() for key, value in scores.items()}
    assert list(rows) == ["level", "words", "avg"]
    assert rows["avg"].nan_to_num(-1).tolist() == [53 + 10, -1, 10 + 10]
    assert rows["words"].tolist() == [1, 2, 1]
    assert info["unscored"] == 1
    plain, info = composite().as_reward_fn(fps=100, detailed=False)(videos, ["a"] * 3, None)
    assert torch.as_tensor(plain).nan_to_num(-1).tolist() == [62, -1, 20]  # as DDPOTrainer wants
    assert info["scores"]["words"] == [1, 1, 1]


def test_trl_gets_one_number_for_each_completion_and_none_where_there_is_none(tmp_path):
    write_mp4(tmp_path / "a.mp4", video(255).transpose(0, 3, 1, 2), fps=50)
    fn = composite().as_reward_fn(fps=100)
    assert fn.__name__ == "level+words"
    chats = [[{"role": "user", "content": [{"type": "text", "text": "a red wall"}]}], "b", "c"]
    path = str(tmp_path / "a.mp4")
    answers = [[{"role": "assistant", "content": [{"type": "video", "video": path}]}]]
    answers += [video(0), video(9)]
    columns = {"completion_ids": [[1], [2], [3]], "trainer_state": None, "fps": [1, 2, 300]}
    found = fn(prompts=chats, completions=answers, **columns)
    assert found[1] is None
    assert found[2] == 12 + 10
    assert found[0] == pytest.approx(255.5 + 30, abs=3)  # H.264 changes levels a little
    alone = Level().as_reward_fn()(prompts=["a"], completions=[[{"content": path}]])
    assert alone == [found[0] - 30]


def test_videos_of_one_prompt_compete_whatever_their_size():
    terms = {"level": (Level(), 1.0)}
    fn = CompositeReward(terms, normalise="group").as_reward_fn(fps=1, batch_size=1)
    videos = [video(1), video(5, side=8), video(9), video(7, frames=4)]
    assert fn(videos, ["a", "b", "a", "b"])[0]["avg"] == pytest.approx([-1, -1, 1, 1])


def test_renamed_rewards_and_metadata_are_found():
    def noted(batch):
        rows = [row["bonus"] for row in batch["prompt", "metadata"]]
        return batch.set(("score", "noted"), torch.tensor(rows))

    renamed = Level().set_keys(pixels="clip", fps=("a", "rate"), level="red")
    reward = CompositeReward({"level": (renamed, 1.0), "noted": (noted, 1.0)})
    reward.set_keys(clip="mine", reward="sum")
    scores, _ = reward.as_reward_fn(fps=100)([video(5)] * 2, ["a"] * 2, [{"bonus": 1.0}] * 2)
    assert scores == {"level": [6, 6], "noted": [1, 1], "avg": [7, 7]}
    assert renamed.as_reward_fn(fps=100)([video(5)])[0] == [6]
    fn = reward.as_reward_fn(fps=100)
    columns = {"bonus": [3.0, 5.0], "completion_ids": [[1], [2]], "trainer_state": None}
    assert fn(prompts=["a"] * 2, completions=[video(5)] * 2, **columns) == [9, 11]
    rows = [{"bonus": 2.0}, {"bonus": 4.0}]
    assert fn(prompts=["a"] * 2, completions=[video(5)] * 2, metadata=rows) == [8, 10]


def test_an_entry_that_only_has_the_usual_name_is_not_read():
    def words(batch):  # says nothing of what it reads
        texts = batch.get(("prompt", "text"), None)
        return batch.set(("score", "words"), torch.full((2,), 0.0 if texts is None else 1.0))

    reward = CompositeReward({"words": (words, 1.0)}).set_keys(text="caption")
    batch = TensorDict({"video": {"pixels": torch.zeros(2, 3, 3, 8, 8, dtype=torch.uint8)}}, [2])
    batch["prompt", "text"] = ["stale"] * 2
    assert reward(batch)["next", "reward"].tolist() == [[0], [0]]
    assert list(batch["prompt", "text"]) == ["stale"] * 2
    batch["caption"] = ["a"] * 2
    assert reward(batch)["next", "reward"].tolist() == [[1], [1]]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"pixels": "clip", "fps": "clip"}, "names 'clip' twice"),
        ({"reward": ("video", "pixels")}, r"\('video', 'pixels'\) is read and would be written"),
    ],
)
def test_entries_that_would_replace_each_other_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        composite().set_keys(**keys)


def test_a_missing_entry_is_named_once_and_only_rewards_are_cached(tmp_path):
    with pytest.raises(KeyError, match=r"lacks \[\('video', 'fps'\), \('prompt', 'text'\)\]; it"):
        composite()(TensorDict({"video": {"pixels": torch.zeros(1, 1, 3, 8, 8).byte()}}, [1]))
    with pytest.raises(TypeError, match=r"inner is .*, no Reward"):
        CachedReward(print, tmp_path)


def test_files_are_scored_in_their_order(tmp_path):
    paths = []
    for number, (red, fps, side) in enumerate([(200, 8, 16), (100, 24, 32), (150, 8, 16)]):
        paths.append(tmp_path / f"{number}.mp4")
        write_mp4(paths[-1], video(red, side=side).transpose(0, 3, 1, 2), fps)
    scores = composite().score_files(map(str, paths), ["a b", "a", "a b c"], batch_size=1)
    assert list(scores) == ["level", "words", "total"]
    assert scores["words"] == [2, 1, 3]
    assert scores["level"] == pytest.approx([200.08, 100.24, 150.08], abs=3)
    assert scores["total"] == pytest.approx(
        [level + 10 * words for level, words in zip(scores["level"], [2, 1, 3], strict=True)]
    )
    assert Level().score_files(paths) == {"level": scores["level"]}
    assert composite().score_files([], []) == {"level": [], "words": [], "total": []}


GOOD = [video(1), video(2)]
TWO = ["a", "b"]


@pytest.mark.parametrize(
    ("videos", "prompts", "options", "error", "message"),
    [
        (GOOD, ["a"], {}, ValueError, r"1 prompts for 2 videos.*\[frames\]"),
        (GOOD, "ab", {}, TypeError, "prompts: 'ab' is a str. Give a list"),
        (GOOD, [1, "b"], {}, TypeError, "prompt 0 is 1. Give a text"),
        (GOOD, TWO, {"metadata": [{}]}, ValueError, "metadata are 1 entries for 2 videos"),
        (GOOD, TWO, {"metadata": {"fps": 3}}, TypeError, "is a dict. Give a list"),
        (GOOD, TWO, {"metadata": [{"fps": 0}, {}]}, ValueError, "fps of video 0 is 0"),
        (GOOD, TWO, {"ref_images": [1]}, ValueError, "ref_images are given"),
        (GOOD, TWO, {"strict": True}, TypeError, "strict mean nothing here"),
        ("a.mp4", TWO, {}, TypeError, "videos are a str. Give a list"),
        (None, TWO, {}, TypeError, "videos are a NoneType"),
        (video(1), ["a"], {}, ValueError, "1 prompts for 3 videos"),
        (torch.zeros(3, 8, 8), ["a"], {}, ValueError, r"shape \(3, 8, 8\). Give \[N, F, 3"),
        ([torch.zeros(3, 5, 8, 8)], ["a"], {}, ValueError, r"frames first, video.movedim\(0, 1\)"),
        ([np.zeros((2, 8, 8, 4), np.uint8)], ["a"], {}, ValueError, "leave the fourth channel"),
        ([np.zeros((2, 8, 8, 1), np.uint8)], ["a"], {}, ValueError, "grey channel three times"),
        ([video(200) / 1.0], ["a"], {}, ValueError, r"from 0 to 200.*\.to\(torch\.uint8\)"),
        ([video(255) / 127.5 - 1], ["a"], {}, ValueError, r"from -1 to 1.*\(video \+ 1\) / 2"),
        ([video(255) * np.nan], ["a"], {}, ValueError, "Mend what is not finite"),
        ([video(5).astype(np.int64)], ["a"], {}, TypeError, "torch.int64. Give uint8"),
        ([video(5) > 2], ["a"], {}, TypeError, "of bool"),
        ([[]], ["a"], {}, ValueError, "no frames"),
        ([[video(5, 1)[0], video(5, 1, 8)[0]]], ["a"], {}, ValueError, "frames have the shapes"),
        ([3], ["a"], {}, TypeError, "video 0: it is a int"),
        (["nowhere.mp4"], ["a"], {}, VideoError, "video 0: There is no video file 'nowhere.mp4'"),
        ([Image.new("RGBA", (8, 8))], ["a"], {}, ValueError, "transparent"),
        ([Image.new("F", (8, 8))], ["a"], {}, ValueError, r"mode 'F'. Convert it"),
    ],
)
def test_what_is_no_video_or_has_no_prompt_is_refused(videos, prompts, options, error, message):
    with pytest.raises(error, match=message):
        Level().as_reward_fn(fps=8)(videos, prompts, **options)


def test_a_rate_that_nobody_says_is_asked_for():
    with pytest.raises(ValueError, match=r"video 1 has 3 frames and no rate.*fps=16"):
        Level().as_reward_fn()([video(1, frames=1), video(1)], TWO)
    for fps in (0, -1.0, float("nan"), "16", True):
        with pytest.raises(ValueError, match="fps is"):
            Level().as_reward_fn(fps=fps)


def test_a_prompt_that_is_needed_is_asked_for(tmp_path):
    path = tmp_path / "missing.mp4"  # never looked at
    renamed = Words(in_keys=["clip", "rate", "caption"])
    for reward in (Words(), renamed, CompositeReward({"words": (Words(), 1.0)})):
        with pytest.raises(ValueError, match=r"prompts are read, and the reward function got none"):
            reward.as_reward_fn(fps=8)(GOOD)
        with pytest.raises(ValueError, match=r"score_files got none. Give it prompts, one text"):
            reward.score_files([path])
    by_prompt = CompositeReward({"level": (Level(), 1.0)}, normalise="group")
    with pytest.raises(ValueError, match="prompts are read, and score_files got none"):
        by_prompt.score_files([path])
    other = CompositeReward({"other": (Other(), 1.0)})
    with pytest.raises(ValueError, match=r"metadata are read, and the reward function got none"):
        other.as_reward_fn(fps=8)(GOOD)
    with pytest.raises(ValueError, match=r"\('prompt', 'metadata'\)\] are read, which score_files"):
        other.score_files([path])
    with pytest.raises(VideoError, match=r"missing\.mp4"):
        Words().score_files([path], ["a"])
    with pytest.raises(TypeError, match="Give a list of videos"):
        Level().score_files(str(tmp_path / "a.mp4"))
    with pytest.raises(TypeError, match=r"paths\[0\] is a ndarray"):
        Level().score_files(GOOD)


def test_a_score_that_may_not_be_missing_stops():
    class Strict(Level):
        may_fail = False

    with pytest.raises(UnscoredError, match="not finite"):
        Strict().as_reward_fn(fps=8)([video(0)])


def test_pictures_are_taken_as_they_are_shown():
    tall = np.zeros((4, 2, 3), np.uint8)
    tall[0, 0] = 90  # the corner that is first after a half turn is the last one now
    picture = Image.fromarray(tall[::-1, ::-1].copy())
    picture.getexif()[0x112] = 3
    assert Level().as_reward_fn()([picture])[0] == pytest.approx([90.01])


def test_without_pyav_files_are_refused_by_what_installs_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs av\. Install it: pip install"):
        Level().score_files([tmp_path / "a.mp4"])
