"""The processes of a run, and what they say to each other.

Every process samples, scores and learns from its own share of a step's videos. What depends on all
of them (advantages, ranks, controllers, metrics) is computed by each process from the same gathered
columns, so that nothing has to be sent back.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Self, TypeVar

import torch
import torch.distributed as dist
from tensordict import NonTensorStack, TensorDict, TensorDictBase, is_leaf_nontensor
from torch import Tensor
from torch.distributed import ProcessGroup

from astrolabe.joining import join
from astrolabe.launch_errors import explained, world_size

Result = TypeVar("Result")


@dataclass(frozen=True)
class World:
    """This process's place among those of a run; without arguments it is alone.

    All methods are collective: every process calls them, in the same order.

    Attributes:
        rank: Number of this process, from 0.
        size: How many there are.
        local_rank: Number of this process on its machine, which is that of its GPU.
        group: Of torch.distributed; None: that of all processes.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    group: ProcessGroup | None = None

    @classmethod
    def start(cls, timeout: float) -> Self:
        """Join the processes that torchrun started; without torchrun, be alone.

        Args:
            timeout: Seconds that a collective may take.

        Raises:
            ConfigError: If they cannot be joined.
        """
        if world_size(os.environ) == 1:
            return cls()
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        gpu = torch.cuda.is_available()
        with explained():
            if gpu:
                torch.cuda.set_device(local_rank)
            limit = timedelta(seconds=timeout)
            store, rank, size = join(limit)
            backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
        return cls(dist.get_rank(), dist.get_world_size(), local_rank)

    def part(self, ranks: Sequence[int]) -> "World | None":
        """Some of the processes as a world of their own; None if this one is not among them."""
        group = dist.new_group(list(ranks)) if len(ranks) > 1 else None
        if self.rank not in ranks or isinstance(group, int):  # what new_group returns to others
            return None
        return World(ranks.index(self.rank), len(ranks), self.local_rank, group)

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def end(self) -> None:
        """Leave the others; nothing collective may follow."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            self.any(False)  # as dist.barrier, which would want a GPU of its own under NCCL

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return bool(self.sum(torch.tensor([float(flag)])))

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes, in place; the same bits for each of them."""
        if self.size > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def broadcast(self, values: Tensor) -> Tensor:
        """Bring the main process's values to all, in place."""
        if self.size > 1:
            dist.broadcast(values, group=self.group, group_src=0)
        return values

    def gather_text(self, text: str) -> list[str]:
        """The texts of all processes, by rank."""
        if self.size == 1:
            return [text]
        content = torch.frombuffer(bytearray(text.encode() or b"\0"), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(content)]), group=self.group)
        longest = int(max(sizes))
        padded = torch.cat([content, content.new_zeros(longest - len(content))])
        texts = [torch.zeros_like(padded) for _ in range(self.size)]
        dist.all_gather(texts, padded, group=self.group)
        return [
            one[: int(size)].numpy().tobytes().decode().rstrip("\0")
            for one, size in zip(texts, sizes, strict=True)
        ]

    def gather(self, batch: TensorDictBase) -> TensorDictBase:
        """The rows of all processes, by rank; each gives as many, of the same entries.

        Args:
            batch: Tensors and texts, ``[n, ...]``.

        Returns:
            ``[size * n, ...]``, on the CPU; for a lone process a shallow copy.
        """
        if self.size == 1:
            return batch.copy()
        everyone = TensorDict(batch_size=[self.size * len(batch), *batch.batch_size[1:]])
        for key in sorted(batch.keys(True, True, is_leaf=is_leaf_nontensor), key=str):
            value = batch.get(key)
            if isinstance(value, Tensor):
                own = value.cpu().contiguous()
                parts = [torch.empty_like(own) for _ in range(self.size)]
                # Bytes, as gloo knows no bool.
                dist.all_gather([flat_bytes(part) for part in parts], flat_bytes(own), self.group)
                everyone.set(key, torch.cat(parts))
            else:
                texts = self.gather_text(json.dumps(value.tolist()))
                rows = [row for text in texts for row in json.loads(text)]
                everyone.set(key, NonTensorStack.from_list(rows))
        return everyone

    def exchange(self, rows: TensorDictBase, order: Tensor, parts: int) -> TensorDictBase:
        """Bring the rows of all processes into one order and give each its part of every minibatch.

        Args:
            rows: This process's tensors ``[n]``; the rows of all are numbered by rank.
            order: int64 ``[size * n]``, the same permutation for every process.
            parts: Minibatches of the whole; ``n`` is a multiple of it.

        Returns:
            ``[n]``, on the CPU: this process's share of the first minibatch, of the second, ...
        """
        count = len(rows)
        wanted = order.view(parts, self.size, count // parts).transpose(0, 1).flatten(1)
        if self.size == 1:
            return rows[wanted[0]]
        owner = wanted // count  # [size, n], whose row each process wants
        sent = [wanted[to][owner[to] == self.rank] - self.rank * count for to in range(self.size)]
        received = [
            (owner[self.rank] == source).nonzero().squeeze(1) for source in range(self.size)
        ]
        places = torch.cat(received).argsort()
        result = TensorDict(batch_size=[count])
        for key in sorted(rows.keys(True, True), key=str):
            value = rows.get(key).cpu()
            outgoing = flat_bytes(value[torch.cat(sent)].contiguous())
            width = outgoing.numel() // count
            incoming = torch.empty_like(outgoing)
            dist.all_to_all_single(
                incoming,
                outgoing,
                [len(part) * width for part in received],
                [len(part) * width for part in sent],
                group=self.group,
            )
            result.set(key, incoming.view(value.dtype).view(value.shape)[places])
        return result

    def lead(self, action: Callable[[], Result]) -> Result | None:
        """Let the main process do something; if it fails, all end.

        Returns:
            What it returned, on the main process; None on the others.

        Raises:
            SystemExit: On the others, with code 2, if the main process raised an error.
        """
        failed, result, error = False, None, None
        if self.main:
            try:
                result = action()
            except BaseException as raised:
                failed, error = True, raised
        if self.any(failed) and error is None:
            raise SystemExit(2)  # the main process says why
        if error is not None:
            raise error
        return result


#: A run of one process.
ALONE = World()


def flat_bytes(tensor: Tensor) -> Tensor:
    """A contiguous tensor's memory, flat."""
    return tensor.flatten().view(torch.uint8)
