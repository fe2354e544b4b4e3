"""Rows of a batch from the processes that have them to those that want them."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from tensordict import NonTensorStack, TensorDict, TensorDictBase, is_leaf_nontensor
from torch import Tensor

from astrolabe.world import World, flat_bytes

#: What JSON knows of a batch: the key, type and shape of a row of its tensors, and its texts.
Layout: TypeAlias = dict[str, Any]

NOTHING = range(0)


def describe(rows: TensorDictBase) -> Layout:
    """Say how a batch ``[n, ...]`` is made, for processes that receive some of it."""
    tensors, texts = [], []
    for key in sorted(rows.keys(True, True, is_leaf=is_leaf_nontensor), key=str):
        value, path = rows.get(key), [key] if isinstance(key, str) else list(key)
        if isinstance(value, Tensor):
            dtype = str(value.dtype).removeprefix("torch.")
            tensors.append([path, dtype, list(value.shape[1:])])
        else:
            texts.append([path, value.tolist()])
    return {"batch": list(rows.batch_size[1:]), "tensors": tensors, "texts": texts}


def transfer(
    world: World,
    rows: TensorDictBase | None,
    layouts: Sequence[Layout],
    owned: Sequence[range],
    wanted: Sequence[range],
) -> TensorDictBase:
    """Send each process the rows that it wants, as they are numbered over all.

    Args:
        world: The processes; collective.
        rows: Those of this process; None: it has none.
        layouts: Of the rows of those that have some, by rank, from `describe`.
        owned: Numbers of the rows that each process has, by rank, without a gap.
        wanted: Numbers of the rows that each process wants.

    Returns:
        What this process wants, on the CPU.
    """
    mine, own = wanted[world.rank], owned[world.rank]
    sent = [len(_common(own, other)) for other in wanted]
    received = [len(_common(other, mine)) for other in owned]
    layout = layouts[0]
    result = TensorDict(batch_size=[len(mine), *layout["batch"]])
    for path, dtype, shape in layout["tensors"]:
        empty = torch.empty(len(mine), *shape, dtype=getattr(torch, dtype))
        outgoing = torch.empty(0, dtype=torch.uint8)
        width = torch.Size(shape).numel() * empty.element_size()
        if rows is not None:
            outgoing = flat_bytes(rows.get(tuple(path)).cpu().contiguous())
        dist.all_to_all_single(
            flat_bytes(empty),
            outgoing,
            [count * width for count in received],
            [count * width for count in sent],
            group=world.group,
        )
        result.set(tuple(path), empty)
    for number, (path, _) in enumerate(layout["texts"]):
        texts = [text for one in layouts for text in one["texts"][number][1]]
        if mine:
            result.set(tuple(path), NonTensorStack.from_list(texts[mine.start : mine.stop]))
    return result


def shares(count: int, processes: int) -> list[range]:
    """Numbers of the rows of each process, where all have as many.

    >>> shares(6, 2)
    [range(0, 3), range(3, 6)]
    """
    size = count // processes
    return [range(rank * size, (rank + 1) * size) for rank in range(processes)]


def _common(first: range, second: range) -> range:
    return range(max(first.start, second.start), min(first.stop, second.stop))
