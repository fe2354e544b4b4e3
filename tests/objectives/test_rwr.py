import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.testing import assert_close

from astrolabe_objectives import RWRLoss, Snapshots
from astrolabe_objectives.rwr import regression_weights

SIGMAS = (1.0, 0.9375, 0.8333, 0.625)


def test_weights_are_exponential_with_mean_one():
    advantage = torch.tensor([-2.0, -0.5, 1.0, 1.5])
    weight = regression_weights(advantage, temperature=0.5, weight_clip=100.0)
    assert_close(weight.mean(), torch.tensor(1.0))
    assert_close(weight / weight[2], ((advantage - 1.0) / 0.5).exp())


def test_weights_are_cut_so_that_no_clip_rules_the_batch():
    advantage = torch.tensor([9.0, *[-1.0] * 9])
    assert regression_weights(advantage, 1.0, weight_clip=100.0)[0] > 9.9
    assert regression_weights(advantage, 1.0, weight_clip=3.0)[0] == 3.0


def test_a_high_temperature_is_plain_self_imitation_and_a_low_one_picks_the_best():
    advantage = torch.tensor([-1.0, 0.5, 2.0])
    assert_close(regression_weights(advantage, 1e6, 20.0), torch.ones(3))
    assert_close(regression_weights(advantage, 1e-3, 20.0), torch.tensor([0.0, 0.0, 3.0]))


def test_clips_without_a_judgement_have_no_weight_and_change_no_other():
    advantage = torch.tensor([-1.0, 2.0])
    padded = regression_weights(torch.tensor([0.0, -1.0, 2.0, 0.0]), 1.0, 20.0)
    expected = regression_weights(advantage, 1.0, 20.0)
    assert_close(padded, torch.cat([torch.zeros(1), expected, torch.zeros(1)]))
    assert regression_weights(torch.zeros(3), 1.0, 20.0).tolist() == [0.0, 0.0, 0.0]


def test_a_batch_without_a_judgement_teaches_nothing(network, snapshots, clips):
    clips["advantage"].zero_()
    loss = RWRLoss(network, snapshots, SIGMAS)(clips)["loss_policy"]
    assert loss == 0
    loss.backward()
    assert network.head.weight.grad.abs().max() == 0


def test_the_loss_is_the_weighted_squared_error(network, snapshots, clips):
    loss = RWRLoss(network, snapshots, SIGMAS, prediction="x0", temperature=2.0)
    noised = loss.noise(clips)
    seen = loss.predict(noised, reference=False)
    weight = regression_weights(clips["advantage"].squeeze(-1), 2.0, 20.0)
    error = (seen.policy - clips["video", "latents"]).square().mean(dim=(1, 2, 3, 4))
    losses = loss(noised)
    assert_close(losses["loss_policy"], (weight * error).mean())
    assert_close(losses["policy_error"], error.mean().detach())


@pytest.mark.parametrize("prediction", ["velocity", "x0"])
def test_training_finds_the_weighted_mean_of_the_clips(prediction):
    """At σ = 1 the noisy clip says nothing, so the best network is a table of one clip a prompt."""
    torch.manual_seed(0)
    prompts = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    latents = torch.randn(7, 1, 2, 2, 2)
    advantage = torch.tensor([-1.0, 0.5, 2.0, 1.0, -0.2, -0.3, 0.1])
    table = nn.Embedding(2, 8)
    network = TensorDictModule(
        lambda _noisy, _sigma, prompt: table(prompt).view(-1, 1, 2, 2, 2),
        in_keys=[("noisy", "latents"), ("noisy", "sigma"), "prompt"],
        out_keys=[("denoised", "latents")],
    )
    batch = TensorDict(
        {
            "video": {"latents": latents},
            "advantage": advantage[:, None],
            "kl": {"selected": torch.zeros(7, 1, dtype=torch.bool)},
            "prompt": prompts,
        },
        batch_size=[7],
    )
    loss = RWRLoss(network, Snapshots(table, "old"), [1.0], temperature=0.7, prediction=prediction)
    optimizer = torch.optim.LBFGS(table.parameters(), lr=1.0, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        objective = loss(batch)["loss_policy"]
        objective.backward()
        return objective

    for _ in range(5):
        optimizer.step(closure)

    for prompt in (0, 1):
        rows = prompts == prompt
        share = (advantage[rows] / 0.7).softmax(dim=0).view(-1, 1, 1, 1, 1)
        expected = (share * latents[rows]).sum(dim=0)
        assert_close(table.weight[prompt].detach().view(1, 2, 2, 2), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": 0.0}, "RWRLoss got temperature=0.0. Give more than 0"),
        ({"weight_clip": float("nan")}, "RWRLoss got weight_clip=nan"),
    ],
)
def test_settings_outside_their_range_are_refused(network, snapshots, setting, message):
    with pytest.raises(ValueError, match=message):
        RWRLoss(network, snapshots, SIGMAS, **setting)
