"""Sharded models compute what lone ones do: on one process, and slow, on two and on four.

The file is a program too, in which every process runs all cases, one after the other. It forks them
from one that has imported everything and computed nothing.
"""

import json
import subprocess
import sys
import traceback
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from diffusers import WanTransformer3DModel
from tensordict import TensorDict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import start_processes

from astrolabe_objectives import Snapshots
from astrolabe_rollout.denoiser import Denoiser
from astrolabe_rollout.geometry import Geometry
from astrolabe_rollout.lora import add_lora, load_lora, save_lora, trainable_parameters
from astrolabe_rollout.sharding import full_state, shard
from astrolabe_rollout.streaming import StreamingPolicy
from astrolabe_rollout.tiny import build_tiny
from astrolabe_rollout.transformer import CausalWan

SECONDS = 60  # after which a process that waits for another gives up
ROWS = 4  # divided by the number of processes

tiny = cache(build_tiny)


def build(half=False):
    torch.manual_seed(0)
    network = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        text_dim=16,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
    )
    if half:
        for name, parameter in network.named_parameters():
            if not any(part in name for part in network._keep_in_fp32_modules):
                parameter.data = parameter.data.bfloat16()
    return network.requires_grad_(False)


def make(half=False, checkpointing=False):
    network = build(half)
    add_lora(network, rank=3, alpha=6)  # rows of A do not divide evenly
    generator = torch.Generator().manual_seed(1)
    for name, parameter in trainable_parameters(network).items():
        if "lora_B" in name:  # zeros at first: A would have no gradient
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / 20)
    if checkpointing:
        network.enable_gradient_checkpointing()
    geometry = Geometry(48, 48, window=9, sink=3)
    return replace(tiny(), transformer=CausalWan(network, geometry, relative=True))


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
        ("prompt", "embeds"): randn(5, 16),
        ("prompt", "seed"): torch.arange(n),
    }
    return TensorDict(entries, batch_size=[n])


def own(rows):
    return rows.chunk(dist.get_world_size())[dist.get_rank()]


def agree(present):
    """Window numbers of all processes."""
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, present.tolist())
    return torch.tensor(sorted({window for windows in gathered for window in windows}))


def learn(model, rows, **options):
    """What a batch is denoised to, and the LoRA's gradients."""
    trained = trainable_parameters(model.transformer.network)
    for parameter in trained.values():
        parameter.grad = None
    denoised = Denoiser(model, 6, **options)(rows.clone())["denoised", "latents"]
    denoised.square().sum().backward()
    return denoised.detach(), {name: parameter.grad for name, parameter in trained.items()}


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def compare(model, lone, rows, lora, tolerance=1e-6, **options):
    """A sharded model learns what a lone one does, of its own rows or of those of all."""
    expected, gradients = learn(lone, own(rows), **options)
    denoised, found = learn(model, own(rows), agree=agree, **options)
    assert denoised.equal(expected)
    for name, gradient in gradients.items():
        assert isinstance(found[name], DTensor) == lora
        assert found[name].dtype == torch.float32
        if lora:
            dist.all_reduce(gradient)
            error = (whole(found[name]) - gradient).abs().max() / gradient.abs().max()
            assert error < tolerance, (name, float(error))
        else:
            assert found[name].equal(gradient), name


def samples_the_same_video(mesh):
    for lora in (False, True):
        lone, model = make(), make()
        shard(model, mesh, lora=lora)
        policies = [StreamingPolicy(one, 6, decode=False) for one in (lone, model)]
        for window in range(2):
            rows = batch(*[window] * ROWS)
            expected, found = (policy(own(rows).clone()) for policy in policies)
            assert found["video", "latents"].equal(expected["video", "latents"])


def learns_the_same(mesh):
    for lora in (False, True):
        for half in (False, True):
            for checkpointing in (False, True):
                lone, model = make(half, checkpointing), make(half, checkpointing)
                shard(model, mesh, lora=lora)
                compare(model, lone, batch(1, 1, 1, 1), lora)


def learns_windows_that_differ_between_processes(mesh):
    for lora in (False, True):
        lone, model = make(), make()
        shard(model, mesh, lora=lora)
        for windows in ((0, 0, 1, 3), (2, 0, 0, 2), (1, 2, 3, 4)):
            compare(model, lone, batch(*windows), lora)


def learns_with_every_kind_of_context(mesh):
    for context in ("noisy", "attached"):
        for checkpointing in (False, True):
            lone, model = make(checkpointing=checkpointing), make(checkpointing=checkpointing)
            shard(model, mesh, lora=True)
            compare(model, lone, batch(0, 1, 1, 2), True, context=context)


