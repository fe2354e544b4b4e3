"""Losses as TorchRL's own: any event shape, keyword calls, reductions, state, target updaters."""

import copy

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.testing import assert_close
from torchrl.objectives import HardUpdate, SoftUpdate

from astrolabe_objectives import CMGRPOLoss, DPOLoss, NFTLoss, RWRLoss, Snapshots

SIGMAS = (0.9, 0.6, 0.3)
LOSSES = {"nft": NFTLoss, "rwr": RWRLoss, "dpo": DPOLoss, "cm_grpo": CMGRPOLoss}
EVENTS = {"number": (1,), "point": (2,), "image": (1, 4, 4), "video": (3, 2, 4, 4)}

every_loss = pytest.mark.parametrize("name", LOSSES)
every_event = pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)


class Scale(nn.Module):
    """Predicts ``weight · noisy + bias · σ``, for any shape."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(0.1))

    def forward(self, noisy, sigma):
        expected = noisy.shape[:2] if noisy.ndim == 5 else noisy.shape[:1]
        assert sigma.shape == expected
        level = sigma.reshape(*sigma.shape, *[1] * (noisy.ndim - sigma.ndim))
        return self.weight * noisy + self.bias * level


def make(name, *names, **settings):
    core = Scale()
    network = TensorDictModule(
        core,
        in_keys=[("noisy", "latents"), ("noisy", "sigma")],
        out_keys=[("denoised", "latents")],
    )
    snapshots = Snapshots(core, *(names or ("old", "reference")))
    with torch.no_grad():
        core.weight += 0.2
        core.bias -= 0.3
    settings = {"kl_coeff": 0.5, **settings}
    return LOSSES[name](network, snapshots, SIGMAS, **settings)


def batch_of(event, size=(6,)):
    generator = torch.Generator().manual_seed(7)
    batch = TensorDict(batch_size=size)
    batch["video", "latents"] = torch.randn(*size, *event, generator=generator)
    batch["steps", "latents"] = torch.randn(*size, 3, *event, generator=generator)
    batch["advantage"] = torch.randn(*size, 1, generator=generator)
    batch["kl", "selected"] = torch.tensor([1, 0, 1, 1, 0, 1]).bool().view(*size, 1)
    batch["prompt", "group"] = (torch.arange(6) // 3).view(size)
    return batch


def keywords(loss, batch):
    return {"_".join(key) if isinstance(key, tuple) else key: batch[key] for key in loss.in_keys}


@every_loss
@every_event
def test_any_event_shape_is_trained_and_keywords_say_the_same(name, event):
    loss, batch = make(name), batch_of(event)
    losses = loss(batch)
    gradient = torch.autograd.grad(losses["loss_policy"] + losses["loss_kl"], loss.parameters())
    assert all(value.isfinite().all() and value != 0 for value in gradient)
    loss.seed(0)
    found = loss(**keywords(loss, batch))
    assert all(value.equal(losses[key]) for key, value in zip(loss.out_keys, found, strict=True))
    bare = TensorDict(batch.to_dict(), batch_size=[])
    loss.seed(0)
    assert loss(bare)["loss_policy"].equal(losses["loss_policy"])
    loss.seed(0)
    assert loss(bare.auto_batch_size_())["loss_policy"].equal(losses["loss_policy"])


@every_event
def test_an_event_shape_changes_no_number(event):
    """The formula, on the event flattened to numbers, with the noise that was drawn."""
    loss, batch = make("nft", prediction="x0"), batch_of(event)
    noised = loss.noise(batch)
    noisy, clean = (noised[key, "latents"].flatten(1) for key in ("noisy", "video"))
    sigma = noised["noisy", "sigma"].reshape(6, -1)[:, :1]
    old, policy = 0.5 * noisy + 0.1 * sigma, 0.7 * noisy - 0.2 * sigma
    share = batch["advantage"].clamp(-5, 5) / 10 + 0.5
    error = share * (policy - clean) ** 2 + (1 - share) * (2 * old - policy - clean) ** 2
    assert_close(loss(noised)["loss_policy"], error.mean(), rtol=1e-5, atol=1e-6)


def test_the_batch_size_is_that_of_the_data():
    loss, batch = make("nft"), batch_of((3, 2, 4, 4), (3, 2))
    flat = loss(batch.reshape(-1))["loss_policy"]
    for size in ([], [3], [3, 2]):
        loss.seed(0)
        assert loss(TensorDict(batch.to_dict(), batch_size=size))["loss_policy"].equal(flat)


@every_loss
def test_reductions_are_of_the_same_numbers(name):
    batch, losses, gradients = batch_of((2,)), {}, {}
    for reduction in ("mean", "sum", "none"):
        loss = make(name, reduction=reduction)
        noised = loss.noise(batch)
        losses[reduction] = found = loss(noised)
        policy = found["loss_policy"].mean()  # of one number: that number
        (gradients[reduction],) = torch.autograd.grad(policy, loss.network.module.weight)
    mean, total, each = losses["mean"], losses["sum"], losses["none"]
    assert each["loss_policy"].shape == noised.shape[:1]
    assert_close(each["loss_policy"].mean(), mean["loss_policy"])
    assert_close(each["loss_policy"].sum(), total["loss_policy"])
    selected = noised["kl", "selected"].reshape(-1)
    assert each["loss_kl"].shape == selected.shape
    assert (each["loss_kl"] > 0).equal(selected)
    assert_close(each["loss_kl"].sum(), total["loss_kl"])
    assert_close(each["loss_kl"][selected].mean(), mean["loss_kl"])
    for metric in loss.out_keys[2:]:
        assert_close(each[metric], mean[metric])
    assert_close(gradients["none"], gradients["mean"])
    assert_close(gradients["sum"], gradients["mean"] * len(noised))


@every_loss
def test_padding_is_left_out_exactly(name):
    loss, batch = make(name), batch_of((2,))
    rows = torch.tensor([True, True, False, True, True, True])
    alone = loss(batch[rows])
    batch["advantage"][2], batch["video", "latents"][2] = torch.nan, torch.nan
    batch["collector", "mask"] = rows[:, None]
    loss.seed(0)
    assert all(value.equal(alone[key]) for key, value in loss(batch).items())
    loss.loss_mask_key = None
    with pytest.raises(
        ValueError, match=r"latents'\), which is not finite in 1 of 6 samples, first in number 2"
    ):
        loss(batch)


@pytest.mark.parametrize("settings", [{"kl_coeff": 0.0}, {"names": ("old",)}])
def test_marks_may_be_missing_where_nothing_can_be_selected(settings):
    names = settings.pop("names", ("old", "reference"))
    loss, batch = make("nft", *names, **settings), batch_of((2,))
    assert ("kl", "selected") not in loss.in_keys
    assert ("kl", "selected") in loss.optional_keys
    assert loss(batch.exclude(("kl", "selected")))["kl"] == 0
    if settings:
        loss.kl_coeff = 0.1
        assert ("kl", "selected") in loss.in_keys


@every_loss
def test_a_loaded_loss_goes_on_as_the_saved_one(name, tmp_path):
    first, batch = make(name), batch_of((2,))
    first(batch)
    first.snapshots.advance(0, kl=0.0)
    torch.save(first.state_dict(), tmp_path / "loss.pt")
    again = make(name, seed=5)
    again.snapshots.refresh("old")
    again.load_state_dict(torch.load(tmp_path / "loss.pt"))
    assert again.snapshots.deviation("old") == first.snapshots.deviation("old") > 0
    expected, found = first(batch), again(batch)
    assert all(found[key].equal(value) for key, value in expected.items())
    epochs = [
        one.snapshots.advance(1, kl=0.0)["snapshot/reference_epochs"] for one in (first, again)
    ]
    assert epochs == [2.0, 2.0]


def test_a_state_without_snapshots_is_refused_by_name():
    loss = make("nft")
    state = {key: value for key, value in loss.state_dict().items() if "snapshots" not in key}
    with pytest.raises(RuntimeError, match=r'Missing key\(s\).*"snapshots\.reference\.weight"'):
        loss.load_state_dict(state)
    state = make("nft", "old").state_dict()
    with pytest.raises(RuntimeError, match=r"saved snapshots are \['old'\], this run has"):
        loss.load_state_dict(state)


@pytest.mark.parametrize("moved", [False, True])
def test_target_updaters_of_torchrl_move_old_and_nothing_else(moved):
    loss = copy.deepcopy(make("nft"))
    update = SoftUpdate(loss, eps=0.75)  # as it begins, it sets old to the policy
    if moved:
        loss.to(torch.float64)
    assert loss.snapshots.deviation("old") == 0
    core = loss.network.module

    def step(updater):
        """Move the policy and update; return how old was before and is now."""
        with torch.no_grad():
            core.weight += 1
            core.bias -= 2
        before = copy.deepcopy(loss.state_dict())
        updater.step()
        after = loss.state_dict()
        moves = {
            name
            for name, value in after.items()
            if isinstance(value, torch.Tensor) and not value.equal(before[name])
        }
        assert moves <= {"snapshots.old.weight", "snapshots.old.bias"}
        return before["snapshots.old.weight"], loss.snapshots.values("old")

    _, old = step(update)
    assert_close(old["weight"], core.weight.detach() - 0.75)
    assert_close(old["bias"], core.bias.detach() + 1.5)
    with loss.snapshots.use("old"):
        assert core.weight.equal(old["weight"])
    hard = HardUpdate(loss, value_network_update_interval=1)  # every second step, by its count
    before, old = step(hard)
    assert old["weight"].equal(before)
    assert not old["weight"].equal(core.weight)
    before, old = step(hard)
    assert old["weight"].equal(core.weight)
    assert old["bias"].equal(core.bias)
    assert loss.snapshots.deviation("old") == 0


def test_copies_follow_the_loss_and_keep_their_precision():
    loss = make("nft")
    held = loss.snapshots.values("old")["bias"]
    kept = held.clone()
    loss.to(torch.float64)
    assert held.dtype == torch.float64  # at once, for whoever holds it: a target updater
    assert loss.state_dict()["snapshots.old.bias"].dtype == torch.float64
    loss.to(torch.bfloat16).float()
    assert loss.snapshots.values("old")["bias"].float().equal(kept)


MISFITS = {
    "latents of whole numbers": (
        {("video", "latents"): torch.zeros(6, 2, dtype=torch.int64)},
        TypeError,
        r"reads \('video', 'latents'\) as clean latents, and it is int64\. Give floating",
    ),
    "latents without an event": (
        {("video", "latents"): torch.zeros(6)},
        ValueError,
        r"\('video', 'latents'\) of shape \(6,\) with the batch flattened",
    ),
    "advantages of several numbers": (
        {"advantage": torch.zeros(6, 2)},
        ValueError,
        r"'advantage' as one number for each sample, and it is \(6, 2\) in a batch of batch size",
    ),
    "advantages that are not finite": (
        {"advantage": torch.tensor([0.0, 1, torch.inf, 0, torch.nan, 1])[:, None]},
        ValueError,
        r"'advantage', which is not finite for 2 of 6 samples, first for number 2\. Give 0",
    ),
    "marks of whole numbers": (
        {("kl", "selected"): torch.ones(6, 1, dtype=torch.int64)},
        TypeError,
        r"\('kl', 'selected'\) as one bool for each sample, and it is int64\. Convert it",
    ),
    "groups of fractions": (
        {("prompt", "group"): torch.zeros(6)},
        TypeError,
        r"\('prompt', 'group'\) as one whole number for each sample, and it is float32",
    ),
    "groups elsewhere": (
        {("prompt", "group"): torch.zeros(6, dtype=torch.int64, device="meta")},
        ValueError,
        r"\('prompt', 'group'\) on meta, and other entries of the batch on cpu\. Move the batch",
    ),
    "latents of another precision": (
        {("video", "latents"): torch.zeros(6, 2, dtype=torch.float64)},
        ValueError,
        r"the network failed .*\('noisy', 'latents'\) of shape .* is of torch.float64, its",
    ),
    "another number of samples": (
        {("prompt", "group"): torch.zeros(5, dtype=torch.int64)},
        ValueError,
        r"\('prompt', 'group'\) of shape \(5,\) in a batch of \(6,\) samples",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_an_entry_that_does_not_fit_is_named_with_the_way_out(case):
    entries, error, message = MISFITS[case]
    loss = make("dpo")
    core = nn.Linear(2, 2)
    if case == "latents of another precision":
        loss.network.module.forward = lambda noisy, sigma: core(noisy)
    size = [] if case == "another number of samples" else [6]
    batch = TensorDict(batch_of((2,)).to_dict(), batch_size=size)
    batch.update(entries)
    with pytest.raises(error, match=rf"DPOLoss.*{message}"):
        loss(batch)


def test_a_prediction_of_another_shape_is_refused():
    loss = make("rwr")
    loss.network.module.forward = lambda noisy, sigma: noisy[:, :1]
    with pytest.raises(ValueError, match=r"wrote .*denoised.* of shape \(6, 1\) for .*\(6, 2\)"):
        loss(batch_of((2,)))


def test_one_sample_without_a_batch_size_is_asked_for_it():
    with pytest.raises(ValueError, match=r"shape \(1,\) in a batch without a batch size"):
        make("nft")(video_latents=torch.zeros(1, 2), advantage=torch.zeros(1))
    found = make("nft", kl_coeff=0.0)(video_latents=torch.zeros(1, 2), advantage=torch.zeros(1, 1))
    assert all(value.isfinite() for value in found)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*inline_inbuilt_nn_modules is deprecated:FutureWarning")
@every_loss
def test_a_loss_is_compiled_as_one_graph(name):
    torch.compiler.reset()
    loss, batch = make(name), batch_of((2,))
    noised = loss.noise(batch)
    expected = loss(noised)
    found = torch.compile(loss, fullgraph=True, backend="aot_eager")(noised)
    gradients = [
        torch.autograd.grad(losses["loss_policy"] + losses["loss_kl"], loss.parameters())
        for losses in (expected, found)
    ]
    assert_close(dict(found.items()), dict(expected.items()))
    assert_close(*gradients)
    loss.network.module.drop = nn.Dropout(0.5)
    with pytest.raises(Exception, match=r"same dropout|from user code"):
        torch.compile(loss, fullgraph=True, backend="aot_eager")(noised)
