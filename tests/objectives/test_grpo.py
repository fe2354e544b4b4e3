import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import Normal
from torch.testing import assert_close

from astrolabe_objectives import CMGRPOLoss, Snapshots
from astrolabe_objectives.grpo import log_ratio

SIGMAS = (1.0, 0.9375, 0.8333, 0.625)


@pytest.fixture
def loss(network, snapshots):
    return CMGRPOLoss(network, snapshots, SIGMAS)


def test_the_log_ratio_is_that_of_two_gaussians():
    mean, other, point = torch.randn(3, 4, 5, dtype=torch.float64)
    width = 0.3
    expected = (Normal(other, width).log_prob(point) - Normal(mean, width).log_prob(point)).mean(1)
    assert_close(log_ratio((other - mean) / width, (point - mean) / width), expected)


def test_before_the_first_step_every_ratio_is_one_and_the_loss_minus_the_advantage(loss, sampled):
    losses = loss(sampled)
    assert losses["ratio"] == 1
    assert losses["clipped_fraction"] == 0
    assert_close(losses["loss_policy"].detach(), -sampled["advantage"].clamp(-5, 5).mean())


def test_the_noise_of_a_real_sampler_has_unit_variance_and_wrong_levels_show(
    network, snapshots, sampled
):
    right = CMGRPOLoss(network, snapshots, SIGMAS, levels="all")(sampled)["step_residual"]
    assert abs(right - 1) < 0.1
    unwarped = CMGRPOLoss(network, snapshots, (1.0, 0.75, 0.5, 0.25), levels="all")(sampled)
    assert unwarped["step_residual"] > 1.5


def test_a_step_goes_from_a_visited_state_to_the_next_and_never_from_the_last(loss, sampled):
    seen = set()
    for _ in range(20):
        noised = loss.noise(sampled)
        states = sampled["steps", "latents"]
        for row, sigma in enumerate(noised["noisy", "sigma"][:, 0].tolist()):
            step = [round(level, 4) for level in SIGMAS].index(round(sigma, 4))
            seen.add(step)
            assert noised["noisy", "latents"][row].equal(states[row, step])
            assert noised["drawn", "next"][row].equal(states[row, step + 1])
            assert noised["drawn", "next_sigma"][row] == torch.tensor(SIGMAS[step + 1])
    assert seen == {0, 1, 2}
    assert ("steps", "latents") not in noised.keys(True, True)


def test_all_levels_takes_every_step_of_every_clip(network, snapshots, sampled):
    noised = CMGRPOLoss(network, snapshots, SIGMAS, levels="all").noise(sampled)
    assert noised.shape == (18,)
    states = sampled["steps", "latents"]
    assert noised["noisy", "latents"].equal(states[:, :3].transpose(0, 1).flatten(0, 1))
    assert noised["drawn", "next"].equal(states[:, 1:].transpose(0, 1).flatten(0, 1))


def test_the_loss_is_the_clipped_objective_of_the_kernel(network, snapshots, sampled, nudge):
    loss = CMGRPOLoss(network, snapshots, SIGMAS, ratio_clip=1e-3, levels="all")
    nudge(network, size=0.02)
    noised = loss.noise(sampled)
    seen = loss.predict(noised, reference=False)
    sigma = noised["drawn", "next_sigma"].view(-1, 1, 1, 1, 1)

    def log_probability(x0):
        density = Normal((1 - sigma) * x0, sigma.expand_as(x0))
        return density.log_prob(noised["drawn", "next"]).mean(dim=(1, 2, 3, 4))

    ratio = (log_probability(seen.policy) - log_probability(seen.old)).exp()
    advantage = noised["advantage"].squeeze(-1).clamp(-5, 5)
    kept = torch.minimum(ratio * advantage, ratio.clamp(0.999, 1.001) * advantage)
    losses = loss(noised)
    assert_close(losses["loss_policy"], -kept.mean(), atol=1e-5, rtol=1e-5)
    assert_close(losses["ratio"], ratio.mean().detach(), atol=1e-5, rtol=1e-5)
    assert 0 < losses["clipped_fraction"] < 1


def test_steps_beyond_the_clip_teach_nothing(network, snapshots, sampled, nudge):
    sampled["kl", "selected"].zero_()
    loss = CMGRPOLoss(network, snapshots, SIGMAS, ratio_clip=1e-6)
    nudge(network, size=0.5)
    noised = loss.noise(sampled)
    seen = loss.predict(noised, reference=False)
    sigma = noised["drawn", "next_sigma"].view(-1, 1, 1, 1, 1)
    residual = (noised["drawn", "next"] - (1 - sigma) * seen.old) / sigma
    ratio = log_ratio((1 - sigma) * (seen.policy - seen.old) / sigma, residual).detach().exp()
    assert ((ratio - 1).abs() > 1e-5).all()
    # The policy has moved as far as it may, and is told to go on in the same direction.
    noised["advantage"] = (ratio - 1).sign()[:, None]
    losses = loss(noised)
    assert losses["clipped_fraction"] == 1
    losses["loss_policy"].backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in network.parameters())
    # Told to come back, it learns.
    network.zero_grad()
    noised["advantage"] = -noised["advantage"]
    losses = loss(noised)
    assert losses["clipped_fraction"] == 0
    losses["loss_policy"].backward()
    assert network.head.weight.grad.abs().max() > 0


