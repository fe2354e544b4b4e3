"""Candidates that share a history, against videos that are made one by one."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from tensordict import NonTensorStack, TensorDict
from torch import nn

from astrolabe_rollout.codec import PatchCodec
from astrolabe_rollout.geometry import Geometry
from astrolabe_rollout.group_streaming import GroupStreamingPolicy
from astrolabe_rollout.model import VideoModel
from astrolabe_rollout.schedule import FlowSchedule
from astrolabe_rollout.streaming import StreamingPolicy
from astrolabe_rollout.transformer import CausalWan

GROUPS, SIZE, WINDOW = 2, 3, 6


class Words(nn.Module):
    """Embeddings of prompts that differ."""

    def embed(self, prompts):
        generators = [torch.Generator().manual_seed(len(prompt)) for prompt in prompts]
        return torch.stack([torch.randn(5, 8, generator=g) for g in generators])


def small_model(window=9, sink=3, relative=True, **options):
    torch.manual_seed(0)
    network = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        text_dim=8,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    wan = CausalWan(network, Geometry(32, 32, window=window, sink=sink), relative)
    codec = PatchCodec(width=8)
    codec.basis.normal_(std=0.05)
    return VideoModel(wan, Words(), codec, FlowSchedule(3.0), **options).freeze()


def batch(model, index, scripts=("a cat", "a dog runs"), scene_windows=0):
    texts = [script for script in scripts for _ in range(SIZE)]
    shown = [
        text.split("|")[min(index // scene_windows, 1)].strip() if scene_windows else text
        for text in texts
    ]
    return TensorDict(
        {
            "prompt": {
                "embeds": model.text(shown),
                "seed": torch.arange(GROUPS * SIZE) + 100,
                "group": torch.arange(GROUPS).repeat_interleave(SIZE),
                "script": NonTensorStack(*texts),
                "history_seed": torch.tensor([7, 8]).repeat_interleave(SIZE),
            },
            "window": {"index": torch.full((GROUPS * SIZE,), index)},
        },
        batch_size=[GROUPS * SIZE],
    )


def histories(model, windows, scripts=("a cat", "a dog runs")):
    """The history of each group by the ordinary policy, and the policy at its end."""
    policy = StreamingPolicy(model, WINDOW)
    parts = []
    for window in range(windows):
        data = TensorDict(
            {
                "prompt": {"embeds": model.text(list(scripts)), "seed": torch.tensor([7, 8])},
                "window": {"index": torch.full((GROUPS,), window)},
            },
            batch_size=[GROUPS],
        )
        parts.append(policy(data))
    return parts, policy


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_a_first_window_has_no_history():
    model = small_model()
    found = GroupStreamingPolicy(model, WINDOW)(batch(model, 0))
    expected = StreamingPolicy(model, WINDOW)(batch(model, 0))
    close(found["video", "latents"], expected["video", "latents"])
    assert torch.equal(found["video", "pixels"], expected["video", "pixels"])
    assert not found["window", "context"].any()


@pytest.mark.parametrize("kind", [StreamingPolicy, GroupStreamingPolicy])
def test_each_window_of_each_video_has_noise_of_its_own(kind):
    model = small_model()
    for parameter in model.transformer.network.proj_out.parameters():
        parameter.zero_()  # without a velocity, a video is its noise
    policy = kind(model, WINDOW, decode=False)
    videos = torch.cat([policy(batch(model, k))["video", "latents"] for k in range(3)])
    alike = torch.corrcoef(videos.flatten(1)) - torch.eye(len(videos))
    assert alike.abs().max() < 0.2  # of 1536 independent numbers: 0.03


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("start", [1, 2, 4])
def test_candidates_go_on_from_the_history_of_their_group(start, relative):
    model = small_model(relative=relative)
    found = GroupStreamingPolicy(model, WINDOW)(batch(model, start))
    _, policy = histories(model, start)
    for member in range(SIZE):  # each candidate alone, on a copy of the history
        _, policy = histories(model, start)
        rows = torch.tensor([member, SIZE + member])
        alone = batch(model, start)[rows].select(
            ("prompt", "embeds"), ("prompt", "seed"), ("window", "index")
        )
        expected = policy(alone)
        close(found["video", "latents"][rows], expected["video", "latents"])
        close(found["window", "context"][rows], expected["window", "context"])
        difference = found["video", "pixels"][rows].int() - expected["video", "pixels"].int()
        assert difference.abs().max() <= 1


def test_the_history_is_stored_once_and_memory_does_not_grow_with_the_start():
    model = small_model()
    sizes = []
    for start in (2, 5, 10):
        policy = GroupStreamingPolicy(model, WINDOW, decode=False)
        policy(batch(model, start))
        sizes.append(policy.cache_bytes)
    assert len(set(sizes)) == 1
    frame = 2 * 2 * model.geometry.tokens * 48 * 4
    raw_sink = GROUPS * 3 * frame // 2
    assert sizes[0] == GROUPS * 9 * frame + GROUPS * SIZE * WINDOW * frame + raw_sink


@pytest.mark.parametrize("commit", ["random", "each"])
def test_videos_are_forgotten_and_may_be_started_again(commit):
    model = small_model()
    policy = GroupStreamingPolicy(model, WINDOW, commit=commit)
    first = policy(batch(model, 2))["video", "latents"]
    policy.release()
    assert policy.cache_bytes == 0
    assert torch.equal(policy(batch(model, 2))["video", "latents"], first)


@pytest.mark.parametrize("commit", ["random", "best"])
def test_one_candidate_carries_the_history_on(commit):
    model = small_model()
    values = torch.tensor([0.0, 2, 1, float("nan"), 0, 5])
    judge = (lambda batch: values) if commit == "best" else None
    policy = GroupStreamingPolicy(model, WINDOW, commit=commit, judge=judge)
    first, second = policy(batch(model, 1)), policy(batch(model, 2))
    tails = second["window", "context"][:, -3:]  # the newest frames that the window saw
    rows = []
    for group in range(GROUPS):
        members = range(group * SIZE, group * SIZE + SIZE)
        ends = first["video", "latents"][:, -3:]
        fits = [row for row in members if torch.equal(ends[row], tails[group * SIZE])]
        assert len(fits) == 1
        rows += fits
    if commit == "best":
        assert rows == [1, 5]
    again = GroupStreamingPolicy(model, WINDOW, commit=commit, judge=judge)
    again(batch(model, 1))
    assert torch.equal(again(batch(model, 2))["video", "latents"], second["video", "latents"])
    # As if the committed windows had been sampled by one stream.
    _, plain = histories(model, 1)
    heads = batch(model, 1)[torch.tensor(rows)]
    plain(heads.select(("prompt", "embeds"), ("prompt", "seed"), ("window", "index")))
    third = batch(model, 2)[::SIZE].select(
        ("prompt", "embeds"), ("prompt", "seed"), ("window", "index")
    )
    close(second["video", "latents"][::SIZE], plain(third)["video", "latents"])


def test_each_candidate_may_carry_its_own_history_on():
    model = small_model()
    policy = GroupStreamingPolicy(model, WINDOW, commit="each", windows=2)
    policy(batch(model, 1))
    second = policy(batch(model, 2))
    _, plain = histories(model, 1)
    rows = torch.tensor([1, SIZE + 2])
    keys = (("prompt", "embeds"), ("prompt", "seed"), ("window", "index"))
    plain(batch(model, 1)[rows].select(*keys))
    expected = plain(batch(model, 2)[rows].select(*keys))
    close(second["video", "latents"][rows], expected["video", "latents"])
    close(second["window", "context"][rows], expected["window", "context"])


@pytest.mark.parametrize("switch", ["keep", "recache", "recache_all", "flush"])
def test_the_prompt_changes_inside_the_history_by_the_rule_of_the_model(switch):
    model = small_model(window=12, switch=switch)
    scripts = ("a cat | a cat sleeps", "a dog runs | it barks")
    policy = GroupStreamingPolicy(model, WINDOW, scene_windows=2)
    found = policy(batch(model, 2, scripts, 2))
    _, plain = histories(model, 2, [script.split("|")[0].strip() for script in scripts])
    keys = (("prompt", "embeds"), ("prompt", "seed"), ("window", "index"))
    expected = plain(batch(model, 2, scripts, 2)[::SIZE].select(*keys))
    close(found["video", "latents"][::SIZE], expected["video", "latents"])
    kept = GroupStreamingPolicy(replace(model, switch="keep"), WINDOW, scene_windows=2)
    same = torch.equal(
        kept(batch(model, 2, scripts, 2))["video", "latents"], found["video", "latents"]
    )
    assert same == (switch == "keep")


def committed(first, second):
    """The candidate of each group whose frames the next window saw."""
    ends = first["video", "latents"][:, -3:]
    before = WINDOW * int(second["window", "index"][0])
    rows = []
    for group in range(GROUPS):
        context = second["window", "context"][group * SIZE]
        tail = context[: min(before, len(context))][-3:]
        (row,) = (
            row for row in range(group * SIZE, (group + 1) * SIZE) if torch.equal(ends[row], tail)
        )
        rows.append(row)
    return rows


@pytest.mark.parametrize("switch", ["keep", "recache", "flush"])
def test_a_committed_candidate_is_cached_under_the_prompt_that_it_showed(switch):
    model = small_model(window=12, switch=switch)
    scripts = ("a cat | a cat sleeps", "a dog runs | it barks")
    policy = GroupStreamingPolicy(model, WINDOW, scene_windows=1)
    first, second = (policy(batch(model, index, scripts, 1)) for index in (0, 1))
    rows = committed(first, second)
    keys = (("prompt", "embeds"), ("prompt", "seed"), ("window", "index"))
    plain = StreamingPolicy(model, WINDOW)
    plain(batch(model, 0, scripts, 1)[torch.tensor(rows)].select(*keys))
    expected = plain(batch(model, 1, scripts, 1)[::SIZE].select(*keys))
    close(second["video", "latents"][::SIZE], expected["video", "latents"])


def test_each_window_and_each_group_draws_the_candidate_that_is_committed():
    model = small_model()
    policy = GroupStreamingPolicy(model, WINDOW, decode=False)
    windows = [policy(batch(model, index)) for index in range(7)]
    drawn = [committed(*pair) for pair in pairwise(windows)]
    first, second = zip(*drawn, strict=True)
    assert set(first) == {0, 1, 2}
    assert {row - SIZE for row in second} == {0, 1, 2}
    assert [row + SIZE for row in first] != list(second)


def own_context(video, before, geometry):
    """Frames of a video that its next window may see, told from the video itself."""
    count = geometry.context
    if before <= count:
        return torch.cat([video[:before], video.new_zeros(count - before, *video.shape[1:])])
    newest = count - geometry.sink
    return torch.cat([video[: geometry.sink], video[before - newest : before]])


@pytest.mark.parametrize("commit", ["random", "each", "alone"])
def test_a_context_holds_the_first_and_the_newest_frames_of_its_own_video(commit):
    model = small_model(window=12)
    if commit == "alone":
        policy = StreamingPolicy(model, WINDOW, decode=False)
    else:
        policy = GroupStreamingPolicy(model, WINDOW, decode=False, commit=commit, windows=5)
    windows = [policy(batch(model, index)) for index in range(5)]
    own = torch.arange(GROUPS * SIZE)
    videos = [window["video", "latents"][own] for window in windows[:1]]
    for index, window in enumerate(windows[1:], 1):
        if commit == "random":  # the video of a group is that of its committed candidates
            rows = torch.tensor(committed(windows[index - 1], window)).repeat_interleave(SIZE)
            videos[-1] = windows[index - 1]["video", "latents"][rows]
        whole = torch.cat(videos, 1)
        for row, context in enumerate(window["window", "context"]):
            expected = own_context(whole[row], index * WINDOW, model.geometry)
            assert torch.equal(context, expected), (index, row)
        videos.append(window["video", "latents"])


def test_a_history_gives_its_own_frames_as_context():
    model = small_model(window=12)
    found = GroupStreamingPolicy(model, WINDOW, decode=False)(batch(model, 4))
    made, _ = histories(model, 4)
    whole = torch.cat([part["video", "latents"] for part in made], 1)
    for row, context in enumerate(found["window", "context"]):
        close(context, own_context(whole[row // SIZE], 4 * WINDOW, model.geometry))


def test_a_model_that_rebuilds_its_cache_shares_latents():
    model = small_model(window=6, sink=0, relative=False, rebuild=3)
    found = GroupStreamingPolicy(model, WINDOW)(batch(model, 2))
    _, plain = histories(model, 2)
    keys = (("prompt", "embeds"), ("prompt", "seed"), ("window", "index"))
    expected = plain(batch(model, 2)[::SIZE].select(*keys))
    close(found["video", "latents"][::SIZE], expected["video", "latents"])


def test_what_does_not_fit_is_refused():
    model = small_model()
    with pytest.raises(ValueError, match="needs a judge"):
        GroupStreamingPolicy(model, WINDOW, commit="best")
    with pytest.raises(ValueError, match=r"commit is 'worst'"):
        GroupStreamingPolicy(model, WINDOW, commit="worst")
    with pytest.raises(ValueError, match=r"groups of \[3, 1\] videos"):
        GroupStreamingPolicy(model, WINDOW)(batch(model, 0)[:4])
    mixed = torch.cat([batch(model, 0), batch(model, 1)])
    with pytest.raises(ValueError, match=r"mixes the windows \[0, 1\]"):
        GroupStreamingPolicy(model, WINDOW)(mixed)
