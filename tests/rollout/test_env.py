import itertools
from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl._utils import seed_generator
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.envs import SerialEnv, StepCounter, TransformedEnv

from astrolabe_rollout.collector import make_collector
from astrolabe_rollout.env import PromptEnv
from astrolabe_rollout.keys import (
    CONTEXT,
    EMBEDS,
    FPS,
    GROUP,
    HISTORY_SEED,
    INDEX,
    LATENTS,
    METADATA,
    PIXELS,
    SEED,
    TEXT,
)
from astrolabe_rollout.prompts import GroupSampler
from astrolabe_rollout.streaming import meet_collector
from astrolabe_rollout.windows import WindowSchedule

PROMPTS = ["a red ball", "a blue square", "a cat", "two dogs", "rain"]


class LetterCounts:
    """A video model as far as the environment sees it: letters are its embeddings."""

    fps = 8.0

    def __init__(self):
        self.encoded = []

    def text(self, prompts):
        self.encoded.append(prompts)
        return torch.tensor([[[p.count("a"), len(p)], [p.count("e"), 1]] for p in prompts]).float()


class Painter(TensorDictModuleBase):
    """Paints the embedding's sum, the seed and the window into latents, pixels and context."""

    in_keys = (EMBEDS, SEED, INDEX)
    out_keys = (LATENTS, PIXELS, CONTEXT)

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.brush = nn.Parameter(torch.ones(()))

    def forward(self, tensordict):
        self.calls += 1
        code = tensordict[EMBEDS].sum((-1, -2)) + tensordict[SEED] % 97 + tensordict[INDEX]
        frames = code.view(-1, 1, 1, 1, 1).expand(-1, 3, 2, 4, 4)
        tensordict[LATENTS] = frames * self.brush
        tensordict[PIXELS] = (frames % 256).to(torch.uint8)[:, :, :1].expand(-1, 3, 3, 4, 4)
        tensordict[CONTEXT] = frames - 1
        return tensordict


def make_env(model=None, windows=1, seed=0, prompts=PROMPTS, **options):
    options = {"group_size": 2, "num_prompts": 2, "windows": windows, "seed": seed, **options}
    return PromptEnv(prompts, model or LetterCounts(), **options)


def assert_same_batch(batch, other):
    assert batch[TEXT] == other[TEXT]
    for key in (GROUP, SEED, EMBEDS, INDEX, FPS, LATENTS, PIXELS, CONTEXT):
        assert torch.equal(batch[key], other[key])


def test_a_reset_gives_groups_of_prompts_each_encoded_once():
    model = LetterCounts()
    env = make_env(model)
    state = env.reset()
    texts = state[TEXT]
    assert model.encoded == [[texts[0], texts[2]]]
    assert state.batch_size == (4,)
    assert list(texts) == [texts[0], texts[0], texts[2], texts[2]]
    assert state[GROUP].tolist() == [0, 0, 1, 1]
    assert len(set(state[SEED].tolist())) == 4
    assert torch.equal(state[EMBEDS], model.text(list(texts)))
    assert state[INDEX].tolist() == [0] * 4
    assert state[FPS].tolist() == [8.0] * 4
    assert not state["done"].any()


def test_dtypes_are_those_of_the_contract():
    state = make_env().reset()
    dtypes = {key: state[key].dtype for key in (GROUP, SEED, INDEX, EMBEDS, FPS)}
    assert dtypes == {
        GROUP: torch.int64,
        SEED: torch.int64,
        INDEX: torch.int64,
        EMBEDS: torch.float32,
        FPS: torch.float32,
    }


def test_a_prompt_that_comes_twice_in_a_draw_is_encoded_once_and_keeps_its_groups():
    model = LetterCounts()
    env = PromptEnv(["only one"], model, group_size=2, num_prompts=3)
    state = env.reset()
    assert model.encoded == [["only one"]]
    assert state[GROUP].tolist() == [0, 0, 1, 1, 2, 2]


def test_a_batch_holds_whole_videos_with_their_windows_in_order():
    env = make_env(windows=3)
    (batch,) = make_collector(env, Painter(), steps=1)
    assert batch.batch_size == (4, 3)
    assert batch[INDEX].tolist() == [[0, 1, 2]] * 4
    assert batch["next", "done"].squeeze(-1).tolist() == [[False, False, True]] * 4
    for video in range(4):
        assert len(set(batch[TEXT][video])) == 1
        assert len(set(batch[GROUP][video].tolist())) == 1