def swaps_snapshots(mesh):
    for lora in (False, True):
        lone, model = make(), make()
        shard(model, mesh, lora=lora)
        rows = batch(0, 0, 1, 1)
        outcomes = []
        for one in (lone, model):
            network = one.transformer.network
            snapshots = Snapshots(network, "old")
            with torch.no_grad():
                for parameter in trainable_parameters(network).values():
                    parameter.add_(0.01)
            snapshots.ema("old", 0.25)
            with snapshots.use("old"):
                old = Denoiser(one, 6, agree=agree)(own(rows).clone())["denoised", "latents"]
            assert snapshots.sharded == (one is model)
            outcomes.append((old, snapshots.deviation("old"), full_state(network)))
        assert outcomes[0][0].equal(outcomes[1][0])
        assert abs(outcomes[0][1] - outcomes[1][1]) < 1e-9
        assert all(outcomes[1][2][name].equal(value) for name, value in outcomes[0][2].items())
        compare(model, lone, rows, lora)  # with the live values again
        assert not learn(model, own(rows), agree=agree)[0].equal(outcomes[1][0])


def moves_snapshots_between_sharded_and_lone_runs(mesh):
    lone, model = make(), make()
    shard(model, mesh, lora=True)
    plain, split = (Snapshots(one.transformer.network, "old") for one in (lone, model))
    with torch.no_grad():
        for parameter in trainable_parameters(model.transformer.network).values():
            parameter.add_(0.5)
    split.ema("old", 0.75)
    copies = split.state_dict()
    assert all(isinstance(copies[f"old.{name}"], DTensor) for name in split.values("old"))
    assert plain.deviation("old") == 0
    plain.load_state_dict(split.state_dict())
    values = plain.values("old")
    assert all(whole(copies[f"old.{name}"]).equal(value) for name, value in values.items())
    again = Snapshots(model.transformer.network, "old")
    for state in (plain.state_dict(), split.state_dict()):
        again.refresh("old")
        again.load_state_dict(state)
        loaded = again.state_dict()
        assert all(whole(loaded[f"old.{name}"]).equal(value) for name, value in values.items())


def learns_the_same_compiled(mesh):
    lone, model = make(checkpointing=True), make(checkpointing=True)
    model.transformer.compile_blocks("eager")
    shard(model, mesh, lora=False)
    compare(model, lone, batch(1, 1, 1, 1), False)


CASES = (
    samples_the_same_video,
    learns_the_same,
    learns_windows_that_differ_between_processes,
    learns_with_every_kind_of_context,
    swaps_snapshots,
    moves_snapshots_between_sharded_and_lone_runs,
)


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_sharded_model_of_one_process(mesh, case):
    case(mesh)


def test_no_gathered_weight_outlives_a_pass(mesh):
    model = make()
    shard(model, mesh, lora=True)
    learn(model, batch(0))
    assert all(isinstance(value, DTensor) for value in model.transformer.parameters())


def test_the_adapter_stays_plain_unless_it_is_sharded(mesh):
    model = make()
    before = trainable_parameters(model.transformer.network)
    shard(model, mesh, lora=False)
    after = trainable_parameters(model.transformer.network)
    assert all(value is before[name] for name, value in after.items())
    frozen = [p for p in model.transformer.parameters() if not p.requires_grad]
    assert all(isinstance(value, DTensor) for value in frozen)


def test_a_sharded_adapter_is_saved_as_a_whole_one(mesh, tmp_path):
    lone, model = make(), make()
    shard(model, mesh, lora=True)
    state = full_state(model.transformer.network)
    plain = full_state(lone.transformer.network)
    assert state.keys() == plain.keys()
    assert all(value.equal(plain[name]) for name, value in state.items())
    save_lora(model.transformer.network, tmp_path, state)
    fresh = build()
    load_lora(fresh, tmp_path)
    assert all(value.equal(plain[name]) for name, value in full_state(fresh).items())


def test_a_sharded_model_is_not_compiled_any_more(mesh):
    model = make()
    shard(model, mesh, lora=False)
    with pytest.raises(ValueError, match=r"sharded already\. Compile it before"):
        model.transformer.compile_blocks()


def test_a_model_is_sharded_once(mesh):
    model = make()
    shard(model, mesh, lora=False)
    assert isinstance(model.transformer.network, FSDPModule)
    with pytest.raises(ValueError, match="Shard a model once"):
        shard(model, mesh, lora=False)


def run(rank, world, folder):
    """Run all cases in one process; write what went wrong in each."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world)
    timeout = timedelta(seconds=SECONDS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timeout)
    if world == 2:
        mesh = init_device_mesh("cpu", (2,))
    else:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    wrong = {}
    for case in (*CASES, learns_the_same_compiled):
        try:
            case(mesh)
        except Exception:
            wrong[case.__name__] = traceback.format_exc()
    Path(folder, f"{rank}.json").write_text(json.dumps(wrong))
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4])
def wrong(request, tmp_path_factory):
    """What went wrong on any of so many processes, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, __file__, str(request.param), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    files = [folder / f"{rank}.json" for rank in range(request.param)]
    return [json.loads(file.read_text()) for file in files]


@pytest.mark.slow
@pytest.mark.parametrize("case", [case.__name__ for case in (*CASES, learns_the_same_compiled)])
def test_a_sharded_model_of_several_processes(wrong, case):
    assert [of_rank[case] for of_rank in wrong if case in of_rank] == []


if __name__ == "__main__":
    start_processes(
        run,
        (int(sys.argv[1]), sys.argv[2]),
        nprocs=int(sys.argv[1]),
        start_method="fork",
    )
