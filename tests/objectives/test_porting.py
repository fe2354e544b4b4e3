"""How the numbers of other people's public code relate to those here; their formulas, restated."""

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.testing import assert_close

from astrolabe_objectives import CMGRPOLoss, NFTLoss, Snapshots
from astrolabe_objectives.anchored import to_velocity

SIGMAS = (0.9, 0.4)


def build(kind, batch, **settings):
    """A loss on points whose three networks differ, its noised batch, and their predictions."""
    core = nn.Linear(2, 2)
    network = TensorDictModule(
        lambda noisy, sigma: core(noisy),
        in_keys=[("noisy", "latents"), ("noisy", "sigma")],
        out_keys=[("denoised", "latents")],
    )
    snapshots = Snapshots(core, "old", "reference")
    with torch.no_grad():
        for name in ("old", "reference"):
            for value in core.parameters():
                value += 0.2 * torch.randn(value.shape)
            snapshots.refresh(name)
        core.weight += 0.1
    loss = kind(network, snapshots, SIGMAS, **settings)
    noised = loss.noise(batch)
    with torch.no_grad():
        seen = [core(noised["noisy", "latents"])]
        for name in ("old", "reference"):
            with snapshots.use(name):
                seen.append(core(noised["noisy", "latents"]))
    return loss, noised, core, seen


def batch_of():
    torch.manual_seed(0)
    batch = TensorDict(batch_size=[8])
    batch["video", "latents"] = torch.randn(8, 2)
    batch["steps", "latents"] = torch.randn(8, 2, 2)
    batch["advantage"] = torch.tensor([2.0, 0, -1, 0, 7, 0, 0, -3])[:, None]
    batch["kl", "selected"] = torch.ones(8, 1, dtype=torch.bool)
    return batch


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_the_loss_of_nvlabs_is_ours_times_advantage_clip_over_beta(beta):
    """DiffusionNFT, public trainer: 5 times ours at β = 1, 50 times at β = 0.1."""
    settings = {"beta": beta, "adaptive": True, "prediction": "x0", "kl_coeff": 1.0}
    loss, noised, core, (_, old, reference) = build(NFTLoss, batch_of(), **settings)
    noisy, clean = noised["noisy", "latents"], noised["video", "latents"]
    sigma = noised["noisy", "sigma"][:, None]
    forward, before, anchor = ((noisy - x0) / sigma for x0 in (core(noisy), old, reference))
    share = (noised["advantage"].squeeze(1).clamp(-5, 5) / 5 / 2 + 0.5).clamp(0, 1)
    theirs = 0.0
    for weight, sign in ((share, beta), (1 - share, -beta)):
        x0 = noisy - sigma * (sign * forward + (1 - sign) * before)
        size = (x0.detach() - clean).abs().mean(dim=1, keepdim=True).clamp(min=1e-5)
        theirs = theirs + weight * ((x0 - clean) ** 2 / size).mean(dim=1) / beta * 5
    found = loss(noised)
    assert_close(found["loss_policy"] * 5 / beta, theirs.mean())
    expected = torch.autograd.grad(theirs.mean(), core.weight, retain_graph=True)[0]
    ours = torch.autograd.grad(found["loss_policy"], core.weight, retain_graph=True)[0]
    assert_close(ours * 5 / beta, expected)
    # Their KL term is of velocities, ours of what `prediction` says.
    kl = ((forward - anchor) ** 2).mean()
    velocities = build(NFTLoss, batch_of(), **{**settings, "prediction": "velocity"})
    assert_close(velocities[0](velocities[1])["loss_kl"], kl)


def test_flow_grpo_takes_the_mean_over_advantages_that_are_not_zero():
    loss, noised, _, (policy, old, _) = build(CMGRPOLoss, batch_of(), ratio_clip=9.0)
    advantage = noised["advantage"].squeeze(1).clamp(-5, 5)
    level = noised["drawn", "next_sigma"][:, None]

    def logp(x0):
        return -(((noised["drawn", "next"] - (1 - level) * x0) / level) ** 2 / 2).mean(dim=1)

    gain = (logp(policy) - logp(old)).exp() * advantage
    kept = advantage != 0
    assert_close(loss(noised)["loss_policy"].detach(), -gain[kept].mean() * kept.float().mean())


def test_an_error_of_a_velocity_is_that_of_its_noise_over_one_minus_sigma_squared():
    noisy, first, second = torch.randn(3, 4, 2).unbind()
    sigma = torch.tensor([0.2, 0.5, 0.7, 0.9])[:, None]
    noise = [(noisy - (1 - sigma) * x0) / sigma for x0 in (first, second)]
    velocity = [to_velocity(noisy, x0, sigma) for x0 in (first, second)]
    expected = (noise[0] - noise[1]) ** 2 / (1 - sigma) ** 2
    assert_close((velocity[0] - velocity[1]) ** 2, expected, rtol=1e-4, atol=1e-5)