def test_text_pixels_latents_and_context_stay_paired_in_the_batch():
    model, painter = LetterCounts(), Painter()
    for batch in make_collector(make_env(model, windows=2), painter, steps=3):
        texts = [text for video in batch[TEXT] for text in video]
        embeds = model.text(texts).view(4, 2, 2, 2)
        assert torch.equal(batch[EMBEDS], embeds)
        code = embeds.sum((-1, -2)) + batch[SEED] % 97 + batch[INDEX]
        assert torch.equal(batch[LATENTS].amax((2, 3, 4, 5)), code)
        assert torch.equal(batch[PIXELS].amax((2, 3, 4, 5)), (code % 256).to(torch.uint8))
        assert torch.equal(batch[CONTEXT].amin((2, 3, 4, 5)), code - 1)


def test_every_batch_has_new_prompts():
    batches = list(make_collector(make_env(), Painter(), steps=5))
    groups = [group for batch in batches for group in batch[GROUP].flatten().tolist()]
    assert groups == [group for group in range(10) for _ in range(2)]
    prompts = [batch[TEXT][video][0] for batch in batches for video in (0, 2)]
    assert sorted(prompts) == sorted(2 * PROMPTS)


def test_the_policy_is_called_once_a_window_and_at_no_other_time():
    painter = Painter()
    collector = make_collector(make_env(windows=2), painter, steps=3)
    assert painter.calls == 0
    for number, _ in enumerate(collector, start=1):
        assert painter.calls == 2 * number


def test_the_collector_uses_the_policys_own_weights():
    painter = Painter()
    collector = make_collector(make_env(), painter, steps=2)
    assert collector.policy is painter
    first, changed = iter(collector), 3.0
    before = next(first)[LATENTS]
    with torch.no_grad():
        painter.brush.fill_(changed)
    after = next(first)
    code = after[EMBEDS].sum((-1, -2)) + after[SEED] % 97
    assert torch.equal(after[LATENTS].amax((2, 3, 4, 5)), changed * code)
    assert not before.requires_grad


def test_batches_do_not_change_when_the_next_is_collected():
    collector = iter(make_collector(make_env(), Painter(), steps=2))
    first = next(collector)
    kept = first.clone()
    next(collector)
    assert_same_batch(first, kept)


def test_an_environment_invents_no_reward():
    env = make_env()
    (batch,) = make_collector(env, Painter(), steps=1)
    assert env.reward_keys == []
    assert ("next", "reward") not in batch.keys(include_nested=True)
    batch["next", "reward"] = torch.ones(4, 1, 1)  # what a reward model does
    assert batch["next"].batch_size == (4, 1)


def test_strings_stay_with_their_videos_through_a_replay_buffer():
    buffer = ReplayBuffer(storage=LazyTensorStorage(8), batch_size=3)
    (batch,) = make_collector(make_env(windows=2), Painter(), steps=1)
    rows = batch.select(TEXT, SEED, LATENTS).reshape(-1)
    by_seed = dict(zip(rows[SEED].tolist(), rows[TEXT], strict=True))
    buffer.extend(rows)
    sample = buffer.sample()
    assert sample.batch_size == (3,)
    assert [by_seed[seed] for seed in sample[SEED].tolist()] == list(sample[TEXT])


@pytest.mark.parametrize("windows", [1, 2])
def test_a_run_goes_on_exactly_from_the_samplers_state(windows):
    whole = make_env(windows=windows)
    batches, states = [], []
    for batch in make_collector(whole, Painter(), steps=4):
        batches.append(batch)
        states.append(whole.sampler.state_dict())
    resumed = make_env(windows=windows)
    resumed.sampler.load_state_dict(states[1])
    rest = list(make_collector(resumed, Painter(), steps=2))
    for batch, other in zip(batches[2:], rest, strict=True):
        assert_same_batch(batch, other)


def test_resets_before_the_end_of_the_videos_give_the_same_prompts():
    env = make_env(windows=2)
    first = env.reset()
    env.step(Painter()(first))
    again = env.reset()
    assert again[GROUP].tolist() == first[GROUP].tolist()
    assert again[SEED].tolist() == first[SEED].tolist()


def test_a_sampler_state_loaded_too_late_is_noticed():
    env = make_env()
    other = make_env().sampler
    other.draw()
    collector = make_collector(env, Painter(), steps=1)
    env.sampler.load_state_dict(other.state_dict())
    with pytest.raises(RuntimeError, match="Load the sampler's state before"):
        next(iter(collector))


def test_a_part_of_the_videos_cannot_be_reset():
    env = make_env()
    state = env.reset()
    state["_reset"] = torch.tensor([[True], [False], [True], [False]])
    with pytest.raises(ValueError, match="Reset the whole environment"):
        env.reset(state)


