"""Snapshots of networks that change precision, parameters or place; and passes without a trace."""

import copy
import logging

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributed.fsdp import fully_shard

from astrolabe_objectives import NFTLoss, SnapshotError, Snapshots


def weight(snapshots, name="old"):
    return snapshots.values(name)["weight"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_slow_average_follows_in_any_precision(dtype):
    network = nn.Linear(3, 3, bias=False).to(dtype)
    with torch.no_grad():
        network.weight.fill_(1.0)
        snapshots = Snapshots(network, "old")
        network.weight.fill_(1.0625)
    for _ in range(1500):
        snapshots.ema("old", decay=0.999)
    expected = 1.0625 - 0.0625 * 0.999**1500
    torch.testing.assert_close(
        weight(snapshots).double().mean().item(), expected, rtol=0, atol=5e-5
    )
    with snapshots.use("old"):
        assert (network.weight == torch.tensor(expected, dtype=dtype)).all() or dtype.itemsize > 2


def test_a_thousand_small_steps_of_bf16_weights_reach_old():
    network = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        network.weight.fill_(1.0)
    snapshots = Snapshots(network, "old")
    expected = 1.0
    for step in range(1000):
        with torch.no_grad():
            network.weight.fill_(1.0 + (step // 100) / 128)
        expected = 0.999 * expected + 0.001 * (1.0 + (step // 100) / 128)
        snapshots.ema("old", 0.999)
    assert float(weight(snapshots)) == pytest.approx(expected, abs=1e-5)


def test_copies_of_a_short_precision_are_kept_in_float32_through_a_checkpoint():
    network = nn.Linear(3, 3, bias=False).to(torch.bfloat16)
    snapshots = Snapshots(network, "old")
    with torch.no_grad():
        network.weight += 1
    snapshots.ema("old", 0.7)
    kept = weight(snapshots).clone()
    assert kept.dtype == torch.float32
    assert not kept.equal(kept.bfloat16().float())
    again = Snapshots(network, "old")
    again.load_state_dict(snapshots.state_dict())
    assert weight(again).equal(kept)
    with again.use("old"):
        assert network.weight.equal(kept.bfloat16())


def test_copies_of_float32_lose_nothing_when_the_network_goes_to_bf16_and_back():
    network = nn.Linear(3, 3, bias=False)
    snapshots = Snapshots(network, "old")
    kept = weight(snapshots).clone()
    network.to(torch.bfloat16)
    assert snapshots.deviation("old") == 0.0
    snapshots.ema("old", 1.0)
    network.float()
    assert weight(snapshots).equal(kept)
    network.double()
    snapshots.refresh("old")
    assert weight(snapshots).dtype == torch.float64
    assert weight(snapshots).equal(network.weight)


def test_a_copy_that_is_kept_stays_finite_when_the_policy_does_not():
    network = nn.Linear(3, 3, bias=False)
    snapshots = Snapshots(network, "old")
    with torch.no_grad():
        network.weight.fill_(torch.nan)
    snapshots.ema("old", 1.0)
    assert weight(snapshots).isfinite().all()


def test_new_parameters_of_the_same_names_are_followed():
    network = nn.Linear(3, 3, bias=False)
    snapshots = Snapshots(network, "old")
    old = weight(snapshots).clone()
    network.weight = nn.Parameter(torch.ones(3, 3))
    with snapshots.use("old"):
        assert network.weight.equal(old)
    assert network.weight.equal(torch.ones(3, 3))
    snapshots.refresh("old")
    assert weight(snapshots).equal(torch.ones(3, 3))


def test_a_mapping_of_parameters_is_followed():
    parameters = {"weight": nn.Parameter(torch.zeros(2))}
    snapshots = Snapshots(parameters, "old")
    parameters["weight"] = nn.Parameter(torch.ones(2))
    with snapshots.use("old"):
        assert parameters["weight"].equal(torch.zeros(2))
    assert parameters["weight"].equal(torch.ones(2))


def test_parameters_that_are_gone_or_of_another_shape_are_refused(mesh):
    network = nn.Sequential(nn.Linear(2, 2))
    snapshots = Snapshots(network, "old")
    network[0].weight = nn.Parameter(torch.ones(3, 2))
    with pytest.raises(SnapshotError, match=r"'0\.weight' was \(2, 2\) .* Make Snapshots after"):
        snapshots.refresh("old")
    network[0] = nn.Identity()
    with pytest.raises(SnapshotError, match=r"no parameter '0\.weight' any more"):
        snapshots.refresh("old")
    late = nn.Sequential(nn.Linear(2, 2))
    snapshots = Snapshots(late, "old")
    fully_shard(late, mesh=mesh)
    with (
        pytest.raises(SnapshotError, match=r"is DTensor .* after fully_shard"),
        snapshots.use("old"),
    ):
        pass


def test_short_trained_parameters_are_told_once_with_a_way_out(caplog):
    network = nn.Linear(2, 2)
    with caplog.at_level(logging.WARNING):
        snapshots = Snapshots(network, "old", "reference")
        assert not caplog.records
        network.to(torch.bfloat16)
        for _ in range(3):
            snapshots.refresh("old")
    (record,) = caplog.records
    assert "2 trained parameters are bfloat16, first 'weight'" in record.getMessage()
    assert "below 0.002 of a weight is lost" in record.getMessage()


def test_what_is_told_of_short_parameters_is_so():
    """A step of AdamW is its learning rate: in bfloat16 it is lost, in float32 it is not."""
    moved = {}
    for dtype in (torch.bfloat16, torch.float32):
        parameter = nn.Parameter(torch.full((4,), 0.1, dtype=dtype))
        before = parameter.detach().clone()
        optimizer = torch.optim.AdamW([parameter], lr=1e-4, weight_decay=0.0)
        for _ in range(10):
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
        moved[dtype] = float((before - parameter.detach()).mean())
    assert moved[torch.bfloat16] == 0.0
    assert moved[torch.float32] == pytest.approx(1e-3, rel=1e-3)


def test_copies_made_in_inference_mode_can_be_changed_after():
    network = nn.Linear(2, 2)
    with torch.inference_mode():
        snapshots = Snapshots(network, "old")
    with torch.no_grad():
        network.weight += 1
    snapshots.ema("old", 0.5)
    assert snapshots.deviation("old") == pytest.approx((4 * 0.25 / 6) ** 0.5)


def test_a_bound_module_under_autocast_leaves_no_cast_weights_behind():
    core = nn.Linear(2, 2)
    module = TensorDictModule(core, in_keys=["x"], out_keys=["y"])
    snapshots = Snapshots(core, "old")
    bound, before = snapshots.bind("old", module), copy.deepcopy(core)
    with torch.no_grad():
        core.weight += 1
    x = torch.ones(3, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(2):
            live = core(x)
            assert live.requires_grad
            old = bound(TensorDict(x=x, batch_size=[3]))["y"]
            assert old.equal(before(x))
            assert core(x).equal(live)
            assert not old.equal(live)
            core(x).sum().backward()
    assert core.weight.grad.abs().min() > 0


class Noisy(nn.Module):
    """Random in training, and keeps statistics of what passes."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.dropout = nn.Dropout(0.5)

    def forward(self, noisy, sigma):
        rows = self.scale(noisy.movedim(2, -1).flatten(0, -2))
        rows = self.dropout(self.norm(rows))
        return rows.view(*noisy.movedim(2, -1).shape).movedim(-1, 2)


def test_passes_of_copies_leave_no_trace_in_random_numbers_and_buffers(clips):
    network = Noisy()
    keys = [("noisy", "latents"), ("noisy", "sigma")]
    module = TensorDictModule(network, in_keys=keys, out_keys=[("denoised", "latents")])
    loss = NFTLoss(module, Snapshots(network, "old", "reference"), (0.5,))
    with torch.no_grad():
        network.scale.weight += 1
    noised, twin = loss.noise(clips), copy.deepcopy(network)
    torch.manual_seed(3)
    loss(noised)
    following = torch.rand(1)
    torch.manual_seed(3)
    twin(noised["noisy", "latents"], noised["noisy", "sigma"])
    assert torch.rand(1).equal(following)
    assert network.norm.running_mean.equal(twin.norm.running_mean)
    assert network.norm.num_batches_tracked == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_noise_is_added_in_float32_at_the_level_that_the_network_is_told(network, clips, dtype):
    loss = NFTLoss(network, Snapshots(network, "old", "reference"), (0.8333,), seed=3)
    clips["video", "latents"] = clips["video", "latents"].to(dtype)
    noised = loss.noise(clips)
    loss.seed(3)
    full = clips.clone()
    full["video", "latents"] = full["video", "latents"].float()
    exact = loss.noise(full)["noisy", "latents"]
    assert noised["noisy", "latents"].equal(exact.to(dtype))
