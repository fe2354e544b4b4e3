"""A network small enough to reason about, and a batch it can be trained on."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from astrolabe_objectives import Snapshots

SIGMAS = (1.0, 0.9375, 0.8333, 0.625)


class ToyDenoiser(TensorDictModuleBase):
    """Two linear layers, so that the backward pass needs the weights; reads one extra key."""

    def __init__(self, channels=2, width=4):
        super().__init__()
        self.in_keys = [("noisy", "latents"), ("noisy", "sigma"), ("prompt", "embeds")]
        self.out_keys = [("denoised", "latents")]
        self.frozen = nn.Linear(channels + 1, width).requires_grad_(False)
        self.adapter = nn.Linear(channels + 1, width)
        self.head = nn.Linear(width, channels)
        self.passes = []

    def forward(self, tensordict):
        self.passes.append((self.head.weight.detach().clone(), torch.is_grad_enabled()))
        noisy = tensordict["noisy", "latents"]  # [M, f, C, h, w]
        sigma = tensordict["noisy", "sigma"][:, :, None, None, None].expand_as(noisy[:, :, :1])
        values = torch.cat([noisy, sigma], dim=2).movedim(2, -1)
        hidden = torch.tanh(self.frozen(values) + self.adapter(values))
        x0 = (
            self.head(hidden).movedim(-1, 2)
            + tensordict["prompt", "embeds"].mean(dim=(1, 2))[:, None, None, None, None]
        )
        return tensordict.set(("denoised", "latents"), x0)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return ToyDenoiser()


@pytest.fixture
def snapshots(network):
    return Snapshots(network, "old", "reference")


@pytest.fixture
def clips():
    torch.manual_seed(1)
    batch = TensorDict(batch_size=[6])
    batch["video", "latents"] = torch.randn(6, 3, 2, 4, 4)
    batch["prompt", "embeds"] = torch.randn(6, 5, 8)
    batch["advantage"] = torch.tensor([[-2.0], [-1.0], [0.0], [1.0], [2.0], [9.0]])
    batch["kl", "selected"] = torch.tensor([[True], [False], [False], [True], [False], [False]])
    return batch


@pytest.fixture
def sampled(network, snapshots, clips):
    """Clips of two groups, one marked, with the states that a few-step sampler visited by "old"."""
    generator = torch.Generator().manual_seed(3)
    batch = clips.clone()
    batch["prompt", "group"] = torch.tensor([4, 4, 4, 9, 9, 9])
    batch["window", "index"] = torch.zeros(6, dtype=torch.int64)
    state, states = torch.randn(6, 3, 2, 4, 4, generator=generator), []
    for now, after in zip(SIGMAS, (*SIGMAS[1:], 0.0), strict=True):
        states.append(state)
        batch["noisy", "latents"], batch["noisy", "sigma"] = state, torch.full((6, 3), now)
        with snapshots.use("old"):
            x0 = network(batch)["denoised", "latents"]
        state = (1 - after) * x0 + after * torch.randn(x0.shape, generator=generator)
    batch["video", "latents"] = state
    batch["steps", "latents"] = torch.stack(states, dim=1)  # [6, K, f, C, h, w]
    network.passes.clear()
    return batch.exclude("noisy", "denoised")


@pytest.fixture
def gradient():
    """The gradient of a batch that goes through the network in parts, and its metrics.

    Each loss is weighted as a training loop does: by the share of the rows, and the KL term, a mean
    over the selected clips, by the share of these.
    """

    def of(loss, batch, part):
        loss.seed(5)
        noised = loss.noise(batch)
        trained = [parameter for parameter in loss.parameters() if parameter.requires_grad]
        flat, metrics = 0, {}
        for rows in noised.split(part):
            losses = {}
            for name, value in loss(rows).items():
                if name in ("loss_kl", "kl"):
                    share = rows["kl", "selected"].sum() / noised["kl", "selected"].sum()
                else:
                    share = len(rows) / len(noised)
                losses[name] = value * share
                metrics[name] = metrics.get(name, 0.0) + float(losses[name].detach())
            total = losses["loss_policy"] + losses["loss_kl"]
            gradients = torch.autograd.grad(total, trained)
            flat = flat + torch.cat([values.flatten() for values in gradients])
        return flat, metrics

    return of


@pytest.fixture
def nudge():
    """Move the trainable parameters of a network by a seeded random step."""

    def move(network, size=0.1):
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter += size * torch.randn(parameter.shape, generator=generator)

    return move


@pytest.fixture
def mesh():
    """A device mesh of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def golden():
    path = Path(__file__).parents[1] / "golden" / "stats_golden.json"
    return json.loads(path.read_text())