@pytest.mark.parametrize("windows", [1, 2])
def test_pixels_are_not_carried_into_the_next_window(windows):
    env = make_env(windows=windows)
    made, carried = env.step_and_maybe_reset(Painter()(env.reset()))
    outputs = {LATENTS, PIXELS, CONTEXT}
    assert outputs <= set(made.keys(include_nested=True))
    assert not outputs & set(carried.keys(include_nested=True))
    assert carried[INDEX].tolist() == [windows - 1] * 4


def test_a_given_sampler_is_used_as_it_is():
    sampler = GroupSampler(PROMPTS, num_prompts=2, group_size=4, rank=1, world_size=2)
    env = PromptEnv(sampler, LetterCounts())
    assert env.sampler is sampler
    assert env.reset()[GROUP].tolist() == [1] * 4


def test_all_prompts_are_drawn_when_their_number_is_not_given():
    env = PromptEnv(PROMPTS, LetterCounts(), group_size=2)
    assert env.batch_size == (10,)
    assert set(env.reset()[TEXT]) == set(PROMPTS)


def test_the_environment_also_runs_in_a_plain_rollout():
    videos = make_env(windows=3).rollout(5, Painter())
    assert isinstance(videos, TensorDict)
    assert videos[INDEX].tolist() == [[0, 1, 2]] * 4


def test_wrong_arguments_are_refused_with_the_way_out():
    sampler = GroupSampler(PROMPTS, num_prompts=2, group_size=2)
    with pytest.raises(ValueError, match=r"windows is 0.*Set it to 1 or more"):
        make_env(windows=0)
    with pytest.raises(ValueError, match=r"group_size is missing.*Set it to 2 or more"):
        PromptEnv(PROMPTS, LetterCounts())
    with pytest.raises(ValueError, match=r"belong to the sampler.*Set them there"):
        PromptEnv(sampler, LetterCounts(), seed=3)
    with pytest.raises(ValueError, match=r"steps is 0.*Set it to 1 or more"):
        make_collector(make_env(), Painter(), steps=0)
    with pytest.raises(ValueError, match="windows belongs to the schedule"):
        make_env(windows=2, schedule=WindowSchedule())
    with pytest.raises(ValueError, match="scene_windows is -1"):
        make_env(scene_windows=-1)
    with pytest.raises(TypeError, match=r"the model is a object without fps, text\."):
        make_env(object())
    with pytest.raises(TypeError, match=r"windows is 2\.5, which is no whole number"):
        make_env(windows=2.5)
    with pytest.raises(TypeError, match=r"env is a SerialEnv.*several workers"):
        make_collector(SerialEnv(2, make_env), Painter(), steps=1)
    for seed, error in ((None, TypeError), (1.5, TypeError), (-1, ValueError), (2**64, ValueError)):
        with pytest.raises(error, match="seed is "):
            make_env().set_seed(seed)


def drawn(batch):
    """What the seed decides, of each video."""
    rows = batch.select(TEXT, GROUP, SEED, HISTORY_SEED).reshape(-1)
    numbers = (rows[key].tolist() for key in (GROUP, SEED, HISTORY_SEED))
    return list(zip(list(rows[TEXT]), *numbers, strict=True))


def test_a_seed_that_is_set_gives_what_an_environment_made_with_it_gives():
    env, other = make_env(seed=1), make_env(seed=7)
    env.reset()
    env.sampler.advance()
    assert env.set_seed(7) == seed_generator(7)
    assert drawn(env.reset()) == drawn(other.reset())
    assert drawn(env.reset()) != drawn(make_env(seed=1).reset())
    assert env.set_seed(7, static_seed=True) == 7
    env.reset()
    env.set_seed(8)
    with pytest.raises(RuntimeError, match="reset the environment after set_seed"):
        env.step(Painter()(make_env(seed=7).reset()))


@pytest.mark.parametrize("wrap", [lambda env: env, lambda env: TransformedEnv(env, StepCounter())])
def test_a_collector_begins_anew_with_the_seed_that_it_is_given(wrap):
    painter = Painter()
    painter.register_collector = lambda collector: meet_collector(
        SimpleNamespace(decode=False), None, collector
    )
    collector = make_collector(wrap(make_env(windows=2)), painter, steps=4)
    before = drawn(next(iter(collector)))
    assert collector.set_seed(5) == seed_generator(5)
    after = [drawn(batch) for batch in itertools.islice(collector, 2)]
    expected = [drawn(one) for one in make_collector(make_env(windows=2, seed=5), Painter(), 2)]
    assert after == expected
    assert before not in after


