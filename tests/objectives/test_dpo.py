import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.nn.functional import logsigmoid
from torch.testing import assert_close

from astrolabe_objectives import DPOLoss, Snapshots
from astrolabe_objectives.dpo import best_and_worst

SIGMAS = (1.0, 0.9375, 0.8333, 0.625)


@pytest.fixture
def loss(network, snapshots):
    return DPOLoss(network, snapshots, SIGMAS, beta=10.0)


def test_pairs_are_the_extremes_of_each_group_and_window():
    advantage = torch.tensor([1.0, 2.0, -1.0, -2.0, 5.0, -5.0])
    ids = torch.tensor([[0, 0], [0, 0], [0, 0], [0, 1], [0, 1], [1, 0]])
    # The last sample is alone in its group.
    assert best_and_worst(advantage, ids).tolist() == [[1, 2], [4, 3]]


def test_clips_without_a_judgement_and_groups_of_one_quality_are_in_no_pair():
    advantage = torch.tensor([0.0, -1.0, -2.0, 0.0, 0.0, 3.0, 3.0])
    ids = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    assert best_and_worst(advantage, ids).tolist() == [[1, 2]]


def test_noise_gives_pairs_that_share_level_and_noise(loss, sampled):
    noised = loss.noise(sampled)
    assert noised.shape == (2, 2)
    assert noised["advantage"].squeeze(-1).tolist() == [[-1.0, -2.0], [9.0, 1.0]]
    sigma = noised["noisy", "sigma"]  # [P, 2, f]
    assert sigma.shape == (2, 2, 3)
    assert (sigma == sigma[:, :1, :1]).all()
    scale = sigma[..., None, None, None]
    noise = (noised["noisy", "latents"] - (1 - scale) * noised["video", "latents"]) / scale
    assert_close(noise[:, 0], noise[:, 1], atol=1e-5, rtol=1e-5)
    assert not torch.isclose(noise[0], noise[1]).all()


def test_all_levels_takes_every_pair_at_every_level(network, snapshots, sampled):
    noised = DPOLoss(network, snapshots, SIGMAS, levels="all").noise(sampled)
    assert noised.shape == (8, 2)
    assert noised["noisy", "sigma"][:, 0, 0].tolist() == pytest.approx(
        [sigma for sigma in SIGMAS for _ in range(2)]
    )


def test_the_loss_is_the_formula_of_the_pair(network, snapshots, loss, sampled, nudge):
    nudge(network)
    snapshots.refresh("old")  # so that old is not the reference
    nudge(network)
    noised = loss.noise(sampled)
    seen = loss.predict(noised.reshape(-1), reference=True)
    sigma, target = seen.sigma, noised.reshape(-1)["video", "latents"]

    def errors(x0):
        return ((x0 - target) / sigma).square().mean(dim=(1, 2, 3, 4)).view(2, 2)

    policy, reference = errors(seen.policy), errors(seen.reference)
    margin = (policy[:, 0] - policy[:, 1]) - (reference[:, 0] - reference[:, 1])
    losses = loss(noised)
    assert_close(losses["loss_policy"], -logsigmoid(-5.0 * margin).mean())
    assert_close(losses["best_error"], policy[:, 0].mean().detach())
    assert_close(losses["worst_error"], policy[:, 1].mean().detach())
    assert losses["preference_accuracy"] == (margin < 0).float().mean()


def test_while_policy_and_reference_are_equal_the_loss_is_log_two(loss, sampled):
    assert_close(loss(sampled)["loss_policy"].detach(), torch.tensor(math.log(2)))


def test_a_step_down_the_gradient_prefers_the_better_clips(network, loss, sampled):
    noised = loss.noise(sampled)
    before = loss(noised)
    before["loss_policy"].backward()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter -= 0.01 * parameter.grad
    after = loss(noised)
    assert after["loss_policy"] < before["loss_policy"]
    gap = [losses["best_error"] - losses["worst_error"] for losses in (before, after)]
    assert gap[1] < gap[0]
    assert after["preference_accuracy"] == 1


