import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch.testing import assert_close

from astrolabe_objectives import GroupAdvantage, group_statistics
from astrolabe_objectives.advantage import group_advantage

rewards_by_group = st.lists(
    st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=6), min_size=1, max_size=4
)


def make_batch(rewards, groups, **entries):
    batch = TensorDict(batch_size=[len(rewards)])
    batch["next", "reward"] = torch.tensor(rewards)[:, None]
    batch["prompt", "group"] = torch.tensor(groups)
    for (first, second), values in entries.get("more", {}).items():
        batch[first, second] = torch.tensor(values)
    return batch


def flatten(groups):
    rewards = torch.tensor([reward for group in groups for reward in group])
    return rewards, torch.tensor([i for i, group in enumerate(groups) for _ in group])


@given(rewards_by_group, st.sampled_from(["global", "group", "none"]))
@settings(max_examples=50, deadline=None)
def test_advantages_of_a_group_sum_to_zero(groups, std):
    rewards, ids = flatten(groups)
    advantage = group_advantage(rewards, ids, torch.ones_like(rewards, dtype=torch.bool), std=std)
    sums = torch.zeros(len(groups), dtype=torch.float64).index_add(0, ids, advantage)
    assert_close(sums, torch.zeros_like(sums), atol=1e-9, rtol=0)


@given(rewards_by_group, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_advantages_follow_a_permutation_of_the_batch(groups, random):
    rewards, ids = flatten(groups)
    valid = torch.tensor([random.random() < 0.8 for _ in rewards])
    order = list(range(len(rewards)))
    random.shuffle(order)
    moved = group_advantage(rewards[order], ids[order], valid[order])
    assert_close(moved, group_advantage(rewards, ids, valid)[order], atol=1e-9, rtol=1e-9)


@given(rewards_by_group, st.sampled_from(["global", "group", "none"]), st.floats(allow_nan=True))
@settings(max_examples=50, deadline=None)
def test_invalid_samples_get_zero_and_change_nothing(groups, std, junk):
    rewards, ids = flatten(groups)
    valid = torch.ones_like(rewards, dtype=torch.bool)
    expected = group_advantage(rewards, ids, valid, std=std)
    with_junk = group_advantage(
        torch.cat([rewards, torch.tensor([junk], dtype=torch.float64)]),
        torch.cat([ids, torch.tensor([0])]),
        torch.cat([valid, torch.tensor([False])]),
        std=std,
    )
    assert with_junk[-1] == 0
    assert_close(with_junk[:-1], expected)


@given(st.floats(-1e6, 1e6), st.integers(2, 9), st.sampled_from(["global", "group", "none"]))
@settings(max_examples=50, deadline=None)
def test_a_group_of_equal_rewards_has_advantage_zero_exactly(value, size, std):
    rewards = torch.tensor([value] * size + [0.0, 1.0], dtype=torch.float64)
    ids = torch.tensor([7] * size + [8, 8])
    advantage = group_advantage(rewards, ids, torch.ones(size + 2, dtype=torch.bool), std=std)
    assert (advantage[:size] == 0).all()
    assert advantage[-1] > 0


def test_advantages_equal_those_of_the_public_code(golden):
    compared = 0
    for case in golden["stat_tracker"]:
        ids = torch.tensor([sorted(set(case["prompts"])).index(p) for p in case["prompts"]])
        if ids.bincount().min() < 2:
            continue
        compared += 1
        rewards = torch.tensor(case["rewards"])
        std = "global" if case["global_std"] else "group"
        advantage = group_advantage(rewards, ids, torch.ones_like(ids, dtype=torch.bool), std=std)
        expected = torch.tensor(case["advantages"], dtype=torch.float64)
        assert_close(advantage, expected, atol=1e-6, rtol=0)
        metrics = group_statistics(make_batch(case["rewards"], ids.tolist()))
        assert metrics["advantage/zero_std_fraction"] == pytest.approx(case["zero_std_ratio"])
        assert metrics["advantage/group_std"] == pytest.approx(case["reward_std_mean"], abs=1e-6)
    assert compared == 6


def test_a_reward_that_is_not_finite_never_reaches_the_others():
    batch = make_batch([1.0, 3.0, float("nan"), float("inf")], [0, 0, 0, 0])
    advantage = GroupAdvantage(std="none")(batch)["advantage"].squeeze(-1)
    assert advantage.tolist() == [-1.0, 1.0, 0.0, 0.0]
    assert group_statistics(batch)["advantage/valid_fraction"] == 0.5


def test_a_sample_marked_invalid_is_left_out():
    marks = {("next", "valid"): [[True], [True], [False]]}
    batch = make_batch([1.0, 3.0, 50.0], [0, 0, 0], more=marks)
    advantage = GroupAdvantage(std="none")(batch)["advantage"].squeeze(-1)
    assert advantage.tolist() == [-1.0, 1.0, 0.0]


def test_a_batch_without_a_valid_sample_has_advantage_zero():
    batch = GroupAdvantage()(make_batch([float("nan")] * 4, [0, 0, 1, 1]))
    assert (batch["advantage"] == 0).all()
    assert group_statistics(batch)["advantage/zero_std_fraction"] == 1.0


def test_groups_with_equal_rewards_are_counted():
    batch = make_batch([1.0, 1.0, 2.0, 3.0], [0, 0, 1, 1])
    assert group_statistics(batch)["advantage/zero_std_fraction"] == 0.5


def test_windows_of_a_video_do_not_compete_with_each_other():
    batch = TensorDict(batch_size=[2, 2])  # [N, T]
    batch["next", "reward"] = torch.tensor([[[1.0], [100.0]], [[3.0], [300.0]]])
    batch["prompt", "group"] = torch.zeros(2, 2, dtype=torch.int64)
    batch["window", "index"] = torch.tensor([[0, 1], [0, 1]])
    advantage = GroupAdvantage(std="none")(batch)["advantage"]
    assert advantage.shape == (2, 2, 1)
    assert advantage.dtype == torch.float32
    assert advantage.squeeze(-1).tolist() == [[-1.0, -100.0], [1.0, 100.0]]


def test_groups_with_large_hashed_numbers_stay_apart():
    batch = make_batch([1.0, 3.0, 10.0, 30.0], [2**60, 2**60, 2**60 + 1, 2**60 + 1])
    advantage = GroupAdvantage(std="none")(batch)["advantage"].squeeze(-1)
    assert advantage.tolist() == [-1.0, 1.0, -10.0, 10.0]


def test_one_reward_alone_can_be_compared():
    batch = make_batch([0.0, 0.0], [0, 0], more={("score", "hpsv3"): [[1.0], [5.0]]})
    advantage = GroupAdvantage(std="none", reward_key=("score", "hpsv3"))(batch)["advantage"]
    assert advantage.squeeze(-1).tolist() == [-2.0, 2.0]


def test_a_lone_sample_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"group \[4, 0\] has a single sample.*group size to 2"):
        GroupAdvantage()(make_batch([1.0, 2.0, 3.0], [3, 3, 4]))


