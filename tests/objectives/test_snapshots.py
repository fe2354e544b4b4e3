import copy

import pytest
import torch
from tensordict import TensorDict
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from astrolabe_objectives import (
    AdaptiveReferenceReset,
    OldDecay,
    ReferenceReset,
    SnapshotError,
    Snapshots,
)


def values(network):
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


def same(one, other):
    return all(one[name].equal(other[name]) for name in one)


def test_a_used_copy_has_the_values_of_its_time_and_live_values_return(network, snapshots, nudge):
    before = values(network)
    nudge(network)
    after = values(network)
    with snapshots.use("old"):
        assert same(values(network), before)
    assert same(values(network), after)
    assert not same(before, after)


def test_live_values_return_after_an_exception(network, snapshots, nudge):
    nudge(network)
    after = values(network)
    with pytest.raises(ZeroDivisionError), snapshots.use("old"):
        _ = 1 / 0
    assert same(values(network), after)
    with snapshots.use("old"):
        pass


def test_parameters_keep_their_identity_and_memory(network, snapshots):
    before = [(id(p), p.data_ptr()) for p in network.parameters()]
    with snapshots.use("old"):
        assert [(id(p), p.data_ptr()) for p in network.parameters()] == before
    assert [(id(p), p.data_ptr()) for p in network.parameters()] == before


def test_nothing_records_a_gradient_while_a_copy_is_in_use(network, snapshots, clips):
    clips["noisy", "latents"] = clips["video", "latents"]
    clips["noisy", "sigma"] = torch.ones(6, 3)
    with snapshots.use("old"):
        assert not network(clips)["denoised", "latents"].requires_grad
    assert network(clips)["denoised", "latents"].requires_grad


def test_frozen_parameters_are_not_copied(network, snapshots):
    with torch.no_grad():
        network.frozen.weight.fill_(5.0)
    with snapshots.use("old"):
        assert (network.frozen.weight == 5.0).all()
    assert sorted(snapshots.values("old")) == [
        "adapter.bias",
        "adapter.weight",
        "head.bias",
        "head.weight",
    ]


def test_autograd_refuses_a_swap_between_forward_and_backward(network, snapshots, clips):
    clips["noisy", "latents"] = clips["video", "latents"]
    clips["noisy", "sigma"] = torch.ones(6, 3)
    total = network(clips)["denoised", "latents"].square().sum()
    with snapshots.use("old"):
        pass
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_nested_use_is_refused(snapshots):
    with (
        snapshots.use("old"),
        pytest.raises(RuntimeError, match="cannot use 'reference' while 'old' is in use"),
        snapshots.use("reference"),
    ):
        pass


@pytest.mark.parametrize("change", ["refresh", "deviation"])
def test_copies_cannot_be_compared_with_live_values_that_are_away(snapshots, change):
    with snapshots.use("old"), pytest.raises(RuntimeError, match="does not hold the live values"):
        getattr(snapshots, change)("reference")


def test_moving_average_is_the_weighted_mean(network, snapshots, nudge):
    before = values(network)
    nudge(network)
    after = values(network)
    snapshots.ema("old", decay=0.75)
    with snapshots.use("old"):
        for name, value in values(network).items():
            torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * after[name])


def test_refresh_copies_the_live_values_exactly(network, snapshots, nudge):
    nudge(network)
    snapshots.refresh("old")
    assert snapshots.deviation("old") == 0.0
    assert snapshots.deviation("reference") > 0.0


def test_deviation_is_the_root_mean_square_over_trained_parameters(network, snapshots):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.25
    assert snapshots.deviation("old") == pytest.approx(0.25, rel=1e-6)


def test_a_bound_module_runs_with_the_copy(network, snapshots, nudge, clips):
    clips["noisy", "latents"] = clips["video", "latents"]
    clips["noisy", "sigma"] = torch.ones(6, 3)
    with torch.no_grad():
        before = network(clips.clone())["denoised", "latents"]
    bound = snapshots.bind("old", network)
    nudge(network)
    assert bound.in_keys == network.in_keys
    assert bound.out_keys == network.out_keys
    assert bound(clips.clone())["denoised", "latents"].equal(before)
    assert not network(clips)["denoised", "latents"].equal(before)


