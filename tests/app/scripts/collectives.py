"""Checks that hold for every process; run by test_world."""

import sys

import pytest
import torch
from tensordict import NonTensorStack, TensorDict

from astrolabe.world import World

world = World.start(60)
own = torch.arange(4) + 4 * world.rank

assert world.any(world.rank == 1)
assert not world.any(False)
assert world.sum(torch.ones(2, dtype=torch.float64)).tolist() == [world.size] * 2
assert world.gather_text("é" * world.rank) == ["é" * rank for rank in range(world.size)]

batch = TensorDict({"a": {"b": own.float()[:, None], "c": own > 2}}, batch_size=[4])
batch["text"] = NonTensorStack(*[f"video {number}" for number in own.tolist()])
everyone = world.gather(batch)
assert everyone["a", "b"].flatten().tolist() == list(range(4 * world.size))
assert everyone["a", "c"].tolist() == [number > 2 for number in range(4 * world.size)]
assert list(everyone["text"]) == [f"video {number}" for number in range(4 * world.size)]

order = torch.randperm(4 * world.size, generator=torch.Generator().manual_seed(3))
rows = TensorDict({"n": own, "x": {"y": own.to(torch.bfloat16).repeat(3, 1).T}}, batch_size=[4])
mine = world.exchange(rows, order, parts=2)
expected = torch.cat([half.chunk(world.size)[world.rank] for half in order.chunk(2)])
assert torch.equal(mine["n"], expected)
assert torch.equal(mine["x", "y"].float(), expected.float().repeat(3, 1).T)

assert world.lead(lambda: "led") == ("led" if world.main else None)
with pytest.raises(ValueError if world.main else SystemExit):
    world.lead(lambda: int("no number"))
if world.main:
    sys.stdout.write("all hold")
world.end()
