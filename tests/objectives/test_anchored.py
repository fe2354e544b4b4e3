"""What holds for every objective, whatever it makes of an advantage."""

from importlib.metadata import entry_points

import pytest
import torch
from torch.testing import assert_close
from torchrl.objectives import LossModule

from astrolabe_objectives import CMGRPOLoss, DPOLoss, NFTLoss, RWRLoss, Snapshots
from astrolabe_objectives.anchored import to_velocity

SIGMAS = (1.0, 0.9375, 0.8333, 0.625)
LOSSES = {"nft": NFTLoss, "rwr": RWRLoss, "dpo": DPOLoss, "cm_grpo": CMGRPOLoss}

every_loss = pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_found_by_its_entry_point(name):
    (found,) = entry_points(group="astrolabe.objectives", name=name)
    assert found.load() is LOSSES[name]


@every_loss
def test_before_the_first_step_nothing_has_moved(network, snapshots, sampled, make):
    losses = make(network, snapshots, SIGMAS)(sampled)
    assert losses["kl"] == 0
    assert losses["old_deviation"] == 0


@every_loss
def test_losses_have_a_gradient_and_metrics_have_none(network, snapshots, sampled, nudge, make):
    loss = make(network, snapshots, SIGMAS)
    nudge(network)
    losses = loss(sampled)
    assert isinstance(loss, LossModule)
    assert list(losses.keys()) == loss.out_keys
    for key, value in losses.items():
        assert value.dtype == torch.float32
        assert value.shape == ()
        assert value.isfinite()
        assert value.requires_grad == key.startswith("loss_"), key


@every_loss
@pytest.mark.parametrize("levels", ["one", "all"])
@pytest.mark.parametrize("part", [1, 2, 5])
def test_parts_of_a_batch_add_up_to_the_gradient_of_the_whole(
    network, snapshots, sampled, nudge, gradient, make, levels, part
):
    # Both steps are small: beyond the clip of CM-GRPO there would be no gradient to compare.
    nudge(network, size=1e-3)
    settings = {"kl_coeff": 10.0, "levels": levels, "prediction": "x0"}
    if make is CMGRPOLoss:
        settings["ratio_clip"] = 0.5
    loss = make(network, snapshots, SIGMAS, **settings)
    whole, expected = gradient(loss, sampled, 100)
    found, metrics = gradient(loss, sampled, part)
    assert whole.abs().max() > 1e-4
    assert_close(found, whole, atol=1e-6, rtol=1e-4)
    assert metrics == pytest.approx(expected, rel=1e-4, abs=1e-7)


@every_loss
def test_old_and_reference_run_without_gradient_and_the_policy_last(
    network, snapshots, sampled, nudge, make
):
    loss = make(network, snapshots, SIGMAS)
    nudge(network)
    sampled["kl", "selected"].fill_(True)
    loss(sampled)
    assert [gradient for _, gradient in network.passes] == [False, False, True]
    assert network.passes[-1][0].equal(network.head.weight)


@every_loss
def test_gradient_reaches_the_trained_parameters_only(network, snapshots, sampled, nudge, make):
    loss = make(network, snapshots, SIGMAS)
    nudge(network)
    losses = loss(sampled)
    (losses["loss_policy"] + losses["loss_kl"]).backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


@every_loss
def test_in_keys_are_enough_and_the_batch_is_left_as_it_was(network, snapshots, sampled, make):
    loss = make(network, snapshots, SIGMAS)
    before = sampled.clone()
    first = loss(sampled)["loss_policy"]
    assert set(sampled.keys(True, True)) == set(before.keys(True, True))
    assert (sampled == before).all()
    loss.seed(0)
    assert loss(sampled.select(*loss.in_keys))["loss_policy"] == first


@every_loss
def test_windows_of_videos_give_the_loss_of_the_flat_batch(network, snapshots, sampled, make):
    loss = make(network, snapshots, SIGMAS)
    flat = loss(sampled)["loss_policy"]
    loss.seed(0)
    assert loss(sampled.reshape(3, 2))["loss_policy"] == flat


@every_loss
def test_the_policy_is_pulled_to_the_reference_where_clips_are_selected(
    network, snapshots, sampled, nudge, make
):
    nudge(network)
    sampled["kl", "selected"].fill_(True)
    losses = make(network, snapshots, SIGMAS, kl_coeff=0.5)(sampled)
    assert losses["kl"] > 0
    assert_close(losses["loss_kl"].detach(), 0.5 * losses["kl"])
    sampled["kl", "selected"].zero_()
    losses = make(network, snapshots, SIGMAS, kl_coeff=0.5)(sampled)
    assert losses["loss_kl"] == 0


@pytest.mark.parametrize("make", [RWRLoss, DPOLoss, CMGRPOLoss])
def test_what_the_sampler_left_of_its_noise_is_not_taken_for_the_loss_s_own(
    network, snapshots, sampled, make
):
    loss = make(network, snapshots, SIGMAS)
    expected = loss(sampled)["loss_policy"]
    sampled["noisy", "latents"] = torch.zeros(6, 3, 2, 4, 4)
    sampled["noisy", "sigma"] = torch.ones(6, 3)
    loss.seed(0)
    assert loss(sampled.reshape(3, 2))["loss_policy"] == expected


@pytest.mark.parametrize("make", [NFTLoss, RWRLoss, CMGRPOLoss])
def test_selected_clips_need_a_reference_snapshot(network, sampled, make):
    loss = make(network, Snapshots(network, "old"), SIGMAS)
    with pytest.raises(ValueError, match=r"snapshots are \('old',\)\. Add 'reference'"):
        loss(sampled)


@every_loss
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"kl_coeff": -1e-4}, "got kl_coeff=-0.0001. Give 0 or more"),
        ({"prediction": "noise"}, "got prediction='noise'. Choose from"),
        ({"levels": "two"}, "got levels='two'. Choose"),
        ({"sigmas": [1000, 750]}, "a timestep is divided by 1000"),
    ],
)
def test_settings_outside_their_range_are_refused(network, snapshots, make, setting, message):
    with pytest.raises(ValueError, match=message):
        make(network, snapshots, **{"sigmas": SIGMAS, **setting})


@every_loss
@pytest.mark.parametrize("key", ["advantage", ("kl", "selected")])
def test_a_missing_entry_is_named_with_its_reader(network, snapshots, sampled, make, key):
    with pytest.raises(KeyError, match=rf"{make.__name__} reads .*{key[-1]}.*does not hold"):
        make(network, snapshots, SIGMAS)(sampled.exclude(key))


@pytest.mark.parametrize("key", ["advantage", ("kl", "selected")])
def test_an_entry_on_another_device_than_the_latents_is_named(network, snapshots, sampled, key):
    loss = NFTLoss(network, snapshots, sigmas=[1.0])
    batch = sampled.clone()
    batch[key] = batch[key].to("meta")
    with pytest.raises(ValueError, match=r"on meta, and .* on cpu\. Move the batch as a whole"):
        loss(batch)


def test_snapshots_of_another_network_are_refused(network):
    other = Snapshots(torch.nn.Linear(2, 2), "old", "reference")
    with pytest.raises(ValueError, match="none of which are parameters of its network"):
        NFTLoss(network, other, sigmas=[1.0])


def test_velocity_of_the_clean_clip_is_noise_minus_clean():
    x0, noise = torch.randn(2, 3), torch.randn(2, 3)
    noisy = 0.4 * x0 + 0.6 * noise
    assert_close(to_velocity(noisy, x0, torch.tensor(0.6)), noise - x0)
