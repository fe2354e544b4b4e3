"""Windows that only other processes have; what the denoiser sees is tested with streaming."""

import pytest
import torch
from tensordict import TensorDict

from astrolabe_rollout.denoiser import Denoiser
from astrolabe_rollout.tiny import build_tiny


@pytest.fixture(scope="module")
def model():
    return build_tiny().freeze()


def batch(*windows):
    generator = torch.Generator().manual_seed(2)
    n = len(windows)

    def randn(*shape):
        return torch.randn(n, *shape, generator=generator)

    entries = {
        ("noisy", "latents"): randn(6, 16, 6, 6),
        ("noisy", "sigma"): torch.full((n, 6), 0.9),
        ("video", "latents"): randn(6, 16, 6, 6),
        ("window", "context"): randn(6, 16, 6, 6),
        ("window", "index"): torch.tensor(windows),
        ("prompt", "embeds"): randn(12, 96),
    }
    return TensorDict(entries, batch_size=[n])


def passes(model, denoiser, rows):
    """Passes of the network, each as whether it was made with gradient."""
    count = []
    block = model.transformer.network.blocks[0]
    hook = block.register_forward_hook(lambda *_: count.append(torch.is_grad_enabled()))
    try:
        denoiser(rows)
    finally:
        hook.remove()
    return count


def others(*windows):
    """All processes together have these windows."""
    asked = []

    def agree(present):
        asked.append(present.tolist())
        return torch.tensor(windows)

    return agree, asked


@pytest.mark.parametrize("context", ["clean", "attached", "noisy"])
@pytest.mark.parametrize("windows", [(1, 1), (3, 1)])
def test_windows_of_others_change_neither_result_nor_gradient(model, context, windows):
    trained = model.transformer.network.blocks[1].attn1.to_k.weight.requires_grad_(True)
    agree, asked = others(0, 1, 2, 3)
    outcomes = []
    try:
        for option in (None, agree):
            denoiser = Denoiser(model, 6, context=context, agree=option)
            denoised = denoiser(batch(*windows))["denoised", "latents"]
            gradient = torch.autograd.grad(denoised.square().sum(), trained)[0]
            outcomes.append((denoised, gradient))
    finally:
        trained.requires_grad_(False)
    assert asked == [sorted(set(windows))]
    assert outcomes[0][0].equal(outcomes[1][0])
    assert outcomes[0][1].equal(outcomes[1][1])
    assert outcomes[0][1].abs().sum() > 0


def test_processes_with_different_windows_run_the_same_passes(model):
    counts = []
    for windows in ((0, 0), (0, 2), (2, 2), (2, 0)):
        agree, _ = others(0, 2)
        counts.append(passes(model, Denoiser(model, 6, agree=agree), batch(*windows)))
    assert all(count == counts[0] for count in counts)
    assert len(counts[0]) > len(passes(model, Denoiser(model, 6), batch(0, 0)))


def test_passes_for_others_go_backward_too(model):
    model.transformer.requires_grad_(True)
    reached = []

    def watch(module, inputs, output):
        if output.requires_grad:
            output.register_hook(lambda gradient: reached.append(float(gradient.abs().sum())))

    block = model.transformer.network.blocks[-1]
    hook = block.register_forward_hook(watch)
    agree, _ = others(0, 1)
    try:
        denoiser = Denoiser(model, 6, context="attached", agree=agree)
        denoiser(batch(1))["denoised", "latents"].sum().backward()
    finally:
        hook.remove()
        model.transformer.requires_grad_(False).zero_grad()
    # Of the window of others, its clean chunks and its noisy ones; of ours, sink and recent frames
    # besides. What the last block makes of all but our noisy chunks is not used.
    assert len(reached) == 2 + 4
    assert sum(total > 0 for total in reached) == 1
