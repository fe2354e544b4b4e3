"""What can go wrong before processes have joined, in one line each with the way out."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist

from astrolabe.config import Run
from astrolabe.errors import ConfigError

#: What torchrun sets for each process.
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

LAUNCH = "Start with `torchrun --standalone --nproc-per-node N -m astrolabe train ...`, which sets"


#: How many fitting numbers of processes are named.
NAMED = 8


def world_size(environment: Mapping[str, str]) -> int:
    """Return how many processes there are by their environment; 1 without torchrun.

    Raises:
        ConfigError: If what torchrun sets is there in part, or contradicts itself.
    """
    there = [name for name in VARIABLES if environment.get(name)]
    if "RANK" not in there and "WORLD_SIZE" not in there:
        return 1
    if len(there) < len(VARIABLES):
        missing = [name for name in VARIABLES if name not in there]
        raise ConfigError(
            f"the environment has {', '.join(there)} but not {', '.join(missing)}. {LAUNCH} all of "
            "them; unset them to run one process."
        )
    size = _number(environment, "WORLD_SIZE", 1, 2**31)
    _number(environment, "RANK", 0, size - 1)
    beside = size
    if environment.get("LOCAL_WORLD_SIZE"):
        beside = _number(environment, "LOCAL_WORLD_SIZE", 1, size)
    _number(environment, "LOCAL_RANK", 0, beside - 1)
    _number(environment, "MASTER_PORT", 1, 65535)
    return size


def _number(environment: Mapping[str, str], name: str, low: int, high: int) -> int:
    text = environment[name]
    if not text.isdecimal() or not low <= int(text) <= high:
        sizes = " and ".join(
            f"{size} is {environment[size]}"
            for size in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")
            if size != name and environment.get(size)
        )
        raise ConfigError(
            f"{name} is {text!r} in the environment, no number from {low} to {high}"
            f"{f' ({sizes})' if sizes else ''}. {LAUNCH} numbers that fit together."
        )
    return int(text)


@contextmanager
def explained() -> Iterator[None]:
    """Within the block, which joins the processes, turn failures into lines with a way out.

    Raises:
        ConfigError: On entering, if this machine has too few GPUs for its processes; within, if
            they cannot be joined.
    """
    beside = int(os.environ.get("LOCAL_RANK", "0")) + 1
    check_devices(
        int(os.environ.get("LOCAL_WORLD_SIZE", beside)),
        torch.cuda.device_count(),
        nccl=dist.is_nccl_available(),
    )
    try:
        yield
    except RuntimeError as error:
        message = explain_join(error, os.environ)
        if message is None:
            raise
        raise ConfigError(message) from error


def check_devices(processes: int, gpus: int, *, nccl: bool) -> None:
    """Refuse more processes than GPUs, and GPUs that cannot talk to each other.

    Args:
        processes: On this machine.
        gpus: That this process sees; with 0 the processor is used.
        nccl: Whether PyTorch was built with NCCL.

    Raises:
        ConfigError: Names the number of processes that fits.
    """
    if gpus and processes > gpus:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        shown = f"{gpus} GPU{'s' if gpus > 1 else ''}"
        raise ConfigError(
            f"{processes} processes were started on a machine that shows {shown}"
            f"{'' if seen is None else f' (CUDA_VISIBLE_DEVICES={seen})'}, and each needs one of "
            f"its own. Start torchrun with --nproc-per-node {gpus}."
        )
    if gpus and not nccl:
        raise ConfigError(
            "there is a GPU but this PyTorch was built without NCCL, by which GPUs talk to each "
            "other. Install PyTorch for CUDA, or hide the GPUs with CUDA_VISIBLE_DEVICES='' to use "
            "the processor."
        )


def explain_join(error: BaseException, environment: Mapping[str, str]) -> str | None:
    """Return why processes could not join, with the way out; None if it is something else."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    late = "did not join" in text  # of `astrolabe.joining`
    if not late and not isinstance(error, (dist.DistNetworkError, dist.DistStoreError)):
        return None
    place = f"{environment.get('MASTER_ADDR', '?')}:{environment.get('MASTER_PORT', '?')}"
    if "EADDRINUSE" in text:
        return (
            f"the port of {place} is taken, perhaps by another run on this machine. Choose another "
            "one with torchrun --master-port (--rdzv-endpoint HOST:PORT for several machines), or "
            "let torchrun find one with --standalone."
        )
    if late or "waiting for clients" in text:
        return (
            f"not all processes came to {place}: {text.rstrip('.')}. Look for the error of "
            "those that did not; start as many as WORLD_SIZE says, on every machine with "
            "the same --nnodes and --rdzv-endpoint."
        )
    return (
        f"rank 0 cannot be reached at {place}: {text} Look whether it is running, and whether this "
        "machine resolves and reaches that name and port (firewall, --rdzv-endpoint)."
    )


