import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch.testing import assert_close

from astrolabe_objectives import RankDisagreement
from astrolabe_objectives.disagreement import rank_gap
from astrolabe_objectives.ranks import average_ranks


def make_batch(**scores):
    count = len(next(iter(scores.values())))
    columns = {name: torch.tensor(values)[:, None] for name, values in scores.items()}
    return TensorDict({"score": columns}, batch_size=[count])


def selected(module, batch):
    return module(batch)["kl", "selected"].squeeze(-1).tolist()


@pytest.fixture
def hacked():
    """Sample 3 is the favourite of the primary reward and last of the others; 0 is the reverse."""
    return make_batch(
        vq=[0.1, 0.2, 0.3, 0.9, 0.4, 0.5],
        mq=[9.0, 2.0, 3.0, 0.0, 4.0, 5.0],
        ta=[90.0, 20.0, 30.0, 5.0, 40.0, 50.0],
    )


def test_the_sample_that_games_the_primary_reward_is_selected(hacked):
    assert selected(RankDisagreement("vq"), hacked) == [False, False, False, True, False, False]


def test_the_public_sign_selects_what_the_primary_reward_dislikes_instead(hacked):
    marks = selected(RankDisagreement("vq", sign="public"), hacked)
    assert marks == [True, False, False, False, False, False]


def test_gap_is_positive_where_the_primary_reward_likes_a_sample_more(hacked):
    scores = torch.stack([hacked["score", name].squeeze(-1) for name in ("vq", "mq", "ta")], dim=1)
    assert rank_gap(scores, torch.zeros(6)).tolist() == [-5.0, 0.0, 0.0, 5.0, 0.0, 0.0]


@pytest.mark.parametrize("variant", range(4))
def test_gaps_share_and_selection_equal_those_of_the_public_code(golden, variant):
    case = golden["gardo"][variant]
    module = RankDisagreement(case["primary"], case["auxiliary"], sign="public")
    names = [case["primary"], *case["auxiliary"]]
    for epoch in case["epochs"]:
        scores = torch.tensor([epoch["rewards"][name] for name in names]).T
        gaps = -rank_gap(scores, torch.zeros(len(scores)))
        expected = torch.tensor(epoch["rank_gap"], dtype=torch.float64)
        assert_close(gaps, expected, atol=1e-6, rtol=0)
        marks = selected(module, make_batch(**epoch["rewards"]))
        assert module.rho == pytest.approx(epoch["beta"], abs=1e-6)
        assert [i for i, mark in enumerate(marks) if mark] == epoch["selected"]


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_ranks_of_tied_scores_are_averages_and_sum_to_the_same_total(scores):
    values = torch.tensor(scores, dtype=torch.float32)[:, None]
    ranks = average_ranks(values, torch.zeros(len(scores))).squeeze(-1)
    assert ranks.sum() == len(scores) * (len(scores) + 1) / 2
    for score in set(scores):
        assert len({float(rank) for rank, s in zip(ranks, scores, strict=True) if s == score}) == 1


def test_group_scope_ranks_a_sample_against_its_own_group_only():
    # Over the batch, group 1 beats group 0 in both rewards, which hides that 0 and 2 swap places.
    batch = make_batch(vq=[2.0, 1.0, 20.0, 10.0], mq=[1.0, 2.0, 20.0, 10.0])
    batch["prompt", "group"] = torch.tensor([0, 0, 1, 1])
    scores = torch.cat([batch["score", "vq"], batch["score", "mq"]], dim=1)
    ranks = average_ranks(scores, batch["prompt", "group"])
    assert ranks[:, 0].tolist() == [2.0, 1.0, 2.0, 1.0]
    assert selected(RankDisagreement("vq", rank_scope="group"), batch) == [
        True,
        False,
        False,
        False,
    ]


def test_group_scope_differs_from_batch_scope():
    # Easy prompt 1 scores high in vq whatever the sample; only its own group shows the hack.
    scores = {"vq": [1.0, 2.0, 11.0, 12.0], "mq": [3.0, 4.0, 2.0, 1.0]}
    batch = make_batch(**scores)
    batch["prompt", "group"] = torch.tensor([0, 0, 1, 1])
    by_group = selected(RankDisagreement("vq", rank_scope="group"), batch)
    assert by_group == [False, False, False, True]
    ids = torch.zeros(4)
    columns = torch.tensor([scores["vq"], scores["mq"]]).T
    assert rank_gap(columns, ids).tolist() == [-2.0, -2.0, 1.0, 3.0]
    assert rank_gap(columns, batch["prompt", "group"]).tolist() == [0.0, 0.0, -1.0, 1.0]


