"""How the weights of a run lie on its processes."""

import json
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from astrolabe.config import Distributed
from astrolabe.errors import ConfigError
from astrolabe.world import World


def shard_mesh(settings: Distributed, world: World) -> DeviceMesh:
    """Return the processes as copies of the base times parts of a copy.

    Raises:
        ConfigError: If the parts do not divide the processes.
    """
    parts = settings.shard_ranks or world.size
    if world.size % parts:
        raise ConfigError(
            f"distributed.shard_ranks is {parts}, which does not divide {world.size} processes. "
            "Set it to a divisor, such as the GPUs of one machine, or to 0 for all."
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if parts == world.size:
        return init_device_mesh(device, (parts,))
    sizes, names = (world.size // parts, parts), ("replicate", "shard")
    return init_device_mesh(device, sizes, mesh_dim_names=names)


def union_of_windows(world: World) -> Callable[[Tensor], Tensor]:
    """Return what gives all processes the same windows to pass: those that any of them has."""

    def union(present: Tensor) -> Tensor:
        texts = world.gather_text(json.dumps(present.tolist()))
        return torch.tensor(sorted({window for text in texts for window in json.loads(text)}))

    return union