def test_a_missing_entry_is_named_with_its_reader():
    with pytest.raises(KeyError, match=r"GroupAdvantage reads \('next', 'reward'\).*group"):
        GroupAdvantage()(make_batch([1.0, 2.0], [3, 3]).exclude(("next", "reward")))


def test_an_unknown_std_is_refused():
    with pytest.raises(ValueError, match=r"std='batch'\. Choose from"):
        GroupAdvantage(std="batch")


@pytest.fixture
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_a_process_group_of_one_changes_nothing(process_group):
    rewards, groups = [1.0, 2.0, 4.0, 9.0], [0, 0, 1, 1]
    alone = GroupAdvantage()(make_batch(rewards, groups))["advantage"]
    gathered = GroupAdvantage(process_group=process_group)(make_batch(rewards, groups))
    assert gathered["advantage"].equal(alone)


def _advantage_of_rank(rank, folder):
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    # Group 1 is split between the ranks, which hold different numbers of samples.
    part = [([1.0, 2.0, 4.0], [0, 0, 1]), ([9.0, 5.0], [1, 1])][rank]
    advantage = GroupAdvantage(process_group=dist.group.WORLD)(make_batch(*part))["advantage"]
    torch.save(advantage, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_share_the_moments_of_the_whole_batch(tmp_path):
    context = torch.multiprocessing.get_context("fork")
    ranks = [context.Process(target=_advantage_of_rank, args=(k, tmp_path)) for k in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=60)
        assert rank.exitcode == 0
    shared = torch.cat([torch.load(tmp_path / f"{rank}.pt") for rank in range(2)])
    alone = GroupAdvantage()(make_batch([1.0, 2.0, 4.0, 9.0, 5.0], [0, 0, 1, 1, 1]))["advantage"]
    assert_close(shared, alone)
