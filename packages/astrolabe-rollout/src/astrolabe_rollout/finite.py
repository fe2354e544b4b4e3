"""Weights and latents that are no numbers: NaN makes a video black, and nothing says why."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from astrolabe_rollout.errors import CheckpointError, NotFiniteError, some


def check_finite(source: str | Path, weights: Mapping[str, object]) -> None:
    """Refuse weights with a number that is NaN or infinite; each number is read once.

    Args:
        source: File or folder of the weights, for the message.
        weights: By their names there; what is no tensor is passed over.

    Raises:
        CheckpointError: Names some of the tensors, and says how many there are.
    """
    tensors = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    if odd := [str(name) for name, value in tensors.items() if not is_finite(value)]:
        raise CheckpointError(
            f"{str(source)!r}: {len(odd)} of {len(tensors)} tensors hold NaN or infinite numbers: "
            f"{some(odd)}. Copy or download it again; if it was saved so, take an earlier one."
        )


def is_finite(value: Tensor) -> bool:
    """Whether all numbers of a tensor are finite; true where they cannot be looked at."""
    if (
        not _readable(value)
        or not value.numel()
        or not (value.is_floating_point() or value.is_complex())
    ):
        return True
    if value.is_complex():
        value = torch.view_as_real(value)
    elif value.dtype.itemsize == 1:  # nothing is computed in 8 bits
        value = value.to(torch.float16 if value.dtype != torch.float8_e8m0fnu else torch.float32)
    # The ends are NaN if any number is; unlike `isfinite` this takes no memory.
    return bool(torch.stack(value.aminmax()).isfinite().all())  # one wait for a GPU


def check_latents(what: str, latents: Tensor, chunk: int, network: object) -> None:
    """Refuse sampled latents that are not finite; where nothing can be read, nothing is refused.

    Costs one reduction, and only if it fails a look at the network for the reason.

    Args:
        what: Names the latents in the message.
        latents: ``[B, f, C, h, w]``, whole chunks.
        chunk: Latent frames of each.
        network: What they were sampled by.

    Raises:
        NotFiniteError: Names videos and the first chunk, and says what is wrong with the weights,
            or that nothing is.
    """
    if is_finite(latents):
        return
    odd = ~latents.isfinite().flatten(2).all(2)  # [B, f]
    videos = odd.any(1).nonzero().flatten().tolist()
    first = int(odd.any(0).nonzero()[0]) // chunk
    count = f"all {len(odd)}" if len(videos) == len(odd) else f"{len(videos)} of {len(odd)}"
    raise NotFiniteError(
        f"{what}: the latents of {count} videos ({some([str(video) for video in videos])}) hold "
        f"NaN or infinite numbers, first in chunk {first + 1} of {latents.shape[1] // chunk}. "
        f"{_reason(latents, network)}"
    )


def _readable(value: Tensor) -> bool:
    """Whether numbers can be looked at: not of shapes alone, nor while a graph is recorded."""
    if value.is_meta or isinstance(value, FakeTensor) or torch.compiler.is_compiling():
        return False
    return not (value.is_cuda and torch.cuda.is_current_stream_capturing())


def _reason(latents: Tensor, network: object) -> str:
    """Why a network's latents are not finite, and the way out."""
    weights = dict(network.named_parameters()) if isinstance(network, nn.Module) else {}
    # Of a sharded weight the part that is here: other processes may be elsewhere.
    parts = {name: getattr(value, "_local_tensor", value) for name, value in weights.items()}
    odd = [name for name, value in parts.items() if not is_finite(value.detach())]
    adapter = [name for name in odd if "lora_" in name]
    if adapter and len(adapter) == len(odd):
        return (
            f"The adapter is damaged, {len(odd)} tensors of it: {some(odd)}. Load an earlier one; "
            "if training made it so, lower the learning rate."
        )
    if odd:
        return (
            f"The weights are damaged, {len(odd)} of {len(parts)} tensors: {some(odd)}. Load them "
            "again."
        )
    kinds = {value.dtype for value in parts.values() if value.is_floating_point()} or {
        latents.dtype
    }
    names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
    return (
        f"The weights ({names}) are finite, so numbers grew beyond the precision on the way: "
        "compute in bfloat16 or float32, or take an earlier adapter."
    )