def worker(number, make=make_env, seed=None):
    """What the first batch of a worker of several holds."""
    collector = Collector(
        make,
        Painter(),
        frames_per_batch=4,
        total_frames=4,
        worker_idx=number,
        trust_policy=True,
        auto_register_policy_transforms=False,
    )
    if seed is not None:
        collector.set_seed(seed)
    return drawn(next(iter(collector)))


def test_workers_that_are_made_alike_draw_different_videos_and_the_same_in_every_run():
    first, second, third = (worker(number) for number in range(3))
    assert first == drawn(make_env().reset())
    assert (second, third) == (worker(1), worker(2))
    for column in (1, 2, 3):  # groups, and seeds of noise
        values = [{video[column] for video in videos} for videos in (first, second, third)]
        assert len(set.union(*values)) == sum(map(len, values))
    for seeds in ((5, seed_generator(5)), (5, 5)):  # as a collector hands them on, or static
        one, two = (worker(number, seed=seed) for number, seed in enumerate(seeds))
        assert one == drawn(make_env(seed=5).reset())
        assert not {video[2] for video in one} & {video[2] for video in two}


def test_workers_that_share_a_draw_keep_one_seed_and_may_not_share_a_rank():
    def make(rank):
        sampler = GroupSampler(PROMPTS, num_prompts=2, group_size=4, rank=rank, world_size=2)
        return PromptEnv(sampler, LetterCounts())

    assert make(1).set_seed(5) == 5
    whole = GroupSampler(PROMPTS, num_prompts=2, group_size=4).draw()
    both = worker(0, lambda: make(0)) + worker(1, lambda: make(1))
    assert [video[2] for video in both] == whole.seeds.tolist()
    with pytest.raises(ValueError, match=r"worker 1 of a collector draws the share of rank 0"):
        worker(1, lambda: make(0))


ROWS = [{"prompt": text, "count": len(text), "tags": [text[:1]]} for text in PROMPTS]


def test_rows_of_prompts_go_along_with_their_videos_to_a_replay_buffer():
    env = make_env(windows=2, prompts=[*ROWS[:4], "rain"])
    batches = list(make_collector(env, Painter(), steps=3))
    rows = torch.cat([batch.select(TEXT, METADATA, SEED).reshape(-1) for batch in batches])
    assert set(rows[TEXT]) == set(PROMPTS)
    for text, row in zip(list(rows[TEXT]), list(rows[METADATA]), strict=True):
        assert row == (ROWS[PROMPTS.index(text)] if text != "rain" else {"prompt": text})
    rows[METADATA][0]["count"] = "changed by a reward"
    assert rows[METADATA][2]["count"] != "changed by a reward"  # another video of the group
    buffer = ReplayBuffer(storage=LazyTensorStorage(24), batch_size=9)
    buffer.extend(rows)
    sample = buffer.sample()
    assert [row["prompt"] for row in sample[METADATA]] == list(sample[TEXT])
    assert METADATA not in make_env().reset().keys(True, True, is_leaf=lambda _: True)


def test_a_resumed_run_must_have_the_same_rows():
    state = make_env(prompts=ROWS).sampler.state_dict()
    other = [{**row, "count": 0} for row in ROWS]
    with pytest.raises(ValueError, match="prompts_sha256"):
        make_env(prompts=other).sampler.load_state_dict(state)
    assert state != make_env().sampler.state_dict()
    with pytest.raises(TypeError, match=r"prompts\[1\] is \{'text': 'b'\}: neither a text nor"):
        make_env(prompts=["a", {"text": "b"}])
    with pytest.raises(ValueError, match=r"prompts\[1\] is ' '\. Remove it"):
        make_env(prompts=["a", {"prompt": " "}])


class Longer(Painter):
    """Paints a frame more in every window, as a decoder does that goes on in a video."""

    def forward(self, tensordict):
        super().forward(tensordict)
        first = tensordict[PIXELS][:, :1]
        extra = first.expand(-1, int(tensordict[INDEX][0]), -1, -1, -1)
        tensordict[PIXELS] = torch.cat([tensordict[PIXELS], extra], 1)
        return tensordict


def test_windows_of_different_length_are_refused_with_their_shapes():
    shapes = r"\[4, 4, 3, 4, 4\] for window 1 and \[4, 3, 3, 4, 4\] for the window before"
    with pytest.raises(ValueError, match=rf"'pixels'\) {shapes}.*stackable=True"):
        next(iter(make_collector(make_env(windows=2), Longer(), steps=1)))
    (batch,) = make_collector(make_env(windows=1), Longer(), steps=1)
    assert batch[PIXELS].shape[2] == 3