def check_world(run: Run, size: int) -> None:
    """Refuse a number of processes among which the videos of a step cannot be shared evenly.

    Raises:
        ConfigError: Names the numbers of processes, and the numbers of prompts, that would do.
    """
    given, sampling = run.rollout.num_prompts, run.distributed.rollout_ranks
    if sampling >= size:
        raise ConfigError(
            f"distributed.rollout_ranks is {sampling} of {size} processes, which leaves none to "
            f"learn. Start {sampling + 1} processes or more, or set it to 0."
        )
    problem = _uneven(run, size, given)
    if problem:
        videos = given * run.rollout.group_size
        fitting = [number for number in range(1, videos + 1) if not _uneven(run, number, given)]
        nearest = sorted(sorted(fitting, key=lambda number: abs(number - size))[:NAMED])
        start = f"Start {_either(nearest)} processes, or set" if nearest else "Set"
        prompts = _either(_nearest_prompts(run, size))
        raise ConfigError(f"{problem} {start} rollout.num_prompts to {prompts}.")
    shard = run.distributed.shard_ranks
    if run.distributed.base == "sharded" and shard and size % shard:
        whole = [number for number in range(1, size + 1) if size % number == 0]
        raise ConfigError(
            f"distributed.shard_ranks is {shard}, which does not divide the {size} processes. "
            f"Set it to {_either(whole)}, or to 0 for all."
        )


def _uneven(run: Run, size: int, prompts: int) -> str:
    """Say what of a step with so many prompts cannot be shared; empty if all can."""
    rollout, updates = run.rollout, run.train.updates
    videos = prompts * rollout.group_size
    windows = videos * rollout.windows
    apart = run.distributed.rollout_ranks
    if apart >= size:
        return "too few processes are left to learn."
    learning, sampling = size - apart, apart or size
    those_learn, those_sample = (" that learn", " that sample") if apart else ("", "")
    for number, those in ((learning, those_learn), (sampling, those_sample)):
        if videos % number:
            return (
                f"a step has {videos} videos ({prompts} prompts times rollout.group_size "
                f"{rollout.group_size}), which {number} processes{those} cannot share evenly."
            )
    if rollout.shared and prompts % sampling:
        return (
            f"the videos of a prompt share their history, and {prompts} prompts cannot be dealt "
            f"whole to {sampling} processes{those_sample}."
        )
    if windows % (updates * learning):
        return (
            f"{windows} windows of a step in {updates} updates (train.updates) cannot be shared "
            f"evenly by {learning} processes{those_learn}."
        )
    if rollout.batch_size and videos // sampling % rollout.batch_size:
        return (
            f"rollout.batch_size is {rollout.batch_size}, which does not divide the "
            f"{videos // sampling} videos of each of {sampling} processes{those_sample}. Set it to "
            "a divisor, or to 0."
        )
    return ""


def _nearest_prompts(run: Run, size: int) -> list[int]:
    """The nearest numbers of prompts, below and above the given one, that can be shared."""
    given = run.rollout.num_prompts
    whole = size * run.train.updates * max(run.rollout.batch_size, 1)  # any multiple of it does
    below = (number for number in range(given - 1, 0, -1) if not _uneven(run, size, number))
    above = (
        number for number in range(given + 1, given + whole + 1) if not _uneven(run, size, number)
    )
    return [number for number in (next(below, None), next(above, None)) if number is not None]


def _either(numbers: list[int]) -> str:
    """Write numbers as a choice.

    >>> _either([1, 2, 4])
    '1, 2 or 4'
    """
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last
