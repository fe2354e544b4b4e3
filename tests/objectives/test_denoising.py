"""Noise, levels and the order of passes, which all losses on re-noised clips share."""

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributed.tensor import distribute_tensor

from astrolabe_objectives import NFTLoss, Snapshots

SIGMAS = (1.0, 0.9375, 0.8333, 0.625)


@pytest.fixture
def loss(network, snapshots):
    return NFTLoss(network, snapshots, SIGMAS)


def total(losses):
    return losses["loss_policy"] + losses["loss_kl"]


def test_autograd_refuses_a_swap_between_the_loss_and_backward(snapshots, loss, clips):
    losses = loss(clips)
    with snapshots.use("old"):
        pass
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total(losses).backward()


def test_ranks_that_share_parameters_run_the_same_passes_whatever_is_selected(mesh, clips):
    holder = nn.Module()
    holder.weight = nn.Parameter(distribute_tensor(torch.ones(1), mesh))
    passes = []

    def denoise(noisy, _sigma):
        passes.append(torch.is_grad_enabled())
        return noisy * holder.weight.full_tensor()

    network = TensorDictModule(
        denoise,
        in_keys=[("noisy", "latents"), ("noisy", "sigma")],
        out_keys=[("denoised", "latents")],
    )
    loss = NFTLoss(network, Snapshots(holder, "old", "reference"), SIGMAS)
    clips["kl", "selected"].zero_()
    assert loss(clips)["loss_kl"] == 0
    assert passes == [False, False, True]


def test_same_seed_draws_the_same_noise_and_levels(loss, clips):
    loss.seed(5)
    first = loss(clips)
    other = loss(clips)
    loss.seed(5)
    assert loss(clips)["loss_policy"] == first["loss_policy"]
    assert other["loss_policy"] != first["loss_policy"]


def test_global_random_state_is_neither_used_nor_moved(loss, clips):
    loss.seed(5)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = loss(clips)["loss_policy"]
    assert torch.get_rng_state().equal(before)
    loss.seed(5)
    torch.manual_seed(9)
    assert loss(clips)["loss_policy"] == first


def test_a_batch_that_holds_noise_keeps_it(loss, clips):
    noised = loss.noise(clips)
    again = loss.noise(noised)
    for key in (("noisy", "latents"), ("noisy", "sigma")):
        assert again[key].equal(noised[key])


def test_a_clip_has_one_noise_level_and_only_the_given_ones_occur(loss, clips):
    seen = set()
    for _ in range(20):
        noised = loss.noise(clips)
        sigma = noised["noisy", "sigma"]
        assert sigma.shape == (6, 3)
        assert (sigma == sigma[:, :1]).all()
        seen |= set(sigma.unique().tolist())
    assert seen == set(torch.tensor(SIGMAS).tolist())


def test_noise_lies_on_the_straight_path_with_unit_variance(loss, clips):
    latents = torch.ones(6, 3, 2, 64, 64)
    noised = loss.noise(clips.set(("video", "latents"), latents))
    sigma = noised["noisy", "sigma"][:, :, None, None, None]
    noise = (noised["noisy", "latents"] - (1 - sigma) * latents) / sigma
    assert noise.mean().abs() < 0.01
    assert abs(noise.std() - 1) < 0.01


def test_all_levels_takes_every_clip_at_every_level(network, snapshots, clips):
    loss = NFTLoss(network, snapshots, SIGMAS, levels="all")
    noised = loss.noise(clips)
    assert noised.batch_size == torch.Size([24])
    assert noised["advantage"].equal(clips["advantage"].repeat(4, 1))
    pairs = {
        (round(float(a), 3), round(float(s), 3))
        for a, s in zip(noised["advantage"], noised["noisy", "sigma"][:, 0], strict=True)
    }
    assert len(pairs) == 24
    total(loss(clips)).backward()


def test_uniform_levels_fill_the_range_of_the_given_ones(network, snapshots, clips):
    loss = NFTLoss(network, snapshots, SIGMAS, draw="uniform")
    sigma = torch.cat([loss.noise(clips)["noisy", "sigma"][:, 0] for _ in range(200)])
    assert sigma.min() >= 0.625
    assert sigma.max() <= 1
    assert abs(sigma.mean() - (1 + 0.625) / 2) < 0.01
    assert abs(sigma.std() - (1 - 0.625) / 12**0.5) < 0.01
    assert len(sigma.unique()) > 1000


def test_all_uniform_levels_come_one_from_each_part_of_the_range(network, snapshots, clips):
    loss = NFTLoss(network, snapshots, [1.0, 0.5], draw="uniform", levels="all")
    noised = loss.noise(clips)
    assert noised["advantage"].equal(clips["advantage"].repeat(2, 1))
    low, high = noised["noisy", "sigma"][:, 0].chunk(2)
    assert ((low >= 0.5) & (low <= 0.75)).all()
    assert ((high >= 0.75) & (high <= 1)).all()
    assert len(low.unique()) == 6


def test_snapshots_without_old_are_refused(network):
    with pytest.raises(ValueError, match="without the behaviour policy"):
        NFTLoss(network, Snapshots(network, "reference"), SIGMAS)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"levels": "two"}, "got levels='two'. Choose"),
        ({"draw": "normal"}, "got draw='normal'. Choose"),
        ({"draw": "uniform", "sigmas": [0.5]}, "nothing between the lowest and the highest"),
        ({"sigmas": []}, "Give one or more noise levels"),
        ({"sigmas": [1000, 750]}, "a timestep is divided by 1000"),
        ({"sigmas": [0.0, 0.5]}, "Give one or more noise levels"),
    ],
)
def test_levels_outside_their_range_are_refused(network, snapshots, setting, message):
    with pytest.raises(ValueError, match=message):
        NFTLoss(network, snapshots, **{"sigmas": SIGMAS, **setting})


def test_no_pass_sees_what_another_one_wrote(network, snapshots, clips):
    seen = []

    def look(module, inputs):
        seen.append(("denoised", "latents") in inputs[0].keys(include_nested=True))

    network.register_forward_pre_hook(look)
    loss = NFTLoss(network, snapshots, SIGMAS)
    noised = loss.noise(clips)
    loss(noised)
    assert seen == [False, False, False]
    assert "denoised" not in noised
