"""Rows of all processes, for statistics that must see the whole batch."""

import torch
import torch.distributed as dist
from torch import Tensor


def gather_rows(
    process_group: dist.ProcessGroup | None, *columns: Tensor
) -> tuple[tuple[Tensor, ...], slice]:
    """Concatenate the rows of every rank, and say where this rank's own rows are.

    Args:
        process_group: The ranks that share a batch. None: this process alone.
        columns: ``[n, ...]`` each, a handful of numbers a sample; ``n`` may differ between ranks.

    Returns:
        Each column with all rows ``[sum of n, ...]`` in rank order, on its own device, and the
        slice of the rows that came from this rank.
    """
    rows = len(columns[0])
    if process_group is None:
        return columns, slice(0, rows)
    ranks: list[list[Tensor]] = [[]] * process_group.size()
    # Objects, not tensors: ranks may hold different numbers of samples, and these rows are tiny.
    dist.all_gather_object(ranks, [column.cpu() for column in columns], group=process_group)
    start = sum(len(theirs[0]) for theirs in ranks[: process_group.rank()])
    everyone = tuple(
        torch.cat([theirs[k] for theirs in ranks]).to(own.device) for k, own in enumerate(columns)
    )
    return everyone, slice(start, start + rows)
