"""The transformer's weights, spread over devices by FSDP2: each holds a part of every layer.

Text encoder and codec stay whole on each device. A block's weights are gathered when it runs, also
in the backward pass, and dropped when it has run. So every process of the mesh must run the same
passes; see the argument ``agree`` of `astrolabe_rollout.denoiser.Denoiser`.
"""

from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from astrolabe_rollout.model import VideoModel


def shard(model: VideoModel, mesh: DeviceMesh, *, lora: bool) -> None:
    """Spread the transformer of a model over the processes of a mesh.

    It computes the same, bit for bit. What is on another device is moved to the mesh's, block by
    block, so that a network on the CPU never lies whole on a GPU.

    Call it after `add_lora`, ``enable_gradient_checkpointing`` and `CausalWan.compile_blocks`, and
    before anything that holds parameters (optimiser, snapshots): sharded ones are other objects.

    Args:
        model: The model, changed in place; what requires a gradient is taken for its LoRA.
        mesh: Over one dimension the weights are spread over all processes. With two they are
            replicated over the first and spread over the second (HSDP).
        lora: Whether the LoRA is spread as well. Its gradients are then summed, not averaged, over
            the processes in each backward pass. Else it stays whole on every process, plain
            parameters whose gradients are this process's own.

    Raises:
        ValueError: If the model is sharded already, or the mesh has more than two dimensions.
    """
    network: Any = model.transformer.network  # of types diffusers gives it none
    if isinstance(network, FSDPModule) or mesh.ndim > 2:
        raise ValueError(
            f"the transformer is a {type(network).__name__} and the mesh has {mesh.ndim} "
            "dimensions. Shard a model once, over one dimension or two (replicate, shard)."
        )
    adapter = {parameter for parameter in network.parameters() if parameter.requires_grad}
    # Before FSDP's own hook, which warns of views.
    network.register_forward_hook(_own_memory)
    for module in (*network.blocks, network):
        # The root too: else its gathered weights would outlive the pass, and a snapshot's values
        # with them.
        fully_shard(
            module,
            mesh=mesh,
            reshard_after_forward=True,
            ignored_params=None if lora else adapter,
        )
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    if not lora:
        for parameter in adapter:
            parameter.data = parameter.data.to(network.proj_out.weight.device)


def full_state(network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of what is trained, by name, whole and on the CPU, whether sharded or not.

    All processes that share the network must call this; one of them can then give it to
    `save_lora`.
    """
    state = {}
    for name, value in network.named_parameters():
        if value.requires_grad:
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            state[name] = whole.detach().to("cpu", copy=True)
    return state


def _own_memory(network: nn.Module, inputs: Any, output: tuple[Tensor]) -> tuple[Tensor]:
    return (output[0].clone(),)