def test_a_batch_without_a_pair_teaches_nothing(network, loss, sampled):
    sampled["advantage"].zero_()
    objective = loss(sampled)["loss_policy"]
    objective.backward()
    assert_close(objective.detach(), torch.tensor(math.log(2)))
    assert network.head.weight.grad.abs().max() < 1e-5


def test_training_finds_the_margin_of_bradley_and_terry():
    """Three of four groups prefer clip a to clip b, the fourth the other way round.

    The best margin between the two implicit rewards is then the log of the odds, log 3.
    """
    torch.manual_seed(0)
    a, b = torch.randn(2, 1, 2, 2, 2)
    start = torch.randn(8)
    table = nn.Parameter(start.clone())
    holder = nn.Module()
    holder.table = table
    network = TensorDictModule(
        lambda noisy, _sigma: table.view(1, 1, 2, 2, 2).repeat(len(noisy), 1, 1, 1, 1),
        in_keys=[("noisy", "latents"), ("noisy", "sigma")],
        out_keys=[("denoised", "latents")],
    )
    batch = TensorDict(
        {
            "video": {"latents": torch.stack([a, b] * 4)},
            "prompt": {"group": torch.arange(8) // 2},
            "advantage": torch.tensor([1.0, -1.0] * 3 + [-1.0, 1.0])[:, None],
            "kl": {"selected": torch.zeros(8, 1, dtype=torch.bool)},
        },
        batch_size=[8],
    )
    snapshots = Snapshots(holder, "old", "reference")
    loss = DPOLoss(network, snapshots, [1.0], beta=3.0, prediction="x0")
    optimizer = torch.optim.LBFGS([table], lr=1.0, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        objective = loss(batch)["loss_policy"]
        objective.backward()
        return objective

    for _ in range(5):
        optimizer.step(closure)

    def reward(clip):
        found, reference = (
            (values.detach().view(1, 2, 2, 2) - clip).square().mean() for values in (table, start)
        )
        return -1.5 * (found - reference)

    assert_close(reward(a) - reward(b), torch.tensor(math.log(3)), atol=1e-3, rtol=1e-3)
    # It gets there on the straight line from b to a.
    moved, line = table.detach() - start, (a - b).flatten()
    assert_close(moved / moved.norm(), line / line.norm(), atol=1e-3, rtol=1e-3)


def test_keys_of_groups_can_be_renamed(loss, sampled):
    expected = loss(sampled)["loss_policy"]
    loss.set_keys(group="team")
    assert "team" in loss.in_keys
    assert ("prompt", "group") not in loss.in_keys
    sampled["team"] = sampled.pop(("prompt", "group"))
    loss.seed(0)
    assert loss(sampled)["loss_policy"] == expected


def test_a_noised_batch_that_is_not_of_pairs_is_refused(loss, sampled):
    with pytest.raises(ValueError, match=r"of shape \(4,\), not of pairs \[P, 2\]"):
        loss(loss.noise(sampled).reshape(-1))


def test_a_reference_is_needed(network):
    with pytest.raises(ValueError, match=r"snapshots are \('old',\)\. Make them with"):
        DPOLoss(network, Snapshots(network, "old"), SIGMAS)


def test_beta_outside_its_range_is_refused(network, snapshots):
    with pytest.raises(ValueError, match="DPOLoss got beta=0"):
        DPOLoss(network, snapshots, SIGMAS, beta=0)


def test_metrics_of_pairs_are_nan_without_a_pair(network, snapshots, sampled):
    loss = DPOLoss(network, snapshots, SIGMAS, beta=10.0)
    sampled["advantage"] = torch.zeros_like(sampled["advantage"])
    found = loss(sampled)
    names = ("best_error", "worst_error", "preference_accuracy")
    assert all(math.isnan(found[name]) for name in names)
    assert found["loss_policy"].item() == pytest.approx(math.log(2))
