import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.testing import assert_close
from torchrl.objectives import LossModule

from astrolabe_objectives import NFTLoss, Snapshots
from astrolabe_objectives.nft import implicit_errors, positive_weight

SIGMAS = (1.0, 0.9375, 0.8333, 0.625)


@pytest.fixture
def loss(network, snapshots):
    return NFTLoss(network, snapshots, SIGMAS)


def total(losses):
    return sum(value for key, value in losses.items() if key.startswith("loss_"))


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("prediction", ["velocity", "x0"])
def test_before_the_first_step_both_policies_agree_and_kl_is_zero(
    network, snapshots, clips, beta, prediction
):
    losses = NFTLoss(network, snapshots, SIGMAS, beta=beta, prediction=prediction)(clips)
    assert losses["policy_positive"] == losses["policy_negative"]
    assert losses["policy_positive"] > 0
    assert losses["kl"] == 0
    assert losses["old_deviation"] == 0


def test_old_and_reference_run_first_without_gradient_and_the_policy_last(
    network, snapshots, loss, clips, nudge
):
    before = network.head.weight.detach().clone()
    nudge(network)
    snapshots.refresh("reference")
    anchor = network.head.weight.detach().clone()
    nudge(network)
    loss(clips)
    (old, old_grad), (reference, reference_grad), (policy, policy_grad) = network.passes
    assert (old_grad, reference_grad, policy_grad) == (False, False, True)
    assert old.equal(before)
    assert reference.equal(anchor)
    assert policy.equal(network.head.weight)


def test_gradient_reaches_the_trained_parameters_only(network, loss, clips, nudge):
    nudge(network)
    total(loss(clips)).backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name
    assert not any(value.requires_grad for value in loss.snapshots.values("old").values())


def test_kl_is_the_mean_over_selected_clips(network, snapshots, clips, nudge):
    nudge(network)
    losses = NFTLoss(network, snapshots, SIGMAS, kl_coeff=0.5, prediction="x0")(clips)
    loss = NFTLoss(network, snapshots, SIGMAS, prediction="x0")
    loss.seed(0)
    noised = loss.noise(clips)
    seen = loss.predict(noised, reference=True)
    rows = clips["kl", "selected"].squeeze(-1)
    expected = (seen.policy - seen.reference)[rows].square().mean()
    assert_close(losses["kl"], expected.detach())
    assert_close(losses["loss_kl"], 0.5 * expected)
    everywhere = (seen.policy - seen.reference).square().mean()
    assert not torch.isclose(expected, everywhere)


def test_kl_in_velocities_is_that_in_clean_latents_over_sigma_squared(
    network, snapshots, clips, nudge
):
    nudge(network)
    snapshots.refresh("old")  # nearer to the policy than the reference is
    nudge(network)
    losses = {
        space: NFTLoss(network, snapshots, (0.4,), prediction=space)(clips)
        for space in ("velocity", "x0")
    }
    for name in ("kl", "old_deviation"):
        assert_close(losses["velocity"][name], losses["x0"][name] / 0.4**2)
    assert losses["x0"]["kl"] > 1.5 * losses["x0"]["old_deviation"]


def test_kl_without_a_selected_clip_is_zero_without_gradient_or_reference_pass(
    network, loss, clips, nudge
):
    nudge(network)
    clips["kl", "selected"].zero_()
    losses = loss(clips)
    assert losses["loss_kl"] == 0
    assert not losses["loss_kl"].requires_grad
    assert len(network.passes) == 2
    total(losses).backward()


def test_x0_errors_are_velocity_errors_times_sigma_squared(network, snapshots, clips, nudge):
    nudge(network)
    results = {
        prediction: NFTLoss(network, snapshots, [0.625], prediction=prediction)(clips)
        for prediction in ("velocity", "x0")
    }
    for key in results["x0"].keys():  # noqa: SIM118 - a TensorDict iterates over its rows
        assert_close(results["x0"][key], results["velocity"][key] * 0.625**2)


def test_at_beta_one_and_full_weight_the_loss_is_regression_on_the_clip():
    policy, old, target = torch.randn(3, 4, 5)
    positive, _ = implicit_errors(policy, old, target, beta=1.0)
    assert_close(positive, (policy - target).square().mean(dim=1))


