"""Before anything is sampled: do all processes run the same thing?

A machine with another version, an edited file or a damaged checkpoint would train on without an
error, towards something that nobody asked for.
"""

import hashlib
import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from astrolabe.compose import Parts
from astrolabe.config import Run
from astrolabe.errors import ConfigError
from astrolabe.masking import hide
from astrolabe.ranks import tell_apart
from astrolabe.versions import PACKAGES, package_versions
from astrolabe.world import World
from astrolabe_rollout.model import VideoModel

#: Words of 8 bytes that are summed together. On a CPU they stay in its cache and in one thread, as
#: waiting for others costs more; on a GPU they are worth a kernel.
CHUNK_CPU, CHUNK_GPU = 2**14, 2**22
#: Odd, so that multiplying by it loses nothing modulo 2⁶⁴; that of a known generator (Knuth, MMIX).
FACTOR = 6364136223846793005

#: What a process compares of an aspect: name to content.
Facts = dict[str, str]


def check_same(world: World, run: Run, parts: Parts) -> None:
    """Refuse to start if processes differ in software, settings, prompts or weights.

    Args:
        world: The processes; collective.
        run: The settings.
        parts: From `compose`, as nothing has been trained yet.

    Raises:
        ConfigError: On every process, with the ranks that differ in the first thing that does.
    """
    if world.size == 1:
        return
    compare(world, "the package", package_versions, "Install the same from one uv.lock everywhere.")
    compare(world, "the file", source_digests, "Install the same version of astrolabe everywhere.")
    compare(
        world,
        "the setting",
        lambda: flat(hide(asdict(run))),
        "Start all processes with the same recipes and options.",
    )
    compare(
        world,
        "prompt number",
        lambda: {str(number): one for number, one in enumerate(parts.env.sampler.prompts, 1)},
        "Copy one prompt file to every machine.",
    )
    compare(
        world,
        "the weights",
        lambda: weight_digests(parts.model),
        "Copy one checkpoint to every machine, and look whether its files are whole.",
    )


def compare(world: World, what: str, facts: Callable[[], Facts], way_out: str) -> None:
    """Compare one aspect; contents are exchanged only if their digests differ.

    Args:
        world: The processes; collective.
        what: A word for the names.
        facts: Makes those of this process.
        way_out: What to do about a difference.

    Raises:
        ConfigError: On every process, if there is one.
    """
    own = facts()
    text = json.dumps(own, sort_keys=True)
    digests = world.gather_text(hashlib.sha256(text.encode()).hexdigest())
    if len(set(digests)) == 1:
        return
    everyone: list[Facts] = [json.loads(one) for one in world.gather_text(text)]
    names = differing(everyone)
    told = tell_apart({rank: one.get(names[0], "none") for rank, one in enumerate(everyone)})
    more = f" ({len(names) - 1} more differ)" if len(names) > 1 else ""
    raise ConfigError(f"the processes differ in {what} {names[0]}: {told}{more}. {way_out}")


def differing(everyone: Sequence[Facts]) -> list[str]:
    """Names whose content is not the same for all."""
    names = dict.fromkeys(name for facts in everyone for name in facts)
    return [name for name in names if len({facts.get(name) for facts in everyone}) > 1]


def source_digests() -> Facts:
    """Digests of our own installed files, packaged recipes and lists included."""
    found: Facts = {}
    for package in PACKAGES:
        root = Path(str(importlib.import_module(package).__file__)).parent
        for path in sorted(root.rglob("*")):
            if path.suffix in (".py", ".toml", ".txt"):
                digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
                found[f"{package}/{path.relative_to(root).as_posix()}"] = digest
    return found


def flat(settings: Mapping[str, Any], where: str = "") -> Facts:
    """Settings by their path, as JSON.

    >>> flat({"train": {"lr": 1e-5, "betas": (0.9, 0.999)}})
    {'train.lr': '1e-05', 'train.betas': '[0.9, 0.999]'}
    """
    found: Facts = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{where}{name}.")
        else:
            found[f"{where}{name}"] = json.dumps(value)
    return found


def weight_digests(model: VideoModel) -> Facts:
    """Type, shape and checksum of every parameter and buffer of a model.

    Of a sharded one no checksum, as each process holds another part of it.
    """
    return {
        f"{part}.{name}": _describe(value)
        for part, module in vars(model).items()
        if isinstance(module, nn.Module)
        for name, value in _tensors(module)
    }


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _describe(value: Tensor) -> str:
    kind = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, DTensor) or value.is_meta:
        return kind
    return f"{kind} {checksum(value):016x}"


@torch.no_grad()
def checksum(tensor: Tensor) -> int:
    """Sum up the bits of a tensor on its device, so that one flipped bit never goes unseen.

    With the content as words ``w`` of 64 bits the sum is ``Σ aᵢ wᵢ`` modulo 2⁶⁴, where every ``aᵢ``
    is odd: a flipped bit changes it by an odd multiple of a power of two, which is never 0. As
    words are weighed by their place, exchanged values show too.

    Returns:
        In [0, 2⁶⁴).
    """
    content = tensor.detach().contiguous().flatten().view(torch.uint8)
    if content.storage_offset() % 8:
        content = content.clone()
    whole = content.numel() // 8 * 8
    words = content[:whole].view(torch.int64)
    size = CHUNK_CPU if tensor.device.type == "cpu" else CHUNK_GPU
    odd = torch.arange(1, 2 * min(size, len(words)) + 1, 2, device=tensor.device)
    chunks = (words[start : start + size] for start in range(0, len(words), size))
    sums = [(chunk * odd[: len(chunk)]).sum() for chunk in chunks]
    rest = content[whole:].tolist()
    total = int.from_bytes(bytes(rest), "little")
    for one in torch.stack(sums).tolist() if sums else ():
        total = (total * FACTOR + one) % 2**64
    return total
