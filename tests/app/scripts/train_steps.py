"""Trains with the settings it is given; prints metrics and a digest of the adapter by step."""

import hashlib
import json
import sys

import torch
from torch.distributed.tensor import DTensor

from astrolabe.clock import Clock
from astrolabe.compose import compose
from astrolabe.load import load
from astrolabe.rollout_rank import sample_only
from astrolabe.train import train
from astrolabe.world import World

MEASURED = ("time/", "memory/", "overlap/", "cost/", "straggler/", "throughput/", "rollout/")

torch.set_num_threads(1)
run = load(["tiny"], sys.argv[1:])
world = World.start(run.distributed.timeout)
parts = compose(run, world)
learns = parts.handover is None or parts.handover.learns
for _ in () if learns else sample_only(run, parts, Clock(), 0):
    pass
for step in train(run, parts, Clock()) if learns else ():
    values = [
        (value.full_tensor() if isinstance(value, DTensor) else value).detach()
        for value in parts.parameters.values()
    ]
    if world.main:
        adapter = hashlib.sha256(b"".join(value.numpy().tobytes() for value in values))
        metrics = {k: v for k, v in step.metrics.items() if not k.startswith(MEASURED)}
        flat = torch.cat([value.flatten() for value in values])
        line = {"adapter": adapter.hexdigest(), "norm": float(flat.norm()), "metrics": metrics}
        sys.stdout.write(json.dumps(line) + "\n")
if learns and parts.handover is not None:
    parts.handover.end(left=False)
world.end()