def test_adaptive_weighting_divides_by_the_mean_absolute_error_in_clean_latents():
    policy, old, target = torch.randn(3, 4, 5)
    unit = torch.tensor([0.5, 0.5, 1.0, 2.0])[:, None]
    plain = implicit_errors(policy, old, target, beta=1.0)
    adaptive = implicit_errors(policy, old, target, beta=1.0, adaptive_unit=unit)
    for index, error in enumerate((policy - target, 2 * old - policy - target)):
        size = error.abs().mean(dim=1) * unit.squeeze(-1)
        assert_close(adaptive[index], plain[index] / size)


@pytest.mark.parametrize(("index", "sign"), [(0, 1.0), (1, -1.0)])
def test_an_adaptive_weight_has_no_gradient_of_its_own(index, sign):
    policy, old, target = torch.randn(3, 4, 5)
    unit = torch.tensor([0.5, 0.5, 1.0, 2.0])[:, None]
    policy.requires_grad_()
    error = implicit_errors(policy, old, target, beta=0.3, adaptive_unit=unit)[index]
    (found,) = torch.autograd.grad(error.sum(), policy)
    with torch.no_grad():
        gap = old + sign * 0.3 * (policy - old) - target
        size = gap.abs().mean(dim=1, keepdim=True) * unit
        expected = 2 * gap / 5 * sign * 0.3 / size  # 5 entries
    assert_close(found, expected)


def test_adaptive_velocity_errors_are_those_of_clean_latents_over_sigma_squared(
    network, snapshots, clips, nudge
):
    nudge(network)
    losses = {
        space: NFTLoss(network, snapshots, (0.4,), adaptive=True, prediction=space)(clips)
        for space in ("velocity", "x0")
    }
    for name in ("loss_policy", "policy_positive", "policy_negative"):
        assert_close(losses["velocity"][name], losses["x0"][name] / 0.4**2)


def test_adaptive_weighting_is_off_unless_asked_for(network, snapshots, clips):
    plain = NFTLoss(network, snapshots, SIGMAS)(clips)
    off = NFTLoss(network, snapshots, SIGMAS, adaptive=False)(clips)
    on = NFTLoss(network, snapshots, SIGMAS, adaptive=True)(clips)
    assert plain["loss_policy"] == off["loss_policy"] != on["loss_policy"]


def test_weight_of_a_clip_maps_its_clipped_advantage_to_the_unit_interval():
    advantage = torch.tensor([-7.0, -5.0, 0.0, 2.5, 5.0, 100.0])
    expected = torch.tensor([0.0, 0.0, 0.5, 0.75, 1.0, 1.0])
    assert positive_weight(advantage, advantage_clip=5.0).equal(expected)


