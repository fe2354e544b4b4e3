"""How the processes that torchrun started find each other, also after a restart.

torchrun's own store outlives the processes, and with it the addresses of those that are gone: after
a restart some would connect to them. So the processes agree on a new corner of the store first, in
a way that what earlier ones left there cannot disturb.
"""

import time
from datetime import timedelta
from uuid import uuid4

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

LOOK = 0.05
"""Seconds between two looks into the store."""


def join(timeout: timedelta) -> tuple[Store, int, int]:
    """Find the other processes by the environment that torchrun sets.

    Args:
        timeout: How long to wait for the others.

    Returns:
        A store that no earlier process has seen, the number of this process, how many there are.

    Raises:
        RuntimeError: If the others do not come.
    """
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    name = _announce(store, size, timeout) if rank == 0 else _ask(store, rank)
    return PrefixStore(f"astrolabe/{name}", store), rank, size


def _ask(store: Store, rank: int) -> str:
    """Ask rank 0 for the name, by a question that nobody asked before."""
    question = uuid4().hex
    store.set(f"astrolabe/question/{rank}", question)
    name = store.get(f"astrolabe/answer/{question}").decode()  # waits for it
    store.set(f"astrolabe/{name}/heard/{rank}", "yes")
    return name


def _announce(store: Store, size: int, timeout: timedelta) -> str:
    """Answer the others until each has heard; what an earlier process asked costs an answer."""
    name, end = uuid4().hex, time.monotonic() + timeout.total_seconds()
    silent, answered = set(range(1, size)), set()
    while silent:
        for rank in sorted(silent):
            question = f"astrolabe/question/{rank}"
            if store.check([question]) and (asked := store.get(question).decode()) not in answered:
                store.set(f"astrolabe/answer/{asked}", name)
                answered.add(asked)
            if store.check([f"astrolabe/{name}/heard/{rank}"]):
                silent.discard(rank)
        if silent and time.monotonic() > end:
            raise RuntimeError(f"ranks {sorted(silent)} did not join within {timeout}")
        time.sleep(LOOK)
    return name
