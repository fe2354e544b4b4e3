"""Swapped weights through the whole network of a run: context, adapter and checkpointed layers."""

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from astrolabe.compose import compose
from astrolabe.load import load
from astrolabe_rollout.collector import make_collector


def prepared(small, *settings):
    """A run's parts and a noised minibatch of second windows, which have a context."""
    parts = compose(
        load(["tiny"], [*small, "rollout.num_frames=3", "rollout.windows=2", *settings])
    )
    batch = next(iter(make_collector(parts.env, parts.behaviour, steps=1)))
    batch["advantage"] = torch.tensor([1.0, -1.0]).repeat(4).view(*batch.shape, 1)
    batch["kl", "selected"] = torch.ones(*batch.shape, 1, dtype=torch.bool)
    return parts, parts.loss.noise(batch.select(*parts.loss.in_keys)[:, 1])


def spoil(parts):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in parts.parameters.values():
            value += 0.1 * torch.randn(value.shape, generator=generator)


def learned(parts, noised):
    torch.manual_seed(1)
    losses = parts.loss(noised)
    total = losses["loss_policy"] + losses["loss_kl"]
    gradients = torch.autograd.grad(total, list(parts.parameters.values()))
    return losses, torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch's RMS norm
@pytest.mark.parametrize("precision", ["base", "float32"])
def test_autocast_changes_gradient_and_metrics_by_rounding_alone(small, precision):
    parts, noised = prepared(small, f"lora.precision={precision!r}")
    spoil(parts)
    losses, expected = learned(parts, noised)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, gradient = learned(parts, noised)
    assert (gradient - expected).norm() < 0.05 * expected.norm()
    for name in ("kl", "old_deviation"):
        assert losses[name] > 0
        assert float(found[name]) == pytest.approx(float(losses[name]), rel=0.05)


def test_dropout_masks_all_passes_alike_and_again_when_layers_are_recomputed(small):
    gradients = []
    for checkpointed in ("false", "true"):
        parts, noised = prepared(small, f"train.gradient_checkpointing={checkpointed}")
        network = parts.model.transformer.network.train()
        for layer in network.modules():
            if isinstance(layer, LoraLayer):
                layer.lora_dropout["default"] = nn.Dropout(0.5)
        spoil(parts)
        parts.snapshots.refresh("old")
        parts.snapshots.refresh("reference")
        losses, gradient = learned(parts, noised)
        assert losses["policy_positive"] == losses["policy_negative"]
        assert losses["kl"] == 0
        assert losses["old_deviation"] == 0
        gradients.append(gradient)
    plain, checkpointed = gradients
    torch.testing.assert_close(plain, checkpointed)
    torch.manual_seed(2)
    assert not parts.loss(noised)["loss_policy"].equal(losses["loss_policy"])


def test_context_is_encoded_with_the_weights_of_its_pass(small):
    parts, noised = prepared(small)
    with torch.no_grad():
        before = parts.denoiser(noised.clone())["denoised", "latents"]
        spoil(parts)
        live = parts.denoiser(noised.clone())["denoised", "latents"]
        with parts.snapshots.use("old"):
            old = parts.denoiser(noised.clone())["denoised", "latents"]
        again = parts.denoiser(noised.clone())["denoised", "latents"]
    assert old.equal(before)
    assert again.equal(live)
    assert not live.equal(before)