def test_weights_equal_those_of_the_public_code(golden):
    for case in golden["stat_tracker"]:
        weight = positive_weight(torch.tensor(case["advantages"]), advantage_clip=5.0)
        assert_close(weight, torch.tensor(case["r_from_adv_clip5"]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("prediction", ["velocity", "x0"])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_training_finds_the_closed_form_of_the_minimiser(beta, prediction):
    """DiffusionNFT, theorem 3.2, on a problem where every quantity is known.

    At σ = 1 the noisy clip says nothing about the clean one, so the best network is a table of one
    clip per prompt, and noise cancels from every error. Old holds the mean clip of each prompt.
    """
    torch.manual_seed(0)
    prompts = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    latents = torch.randn(8, 1, 2, 2, 2)
    advantage = torch.tensor([-4.0, -1.0, 2.0, 9.0, 0.5, 0.1, -0.3, 3.0])
    mean = torch.stack([latents[prompts == prompt].mean(dim=0) for prompt in (0, 1)])

    table = nn.Embedding.from_pretrained(mean.flatten(1).clone(), freeze=False)
    network = TensorDictModule(
        lambda _noisy, _sigma, prompt: table(prompt).view(-1, 1, 2, 2, 2),
        in_keys=[("noisy", "latents"), ("noisy", "sigma"), "prompt"],
        out_keys=[("denoised", "latents")],
    )
    batch = TensorDict(
        {
            "video": {"latents": latents},
            "advantage": advantage[:, None],
            "kl": {"selected": torch.zeros(8, 1, dtype=torch.bool)},
            "prompt": prompts,
        },
        batch_size=[8],
    )
    loss = NFTLoss(network, Snapshots(table, "old"), [1.0], beta=beta, prediction=prediction)
    optimizer = torch.optim.LBFGS(table.parameters(), lr=1.0, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        objective = loss(batch)["loss_policy"]
        objective.backward()
        return objective

    for _ in range(5):
        optimizer.step(closure)

    weight = positive_weight(advantage, 5.0)
    for prompt in (0, 1):
        rows = prompts == prompt
        alpha = weight[rows].mean()
        r = weight[rows].view(-1, 1, 1, 1, 1)
        positive = (r * latents[rows]).sum(dim=0) / r.sum()
        expected = mean[prompt] + 2 / beta * alpha * (positive - mean[prompt])
        found = table.weight[prompt].detach().view(1, 2, 2, 2)
        assert_close(found, expected, atol=1e-4 / beta, rtol=1e-4)
        assert (expected - mean[prompt]).abs().max() > 0.1


def test_gradient_is_zero_at_the_closed_form_on_a_discrete_process():
    """Ten (clip, noisy state) pairs over three states; the policy is a free table over states."""
    torch.manual_seed(0)
    beta, states = 0.3, torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    target = torch.randn(10, dtype=torch.float64)
    weight = torch.rand(10, dtype=torch.float64)
    means, best = [], []
    for state in range(3):
        rows = states == state
        old = target[rows].mean()
        positive = (weight[rows] * target[rows]).sum() / weight[rows].sum()
        means.append(old)
        best.append(old + 2 / beta * weight[rows].mean() * (positive - old))
    table = torch.stack(best).requires_grad_()
    positive, negative = implicit_errors(
        table[states, None], torch.stack(means)[states, None], target[:, None], beta
    )
    (weight * positive + (1 - weight) * negative).sum().backward()
    assert_close(table.grad, torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)


def test_it_is_a_torchrl_loss_that_does_not_functionalise_its_network(network, loss):
    assert isinstance(loss, LossModule)
    assert loss.functional is False
    assert loss.network is network
    assert loss.get_stateful_net("network") is network
    assert {id(p) for p in loss.parameters()} == {id(p) for p in network.parameters()}


def test_in_keys_are_what_the_loss_needs_from_a_batch(loss, clips):
    assert loss.in_keys == [
        ("video", "latents"),
        "advantage",
        ("kl", "selected"),
        ("prompt", "embeds"),
    ]
    clips["video", "pixels"] = torch.zeros(6, 9, dtype=torch.uint8)
    loss.seed(0)
    full = loss(clips)["loss_policy"]
    loss.seed(0)
    assert loss(clips.select(*loss.in_keys))["loss_policy"] == full


def test_keys_can_be_renamed_and_reset(loss, clips):
    loss.seed(0)
    expected = loss(clips)["loss_policy"]
    loss.set_keys(advantage="gain", latents=("clip", "x0"))
    assert "gain" in loss.in_keys
    assert "advantage" not in loss.in_keys
    renamed = clips.clone()
    renamed.rename_key_("advantage", "gain")
    renamed["clip", "x0"] = renamed.pop(("video", "latents"))
    loss.seed(0)
    assert loss(renamed)["loss_policy"] == expected
    loss.set_keys(advantage=None, latents=None)
    assert "advantage" in loss.in_keys
    with pytest.raises(ValueError, match="not an accepted tensordict key"):
        loss.set_keys(reward="r")


def test_tensors_can_be_given_by_name(loss, clips):
    loss.seed(0)
    expected = loss(clips)["loss_policy"]
    loss.seed(0)
    policy, *_ = loss(
        video_latents=clips["video", "latents"],
        advantage=clips["advantage"],
        kl_selected=clips["kl", "selected"],
        prompt_embeds=clips["prompt", "embeds"],
    )
    assert policy == expected


def test_weights_stay_changeable_during_a_run(network, snapshots, clips, nudge):
    loss = NFTLoss(network, snapshots, SIGMAS, kl_coeff=1.0)
    nudge(network)
    loss.kl_coeff = 0.25
    losses = loss(clips)
    assert_close(losses["loss_kl"].detach(), 0.25 * losses["kl"])


def test_a_missing_entry_is_named_with_its_reader(loss, clips):
    with pytest.raises(KeyError, match=r"NFTLoss reads 'advantage', which this batch"):
        loss(clips.exclude("advantage"))
    with pytest.raises(KeyError, match=r"NFTLoss reads \('video', 'latents'\)"):
        loss(clips.exclude(("video", "latents")))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"beta": 0.0}, "beta=0.0"),
        ({"beta": float("nan")}, "beta=nan"),
        ({"advantage_clip": -1.0}, "advantage_clip=-1.0"),
        ({"kl_coeff": -1e-4}, "kl_coeff=-0.0001"),
        ({"prediction": "noise"}, "prediction='noise'. Choose"),
    ],
)
def test_settings_outside_their_range_are_refused(network, snapshots, setting, message):
    with pytest.raises(ValueError, match=message):
        NFTLoss(network, snapshots, SIGMAS, **setting)