def test_the_gradient_is_that_of_the_expected_reward():
    """A sampler of one noisy step whose reward is linear in the state that the step leads to.

    There, and only there, the gradient of the expected reward is known: x' = (1-σ') m + σ' ε and
    R = a · x' give dE[R]/dm = (1-σ') a; the mean over D entries in the ratio divides it by D.
    """
    torch.manual_seed(0)
    count, sigma = 40_000, 0.6
    holder = nn.Module()
    holder.mean = nn.Parameter(torch.randn(4))
    slope = torch.tensor([1.0, -2.0, 0.5, 0.0])
    network = TensorDictModule(
        lambda noisy, _sigma: holder.mean.view(1, 1, 1, 2, 2).repeat(len(noisy), 1, 1, 1, 1),
        in_keys=[("noisy", "latents"), ("noisy", "sigma")],
        out_keys=[("denoised", "latents")],
    )
    start = torch.randn(count, 4)
    after = (1 - sigma) * holder.mean.detach() + sigma * torch.randn(count, 4)
    reward = after @ slope
    batch = TensorDict(
        {
            "video": {"latents": after.view(-1, 1, 1, 2, 2)},
            "steps": {"latents": torch.stack([start, after], 1).view(-1, 2, 1, 1, 2, 2)},
            "advantage": (reward - reward.mean())[:, None],
            "kl": {"selected": torch.zeros(count, 1, dtype=torch.bool)},
        },
        batch_size=[count],
    )
    loss = CMGRPOLoss(network, Snapshots(holder, "old"), [1.0, sigma], advantage_clip=100.0)
    losses = loss(batch)
    losses["loss_policy"].backward()
    assert abs(losses["step_residual"] - 1) < 0.02
    assert_close(-holder.mean.grad, (1 - sigma) * slope / 4, atol=5e-3, rtol=0.05)


def test_policy_gradient_steps_raise_the_reward_of_the_toy_sampler():
    torch.manual_seed(0)
    holder = nn.Module()
    holder.mean = nn.Parameter(torch.zeros(4))
    slope = torch.tensor([1.0, -2.0, 0.5, 0.0])
    network = TensorDictModule(
        lambda noisy, _sigma: holder.mean.view(1, 1, 1, 2, 2).repeat(len(noisy), 1, 1, 1, 1),
        in_keys=[("noisy", "latents"), ("noisy", "sigma")],
        out_keys=[("denoised", "latents")],
    )
    snapshots = Snapshots(holder, "old")
    loss = CMGRPOLoss(network, snapshots, [1.0, 0.6], ratio_clip=0.2)
    optimizer = torch.optim.SGD([holder.mean], lr=1.0)
    for _ in range(30):
        start, noise = torch.randn(2, 64, 4)
        after = 0.4 * holder.mean.detach() + 0.6 * noise
        reward = after @ slope
        batch = TensorDict(
            {
                "video": {"latents": after.view(-1, 1, 1, 2, 2)},
                "steps": {"latents": torch.stack([start, after], 1).view(-1, 2, 1, 1, 2, 2)},
                "advantage": ((reward - reward.mean()) / reward.std())[:, None],
                "kl": {"selected": torch.zeros(64, 1, dtype=torch.bool)},
            },
            batch_size=[64],
        )
        optimizer.zero_grad()
        loss(batch)["loss_policy"].backward()
        optimizer.step()
        snapshots.refresh("old")
    learned = holder.mean.detach()
    assert learned @ slope > 1
    assert torch.cosine_similarity(learned, slope, dim=0) > 0.95


def test_same_seed_draws_the_same_steps(loss, sampled):
    loss.seed(3)
    first = loss.noise(sampled)["noisy", "sigma"]
    loss.seed(3)
    assert loss.noise(sampled)["noisy", "sigma"].equal(first)


def test_another_number_of_states_than_levels_is_refused(network, snapshots, sampled):
    loss = CMGRPOLoss(network, snapshots, SIGMAS[:3])
    with pytest.raises(ValueError, match=r"is \(6, 4, 3, 2, 4, 4\).*of the K=3 levels"):
        loss(sampled)


def test_a_batch_without_steps_is_refused_by_name(loss, sampled):
    with pytest.raises(KeyError, match=r"CMGRPOLoss reads \('steps', 'latents'\)"):
        loss(sampled.exclude("steps"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"ratio_clip": 0.0}, "CMGRPOLoss got ratio_clip=0.0. Give more than 0"),
        ({"advantage_clip": -5.0}, "CMGRPOLoss got advantage_clip=-5.0"),
        ({"sigmas": [1.0]}, "Give two or more falling levels"),
        ({"sigmas": [0.5, 1.0]}, "Give two or more falling levels"),
    ],
)
def test_settings_outside_their_range_are_refused(network, snapshots, setting, message):
    with pytest.raises(ValueError, match=message):
        CMGRPOLoss(network, snapshots, **{"sigmas": SIGMAS, **setting})
