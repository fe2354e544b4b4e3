"""What a rank holds of a tensor that several ranks share (DTensor, as FSDP2 makes them)."""

from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor; it shares memory and autograd's version counter."""
    # Not `.data`: it has a version counter of its own, and autograd would miss a write.
    held: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()
    return held


def shared(held: Tensor, like: Tensor) -> Tensor:
    """A tensor of which this rank holds ``held``, spread as ``like`` is; shares its memory."""
    if not isinstance(like, DTensor):
        return held
    return DTensor.from_local(
        held, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )


def part(values: Tensor, like: Tensor) -> Tensor:
    """What this rank would hold of ``values``, were they spread as ``like`` is.

    Args:
        values: Whole on every rank, or spread in any way; then all of its ranks must call this.
        like: A tensor of the same shape.
    """
    if isinstance(values, DTensor) and isinstance(like, DTensor):
        same = values.device_mesh == like.device_mesh and values.placements == like.placements
        if same:
            return values.to_local()
    whole = values.full_tensor() if isinstance(values, DTensor) else values
    if not isinstance(like, DTensor):
        return whole
    # Every rank has the whole, so nothing need be sent.
    spread = distribute_tensor(
        whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )
    return spread.to_local()


def total(value: Tensor, like: Tensor) -> Tensor:
    """Sum of a number over the ranks among which ``like`` is split, ranks with the same part once.

    All of its ranks must call this.
    """
    if not isinstance(like, DTensor):
        return value
    kinds = [Partial() if kind.is_shard() else Replicate() for kind in like.placements]
    return DTensor.from_local(value, like.device_mesh, kinds).full_tensor()
