import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch.testing import assert_close

from astrolabe_objectives import GroupAdvantage, group_statistics
from astrolabe_objectives.advantage import group_advantage, per_reward_advantage

rewards_by_group = st.lists(
    st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=6), min_size=1, max_size=4
)
modes = st.sampled_from(["reward", "leave_one_out", "rank"])


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


@given(rewards_by_group, st.sampled_from(["global", "group", "none"]), modes)
@settings(max_examples=50, deadline=None)
def test_advantages_of_a_group_sum_to_zero(groups, std, mode):
    rewards, ids = flatten(groups)
    valid = torch.ones_like(rewards, dtype=torch.bool)
    advantage = group_advantage(rewards, ids, valid, std=std, mode=mode)
    sums = torch.zeros(len(groups), dtype=torch.float64).index_add(0, ids, advantage)
    assert_close(sums, torch.zeros_like(sums), atol=1e-9, rtol=0)


@given(rewards_by_group, st.randoms(use_true_random=False), modes)
@settings(max_examples=50, deadline=None)
def test_advantages_follow_a_permutation_of_the_batch(groups, random, mode):
    rewards, ids = flatten(groups)
    valid = torch.tensor([random.random() < 0.8 for _ in rewards])
    order = list(range(len(rewards)))
    random.shuffle(order)
    moved = group_advantage(rewards[order], ids[order], valid[order], mode=mode)
    there = group_advantage(rewards, ids, valid, mode=mode)
    assert_close(moved, there[order], atol=1e-9, rtol=1e-9)


@given(
    rewards_by_group,
    st.sampled_from(["global", "group", "none"]),
    st.floats(allow_nan=True),
    modes,
)
@settings(max_examples=50, deadline=None)
def test_invalid_samples_get_zero_and_change_nothing(groups, std, junk, mode):
    rewards, ids = flatten(groups)
    valid = torch.ones_like(rewards, dtype=torch.bool)
    expected = group_advantage(rewards, ids, valid, std=std, mode=mode)
    with_junk = group_advantage(
        torch.cat([rewards, torch.tensor([junk], dtype=torch.float64)]),
        torch.cat([ids, torch.tensor([0])]),
        torch.cat([valid, torch.tensor([False])]),
        std=std,
        mode=mode,
    )
    assert with_junk[-1] == 0
    assert_close(with_junk[:-1], expected)


@given(
    st.floats(-1e6, 1e6),
    st.integers(2, 9),
    st.sampled_from(["global", "group", "none"]),
    st.sampled_from(["reward", "leave_one_out", "rank"]),
)
@settings(max_examples=50, deadline=None)
def test_a_group_of_equal_rewards_has_advantage_zero_exactly(value, size, std, mode):
    rewards = torch.tensor([value] * size + [0.0, 1.0], dtype=torch.float64)
    ids = torch.tensor([7] * size + [8, 8])
    valid = torch.ones(size + 2, dtype=torch.bool)
    advantage = group_advantage(rewards, ids, valid, std=std, mode=mode, eps=0.0)
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


def test_leaving_one_out_compares_with_the_mean_of_the_others():
    batch = make_batch([1.0, 2.0, 6.0, float("nan")], [0, 0, 0, 0])
    advantage = GroupAdvantage(std="none", mode="leave_one_out")(batch)["advantage"].squeeze(-1)
    assert advantage.tolist() == [1.0 - 4.0, 2.0 - 3.5, 6.0 - 1.5, 0.0]


def test_the_only_valid_sample_of_a_group_has_advantage_zero():
    for mode in ("leave_one_out", "rank"):
        batch = make_batch([1.0, float("nan"), 3.0, 4.0], [0, 0, 1, 1])
        assert GroupAdvantage(mode=mode)(batch)["advantage"][:2].tolist() == [[0.0], [0.0]]


def test_ranks_forget_by_how_much_a_sample_is_better():
    module = GroupAdvantage(std="none", mode="rank")
    near = module(make_batch([1.0, 2.0, 2.1, 0.5, 7.0, 7.0], [0, 0, 0, 0, 1, 1]))["advantage"]
    far = module(make_batch([1.0, 2.0, 1e6, -1e6, 8.0, 8.0], [0, 0, 0, 0, 1, 1]))["advantage"]
    third = 1 / 3
    assert_close(near.squeeze(-1), torch.tensor([-third, third, 1.0, -1.0, 0.0, 0.0]))
    assert near.equal(far)


def test_ranks_that_tie_share_their_place():
    batch = GroupAdvantage(std="none", mode="rank")(make_batch([3.0, 3.0, 1.0], [0, 0, 0]))
    assert batch["advantage"].squeeze(-1).tolist() == [0.5, 0.5, -1.0]


def scores(**columns):
    return {("score", name): [[value] for value in values] for name, values in columns.items()}


