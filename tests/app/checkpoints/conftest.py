import multiprocessing
import traceback
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from astrolabe.alarm import HackingAlarm
from astrolabe.config import Guard
from astrolabe.load import load
from astrolabe.run_folder import RunFolder
from astrolabe.world import ALONE, World
from astrolabe_objectives import RankDisagreement, Snapshots
from astrolabe_rewards import CompositeReward
from astrolabe_rollout.lora import add_lora, trainable_parameters
from astrolabe_rollout.prompts import GroupSampler
from astrolabe_rollout.tiny import build_tiny


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder.claim(tmp_path / "run")
    folder.begin(load(["tiny"]))
    return folder


@pytest.fixture(scope="session")
def make_parts():
    """All parts that have a state, real ones, without those that make videos."""

    def make(world=ALONE, *, sharded=False, rank=3):
        network = build_tiny(seed=0).transformer.network
        add_lora(network, rank=rank, alpha=2, targets=["to_q"])
        if sharded:
            fully_shard(network)
        parameters = trainable_parameters(network)
        loss = SimpleNamespace(kl_coeff=0.1)
        return SimpleNamespace(
            world=world,
            everyone=world,
            model=SimpleNamespace(transformer=SimpleNamespace(network=network)),
            parameters=parameters,
            optimizer=torch.optim.AdamW(parameters.values(), lr=1e-2),
            snapshots=Snapshots(network, "old", "reference"),
            disagreement=RankDisagreement("a"),
            reward=CompositeReward({"a": (torch.nn.Identity(), 1.0)}, normalise="running"),
            alarm=HackingAlarm(Guard(), trained={"a": 1.0}, held_out=["b"], units={}, loss=loss),
            env=SimpleNamespace(sampler=GroupSampler(["x", "y"], num_prompts=1, group_size=2)),
        )

    return make


@pytest.fixture(scope="session")
def learn():
    """Take optimiser steps on gradients that follow from the seed alone, however it is sharded."""

    def learn(parts, steps=1, seed=0):
        generator = torch.Generator().manual_seed(seed)
        for step in range(steps):
            for parameter in parts.parameters.values():
                whole = torch.randn(parameter.shape, generator=generator)
                if isinstance(parameter, DTensor):
                    whole = distribute_tensor(whole, parameter.device_mesh, parameter.placements)
                parameter.grad = whole
            parts.optimizer.step()
            parts.optimizer.zero_grad()
            parts.snapshots.ema("old", 0.3)
            parts.env.sampler.draw()
            parts.reward.moments.add_(1 / 3)
            parts.disagreement.rho = 1 / (step + 3)
            parts.alarm.history.append({"a": [step / 7, 0.1]})
            parts.alarm.loss.kl_coeff *= 1.1

    return learn


@pytest.fixture
def ranks(tmp_path):
    """Run a function of a world and more in several processes; return what each returned."""
    calls = Counter()

    def run(count, function, *arguments):
        calls["run"] += 1
        context = multiprocessing.get_context("fork")  # importing torch anew takes seconds
        meet = f"file://{tmp_path}/meet-{calls['run']}"
        pipes = []
        for rank in range(count):
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_one_rank, args=(theirs, meet, rank, count, function, arguments)
            )
            process.start()
            theirs.close()
            pipes.append((process, mine))
        results = [mine.recv() if mine.poll(60) else ("hangs", None) for _, mine in pipes]
        for process, _ in pipes:
            process.join(5)
            process.kill()
        problems = [problem for problem, _ in results if problem]
        assert not problems, "\n".join(problems)
        return [result for _, result in results]

    return run


def _one_rank(pipe, meet, rank, count, function, arguments):
    try:
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=count)
        pipe.send(("", function(World(rank, count, rank), *arguments)))
        dist.destroy_process_group()
    except BaseException:
        pipe.send((f"rank {rank}: {traceback.format_exc()}", None))
