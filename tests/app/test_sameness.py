import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import astrolabe
from astrolabe.errors import ConfigError
from astrolabe.sameness import check_same, checksum, compare, source_digests, weight_digests
from astrolabe.versions import package_versions
from astrolabe.world import ALONE, World
from astrolabe_rollout.tiny import build_tiny

DTYPES = [torch.bfloat16, torch.float32, torch.float16, torch.float64, torch.int8, torch.int64]
DTYPES += [torch.bool, torch.float8_e4m3fn, torch.complex64]


@dataclass(frozen=True)
class Table:
    """Where threads that play processes lay down their texts."""

    size: int
    texts: list[str] = field(default_factory=list)
    barrier: Barrier = None


@dataclass(frozen=True)
class Thread(World):
    """A process that is a thread; it gathers texts as processes do."""

    table: Table = None

    def gather_text(self, text):
        self.table.texts[self.rank] = text
        self.table.barrier.wait(10)
        everyone = list(self.table.texts)
        self.table.barrier.wait(10)
        return everyone


def together(size, check):
    """Call ``check(world)`` on each rank; return the errors, by rank."""
    table = Table(size, [""] * size, Barrier(size))

    def run(rank):
        try:
            check(Thread(rank, size, rank, table=table))
        except ConfigError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (7, 3), (5, 1031)])
def test_one_flipped_bit_changes_the_checksum(dtype, shape):
    generator = torch.Generator().manual_seed(0)
    count = torch.empty(shape, dtype=dtype).nbytes
    content = torch.randint(0, 2 if dtype is torch.bool else 256, (count,), generator=generator)
    content = content.to(torch.uint8)
    tensor = content.view(dtype).view(shape)
    before = checksum(tensor)
    assert checksum(tensor.clone()) == before
    for place in torch.randint(0, count * 8, (20,), generator=generator).tolist():
        byte, bit = divmod(place, 8)
        content[byte] ^= 1 << bit
        assert checksum(tensor) != before
        content[byte] ^= 1 << bit
    assert checksum(tensor) == before


def test_exchanged_values_change_the_checksum_in_and_between_chunks():
    tensor = torch.arange(2**16)
    swapped = tensor.clone()
    swapped[[3, 5]] = tensor[[5, 3]]
    chunks = tensor.view(4, -1)[[1, 0, 2, 3]].flatten()
    assert len({checksum(tensor), checksum(swapped), checksum(chunks)}) == 3


def test_a_checksum_is_that_of_the_content_not_of_its_place_in_memory():
    tensor = torch.arange(105, dtype=torch.int16).view(7, 15)
    assert checksum(tensor.T.contiguous().T) == checksum(tensor)
    assert checksum(torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:]) == checksum(tensor)
    assert checksum(torch.empty(0)) == 0
    assert 0 <= checksum(-torch.ones(9, dtype=torch.int64)) < 2**64


def test_all_parameters_and_buffers_of_a_model_are_compared():
    model = build_tiny(seed=0)
    digests = weight_digests(model)
    expected = {
        f"{part}.{name}"
        for part in ("transformer", "encoder", "codec")
        for name in dict(getattr(model, part).named_parameters())
        | dict(getattr(model, part).named_buffers())
    }
    assert digests.keys() == expected
    assert weight_digests(build_tiny(seed=0)) == digests
    assert weight_digests(build_tiny(seed=1)) != digests


def test_of_a_sharded_tensor_type_and_shape_alone_are_compared():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        digests = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            layer = torch.nn.Linear(4, 2, bias=False)
            layer.weight = torch.nn.Parameter(distribute_tensor(layer.weight, mesh, [Shard(0)]))
            digests.append(weight_digests(SimpleNamespace(transformer=layer)))
    finally:
        dist.destroy_process_group()
    assert digests == [{"transformer.weight": "float32 (2, 4)"}] * 2


def test_processes_that_are_the_same_may_start(small_run, parts):
    assert together(3, lambda world: check_same(world, small_run, parts)) == [None] * 3
    check_same(ALONE, small_run, None)


def test_a_setting_that_differs_is_told_on_every_process(small_run, parts):
    def check(world):
        lr = 2e-5 if world.rank == 3 else 1e-5
        check_same(world, replace(small_run, train=replace(small_run.train, lr=lr)), parts)

    errors = together(4, check)
    assert errors == errors[:1] * 4
    assert errors[0] == (
        "the processes differ in the setting train.lr: ranks 0-2: 1e-05; rank 3: 2e-05. "
        "Start all processes with the same recipes and options."
    )


def test_one_bit_of_one_weight_is_found(small_run, parts):
    other = replace(parts, model=build_tiny(seed=0))
    same = replace(parts, model=build_tiny(seed=0))
    weight = dict(other.model.transformer.named_parameters())
    name = sorted(weight)[3]
    weight[name].detach().view(torch.int32).flatten()[0] ^= 1
    errors = together(2, lambda world: check_same(world, small_run, [same, other][world.rank]))
    assert errors[0].startswith(f"the processes differ in the weights transformer.{name}: rank 0: ")
    assert errors[0].endswith(
        "Copy one checkpoint to every machine, and look whether its files are whole."
    )


def test_a_prompt_that_differs_is_named_with_its_number(small_run, parts):
    def check(world):
        prompts = ["a cat", f"a dog {world.rank}", *["a cow"] * world.rank]
        sampler = SimpleNamespace(prompts=prompts)
        check_same(world, small_run, replace(parts, env=SimpleNamespace(sampler=sampler)))

    error = together(2, check)[0]
    assert "prompt number 2: rank 0: a dog 0; rank 1: a dog 1 (1 more differ)" in error


def test_a_package_that_is_missing_somewhere_is_told():
    def check(world):
        facts = {"torch": "2"} if world.rank else {"torch": "2", "peft": "1"}
        compare(world, "the package", lambda: facts, "Install.")

    assert together(2, check)[1].startswith("the processes differ in the package peft: rank 0: 1; ")


def test_versions_and_sources_are_those_that_are_installed():
    versions = package_versions()
    assert versions["torch"] == torch.__version__
    assert {"python", "astrolabe", "astrolabe-rewards", "diffusers", "numpy"} <= versions.keys()
    assert "pytest" not in versions
    source = Path(astrolabe.__file__)
    expected = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    digests = source_digests()
    assert digests["astrolabe/__init__.py"] == expected
    assert "astrolabe/recipes/tiny.toml" in digests
    assert "astrolabe_rollout/model.py" in digests