def test_normalised_one_by_one_no_reward_drowns_another_by_its_unit():
    loud, quiet = [0.0, 1000.0, 0.0, 1000.0], [0.0, 0.0, 1e-2, 1e-2]
    more = scores(loud=loud, quiet=quiet)
    total = [first + second for first, second in zip(loud, quiet, strict=True)]
    mixed = GroupAdvantage(std="group")(make_batch(total, [0] * 4))["advantage"]
    # The composite cannot tell the second sample from the fourth.
    assert_close(mixed[1], mixed[3], atol=1e-4, rtol=0)
    module = GroupAdvantage(
        std="group", mode="per_reward", rewards={"loud": 1.0, "quiet": 1.0}, eps=0.0
    )
    advantage = module(make_batch(total, [0] * 4, more=more))["advantage"].squeeze(-1)
    assert_close(advantage, torch.tensor([-1.0, 0.0, 0.0, 1.0]) * 2**0.5)


def test_each_reward_is_normalised_then_weighed_then_the_sum_is_normalised():
    rewards = torch.tensor([[1.0, 5.0], [2.0, 5.0], [4.0, 9.0], [0.0, 1.0], [3.0, 2.0], [3.0, 6.0]])
    ids = torch.tensor([0, 0, 0, 1, 1, 1])
    weights = torch.tensor([1.0, -0.5])
    valid = torch.ones(6, dtype=torch.bool)
    found = per_reward_advantage(rewards, weights, ids, valid, std="group", eps=0.0)
    expected = []
    for rows in (rewards[:3].double(), rewards[3:].double()):
        normal = (rows - rows.mean(dim=0)) / rows.std(dim=0, correction=0)
        expected.append(normal[:, 0] - 0.5 * normal[:, 1])
    expected = torch.cat(expected)
    assert_close(found, expected / expected.std(correction=0))
    assert_close(found.std(correction=0), torch.ones((), dtype=torch.float64))


def test_an_invalid_sample_changes_no_advantage_of_several_rewards():
    rewards = torch.tensor([[1.0, 5.0], [2.0, 9.0], [4.0, 1.0], [torch.nan, 3.0]])
    ids, weights = torch.zeros(4, dtype=torch.int64), torch.tensor([1.0, 2.0])
    valid = torch.tensor([True, True, True, False])
    found = per_reward_advantage(rewards, weights, ids, valid, eps=0.0)
    alone = per_reward_advantage(rewards[:3], weights, ids[:3], valid[:3], eps=0.0)
    assert_close(found[:3], alone)
    assert_close(alone.std(correction=0), torch.ones((), dtype=torch.float64))
    assert found[3] == 0


def test_a_reward_that_is_equal_in_a_group_adds_nothing_there():
    more = scores(flat=[5.0, 5.0, 1.0, 2.0], live=[1.0, 2.0, 3.0, 9.0])
    weights = {"flat": 1.0, "live": 1.0}
    module = GroupAdvantage(std="group", mode="per_reward", rewards=weights, eps=0.0)
    batch = make_batch([0.0] * 4, [0, 0, 1, 1], more=more)
    # Twice as much in the second group, of which both rewards say the same.
    advantage = module(batch)["advantage"].squeeze(-1)
    assert_close(advantage / advantage[1], torch.tensor([-1.0, 1.0, -2.0, 2.0]))


def test_a_sample_without_one_of_its_scores_counts_for_none():
    more = scores(a=[1.0, 3.0, float("nan"), 8.0], b=[1.0, 3.0, 100.0, 8.0])
    module = GroupAdvantage(std="global", mode="per_reward", rewards={"a": 1.0, "b": 1.0})
    advantage = module(make_batch([0.0] * 4, [0] * 4, more=more))["advantage"].squeeze(-1)
    assert advantage[2] == 0
    assert abs(advantage.sum()) < 1e-6


def test_in_keys_name_what_is_compared():
    module = GroupAdvantage(std="group", mode="per_reward", rewards={"vq": 1.0, "mq": 2.0})
    assert module.in_keys == [("prompt", "group"), ("score", "vq"), ("score", "mq")]
    with pytest.raises(KeyError, match=r"GroupAdvantage reads \('score', 'vq'\)"):
        module(make_batch([1.0, 2.0], [0, 0]))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"std": "batch"}, r"std='batch'\. Choose from"),
        ({"mode": "median"}, r"mode='median'\. Choose from"),
        ({"eps": -1.0}, r"eps=-1\.0\. Give 0 or more"),
        ({"mode": "per_reward"}, "rewards=None. Give the weights"),
        ({"rewards": {"vq": 1.0}}, "mode='reward' and rewards=.*Give the weights"),
        (
            {"mode": "per_reward", "rewards": {"vq": 1.0}, "std": "none"},
            "no reward would be normalised. Choose",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        GroupAdvantage(**setting)


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


def test_a_process_group_of_one_changes_no_mode(process_group):
    rewards, groups = [1.0, 2.0, 4.0, 9.0], [0, 0, 1, 1]
    more = scores(vq=rewards, mq=[3.0, 0.0, 1.0, 8.0])
    for mode, weights in (("rank", None), ("per_reward", {"vq": 1.0, "mq": 1.0})):
        made = [
            GroupAdvantage(mode=mode, rewards=weights, process_group=ranks)(
                make_batch(rewards, groups, more=more)
            )["advantage"]
            for ranks in (None, process_group)
        ]
        assert made[0].equal(made[1])


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