def test_a_copied_bound_module_swaps_its_own_parameters(network, snapshots, nudge):
    twin = copy.deepcopy(snapshots.bind("old", network))
    nudge(twin.module)
    untouched = values(network)
    batch = TensorDict(batch_size=[1])
    batch["noisy", "latents"] = torch.zeros(1, 1, 2, 1, 1)
    batch["noisy", "sigma"] = torch.ones(1, 1)
    batch["prompt", "embeds"] = torch.zeros(1, 1, 1)
    twin(batch)
    assert twin.module.passes[-1][0].equal(untouched["head.weight"])
    assert same(values(network), untouched)


def test_advance_moves_old_and_renews_the_reference_on_schedule(network, nudge):
    snapshots = Snapshots(
        network,
        "old",
        "reference",
        old_decay=OldDecay(start=0.0, slope=0.25),
        reference_reset=ReferenceReset(max_kl=0.5, max_epochs=3),
    )
    resets, decays, epochs = [], [], []
    for step, kl in enumerate([0.0, 0.6, 0.1, 0.1, 0.1, 0.1]):
        nudge(network)
        metrics = snapshots.advance(step, kl)
        resets.append(metrics["snapshot/reference_reset"])
        decays.append(metrics["snapshot/old_decay"])
        epochs.append(metrics["snapshot/reference_epochs"])
        assert (snapshots.deviation("reference") == 0.0) == bool(resets[-1])
    assert resets == [0.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    assert epochs == [1.0, 0.0, 1.0, 2.0, 0.0, 1.0]
    assert decays == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_a_copy_behind_is_old_of_the_step_before(network, nudge):
    snapshots = Snapshots(network, "old", "behind", old_decay=lambda step: 0.5)
    for step in range(3):
        before = {key: value.clone() for key, value in snapshots.values("old").items()}
        nudge(network)
        snapshots.advance(step, kl=0.0)
        assert all(torch.equal(snapshots.values("behind")[key], before[key]) for key in before)
    assert any((snapshots.values("old")[key] != before[key]).any() for key in before)


def test_advance_leaves_copies_of_other_names_alone(network, nudge):
    snapshots = Snapshots(network, "best")
    nudge(network)
    before = snapshots.deviation("best")
    assert snapshots.advance(0, kl=9.0) == {}
    assert snapshots.deviation("best") == before


def test_copies_survive_saving_and_loading_bit_for_bit(network, snapshots, nudge, tmp_path):
    nudge(network)
    snapshots.advance(0, kl=0.0)
    torch.save(snapshots.state_dict(), tmp_path / "snapshots.pt")
    restored = Snapshots(network, "old", "reference")
    restored.load_state_dict(torch.load(tmp_path / "snapshots.pt"))
    for name in ("old", "reference"):
        assert same(snapshots.values(name), restored.values(name))
    assert restored.advance(1, kl=0.0)["snapshot/reference_epochs"] == 2.0


def test_a_state_of_the_form_before_is_loaded(network, snapshots, nudge):
    before = {name: dict(snapshots.values(name)) for name in snapshots.names}
    state = {"copies": copy.deepcopy(before), "epochs": 4}
    nudge(network)
    snapshots.refresh("old")
    snapshots.load_state_dict(state)
    assert same(state["copies"]["old"], snapshots.values("old"))
    assert snapshots.advance(5, kl=0.0)["snapshot/reference_epochs"] == 5.0


def test_old_is_copied_every_few_steps_and_else_left_alone(network, nudge):
    snapshots = Snapshots(network, "old", old_decay=OldDecay(start=0.0, every=2))
    deviations = []
    for step in range(4):
        nudge(network)
        before = snapshots.deviation("old")
        snapshots.advance(step, kl=0.0)
        deviations.append(snapshots.deviation("old") / before)
    assert deviations == [1.0, 0.0, 1.0, 0.0]


def test_a_rule_that_adapts_is_saved_with_the_copies(network):
    def make():
        return Snapshots(network, "reference", reference_reset=AdaptiveReferenceReset())

    snapshots, restored = make(), make()
    snapshots.advance(0, kl=0.2)  # renewed at once: the threshold rises to 0.16
    restored.load_state_dict(snapshots.state_dict())
    assert restored.advance(1, kl=0.155)["snapshot/reference_reset"] == 0.0
    assert make().advance(1, kl=0.155)["snapshot/reference_reset"] == 1.0


def test_a_rule_that_adapts_does_not_go_on_from_a_run_without_one(network, snapshots, nudge):
    adaptive = Snapshots(network, "old", "reference", reference_reset=AdaptiveReferenceReset())
    nudge(network)
    adaptive.refresh("old")
    with pytest.raises(SnapshotError, match="without the state of the reference's rule"):
        adaptive.load_state_dict(snapshots.state_dict())
    assert adaptive.deviation("old") == 0.0


def test_an_unknown_name_is_answered_with_the_nearest_one(snapshots):
    with (
        pytest.raises(SnapshotError, match=r"^there is no snapshot 'odl'\. Did you mean 'old'\?"),
        snapshots.use("odl"),
    ):
        pass


def test_saved_copies_of_other_names_are_refused(network, snapshots):
    with pytest.raises(SnapshotError, match=r"saved snapshots are \['old'\], this run has"):
        snapshots.load_state_dict(Snapshots(network, "old").state_dict())


def test_saved_copies_of_other_shapes_are_refused_and_change_nothing(network, snapshots, nudge):
    state = Snapshots(network, "old", "reference").state_dict()
    state["reference.head.bias"] = torch.zeros(7)
    nudge(network)
    snapshots.refresh("old")
    with pytest.raises(SnapshotError, match=r"'reference' does not fit.*'head\.bias'.*LoRA rank"):
        snapshots.load_state_dict(state)
    assert snapshots.deviation("old") == 0.0


def test_a_network_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match=r"nothing to copy\. Add the LoRA adapter"):
        Snapshots(nn.Linear(2, 2).requires_grad_(False), "old")


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ([], ValueError, "got no names"),
        ([["old", "reference"]], TypeError, r"got the name \['old', 'reference'\]\. Give names as"),
        (["old.1"], ValueError, "got the name 'old.1'. Give letters without a dot"),
        (["old", "old"], ValueError, "one of them twice. Name each once"),
    ],
)
def test_snapshots_without_proper_names_are_refused(network, names, error, message):
    with pytest.raises(error, match=message):
        Snapshots(network, *names)