def test_samples_without_a_finite_score_are_neither_ranked_nor_selected(hacked):
    grown = torch.cat([hacked, hacked[:2].clone()])
    grown["score", "vq"][6] = float("nan")
    grown["score", "mq"][7] = float("inf")
    assert selected(RankDisagreement("vq"), grown) == [
        *selected(RankDisagreement("vq"), hacked),
        False,
        False,
    ]


def test_samples_marked_invalid_are_never_selected(hacked):
    hacked["next", "valid"] = torch.tensor([True, True, True, False, True, True])[:, None]
    for mode in ("selective", "uniform", "none"):
        assert not selected(RankDisagreement("vq", mode=mode), hacked)[3]


def test_uniform_selects_every_valid_sample_and_none_selects_nothing():
    batch = make_batch(vq=[1.0, float("nan"), 3.0])
    assert selected(RankDisagreement("vq", mode="uniform"), batch) == [True, False, True]
    assert selected(RankDisagreement("vq", mode="none"), batch) == [False, False, False]


def test_a_batch_without_a_valid_sample_leaves_the_share_alone():
    module = RankDisagreement("vq")
    assert selected(module, make_batch(vq=[float("nan")] * 2, mq=[1.0, 2.0])) == [False, False]
    assert module.state_dict() == RankDisagreement("vq").state_dict()


def test_marks_have_the_shape_of_the_batch(hacked):
    marks = RankDisagreement("vq")(hacked.reshape(3, 2))["kl", "selected"]
    assert marks.shape == (3, 2, 1)
    assert marks.dtype == torch.bool


def test_the_share_stays_within_its_limits():
    growing = RankDisagreement("vq")
    shrinking = RankDisagreement("vq")
    for size in range(1, 40):
        growing._above(torch.tensor([float(size), -1.0]))
        shrinking._above(torch.tensor([1.0 / size, -1.0]))
    assert growing.rho == 0.2
    assert shrinking.rho == 0.02


def test_the_share_is_compared_with_the_last_twenty_means_only():
    module = RankDisagreement("vq")
    for mean in [100.0, *[5.0] * 19]:
        module._above(torch.tensor([mean]))
    assert module.rho == pytest.approx(0.09)
    module._above(torch.tensor([50.0]))
    assert module.rho == pytest.approx(0.09)
    module._above(torch.tensor([60.0]))
    assert module.rho == pytest.approx(0.099)


def test_equal_gaps_are_not_told_apart_by_rounding():
    gaps = torch.tensor([5 - 10 / 3] * 20 + [2 - 1 / 3], dtype=torch.float64)
    assert gaps[0] < gaps[-1]
    assert not RankDisagreement("vq")._above(gaps).any()


def test_the_share_survives_saving_and_loading(hacked, tmp_path):
    module = RankDisagreement("vq")
    for seed in range(5):
        torch.manual_seed(seed)
        module(make_batch(vq=torch.randn(9).tolist(), mq=torch.randn(9).tolist()))
    torch.save(module.state_dict(), tmp_path / "state.pt")
    restored = RankDisagreement("vq")
    restored.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert restored.state_dict() == module.state_dict()
    assert restored.rho != 0.1
    assert selected(restored, hacked) == selected(module, hacked)
    assert restored.state_dict() == module.state_dict()


def test_a_score_with_a_typing_error_is_answered_with_the_nearest_name(hacked):
    with pytest.raises(ValueError, match=r"needs score 'vqq'.*Did you mean 'vq'\?"):
        RankDisagreement("vqq")(hacked)


def test_with_a_single_score_nothing_is_selected_and_nothing_learned():
    module = RankDisagreement("vq")
    assert not module(make_batch(vq=[1.0, 2.0, 9.0]))["kl", "selected"].any()
    assert module.state_dict() == RankDisagreement("vq").state_dict()


@pytest.mark.parametrize("option", [{"mode": "all"}, {"rank_scope": "rank"}, {"sign": "plus"}])
def test_an_unknown_option_is_refused_with_the_choices(option):
    with pytest.raises(ValueError, match=r"Choose from \("):
        RankDisagreement("vq", **option)