def test_a_decay_outside_the_unit_interval_is_refused(snapshots):
    with pytest.raises(ValueError, match=r"snapshot 'old' got decay=1\.5"):
        snapshots.ema("old", decay=1.5)


def test_sharded_parameters_are_swapped_in_place(mesh):
    holder = nn.Module()
    holder.weight = nn.Parameter(distribute_tensor(torch.ones(4, 2), mesh))
    local = holder.weight.to_local().detach()
    snapshots = Snapshots(holder, "old")
    assert snapshots.sharded
    local.fill_(3.0)
    with snapshots.use("old"):
        assert (local == 1.0).all()
    assert (local == 3.0).all()
    snapshots.ema("old", decay=0.5)
    assert snapshots.deviation("old") == 1.0


def test_copies_of_sharded_parameters_are_saved_as_what_all_ranks_hold(mesh):
    holder = nn.Module()
    holder.weight = nn.Parameter(distribute_tensor(torch.ones(4, 2), mesh))
    snapshots = Snapshots(holder, "old")
    holder.weight.to_local().detach().fill_(3.0)
    saved = snapshots.state_dict()["old.weight"]
    assert isinstance(saved, DTensor)
    assert saved.placements == holder.weight.placements
    assert saved.full_tensor().equal(torch.ones(4, 2))


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("saved_sharded", [False, True])
def test_copies_are_loaded_whole_or_sharded(mesh, sharded, saved_sharded):
    def make(split, value):
        holder = nn.Module()
        weight = torch.full((4, 2), value)
        holder.weight = nn.Parameter(distribute_tensor(weight, mesh) if split else weight)
        return Snapshots(holder, "old")

    snapshots = make(sharded, 1.0)
    snapshots.load_state_dict(make(saved_sharded, 5.0).state_dict())
    loaded = snapshots.state_dict()["old.weight"]
    assert isinstance(loaded, DTensor) == sharded
    assert (loaded.full_tensor() if sharded else loaded).equal(torch.full((4, 2), 5.0))
    assert snapshots.deviation("old") == 4.0


def test_an_adapter_on_a_sharded_base_is_told_to_be_of_a_sharded_network(mesh):
    network = nn.Sequential(nn.Linear(2, 3).requires_grad_(False), nn.Linear(3, 1))
    assert not Snapshots(network, "old").sharded
    fully_shard(network, mesh=mesh, ignored_params=set(network[1].parameters()))
    snapshots = Snapshots(network, "old")
    assert snapshots.sharded
    assert not isinstance(snapshots.state_dict()["old.1.weight"], DTensor)


def test_sharded_parameters_without_their_network_are_refused(mesh):
    weight = nn.Parameter(distribute_tensor(torch.ones(4, 2), mesh))
    with pytest.raises(ValueError, match=r"sharded, but were given by name\. Give Snapshots"):
        Snapshots({"weight": weight}, "old")


def test_parameters_can_be_given_by_name(network, nudge):
    snapshots = Snapshots({"bias": network.head.bias, "frozen": network.frozen.bias}, "old")
    before = network.head.bias.detach().clone()
    nudge(network)
    weight = network.head.weight.detach().clone()
    with snapshots.use("old"):
        assert network.head.bias.equal(before)
        assert network.head.weight.equal(weight)
    assert list(snapshots.values("old")) == ["bias"]


def test_fully_sharded_layers_never_run_with_the_weights_of_another_pass(mesh):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    twin = copy.deepcopy(network)
    fully_shard(network[0], mesh=mesh)
    fully_shard(network, mesh=mesh)  # the root, whose gathered weights FSDP keeps
    snapshots = Snapshots(network, "old")
    inputs = torch.randn(5, 2)
    old = twin(inputs)
    with torch.no_grad():
        for parameter, other in zip(network.parameters(), twin.parameters(), strict=True):
            parameter.to_local().add_(0.5)
            other.add_(0.5)
    with snapshots.use("old"):
        assert network(inputs).equal(old)
    policy, expected = network(inputs), twin(inputs)
    assert policy.equal(expected)
    policy.sum().backward()
    expected.sum().backward()
    for parameter, other in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad.to_local(), other.grad)


def _deviations_of_rank(rank, folder):
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    made = []
    for copies, parts in ((2, 1), (1, 2)):
        mesh = init_device_mesh("cpu", (copies, parts), mesh_dim_names=("copies", "parts"))
        network = nn.Linear(3, 4, bias=False)
        spread = distribute_tensor(torch.zeros(4, 3), mesh, [Replicate(), Shard(0)])
        network.weight = nn.Parameter(spread)
        snapshots = Snapshots(network, "old")
        rows = network.weight.to_local()
        first = rank * 2 if parts == 2 else 0
        with torch.no_grad():
            rows += torch.arange(1.0, 5.0)[first : first + len(rows), None]
        made.append(snapshots.deviation("old"))
    torch.save(made, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_deviation_counts_rows_that_ranks_share_once_and_rows_they_split_all(tmp_path):
    context = torch.multiprocessing.get_context("fork")
    ranks = [context.Process(target=_deviations_of_rank, args=(k, tmp_path)) for k in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=60)
        assert rank.exitcode == 0
    for rank in range(2):  # mean of 1, 4, 9 and 16
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx([7.5**0.5] * 2)
