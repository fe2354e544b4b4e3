"""CausalWan: diffusers' own Wan transformer, run frame by frame with causal attention.

Wan's patches span one latent frame, so frames can lie in the batch: each then has a timestep of its
own for free, and only attention has to join them (see ``attention``). No block is copied or
subclassed.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from astrolabe_rollout.attention import (
    CausalSelfAttention,
    Plan,
    PlanInsteadOfRope,
    TextCrossAttention,
)
from astrolabe_rollout.causal import CausalTransformer
from astrolabe_rollout.checks import kind
from astrolabe_rollout.extras import wan_extra
from astrolabe_rollout.geometry import Geometry

with wan_extra():
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel


class _Timesteps(nn.Module):
    """Sinusoid of the timestep in float64: float32 is 6e-5 off at t near 1000."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, timestep: Tensor) -> Tensor:
        half = self.channels // 2
        exponent = torch.arange(half, dtype=torch.float64, device=timestep.device) / half
        angle = timestep.double()[:, None] * torch.exp(-math.log(10000) * exponent)
        return torch.cat([angle.cos(), angle.sin()], -1).float()


class CausalWan(CausalTransformer):
    """Wan's transformer as a causal one.

    Latents, timesteps and text may have any precision and device: they are brought to the network's
    own, and what it predicts is brought back to that of the latents.

    Args:
        network: diffusers' Wan transformer; its attention processors and rotary module are
            replaced.
        geometry: Sizes, chunk, window and sink.
        relative: Whether positions are block-relative (Infinity-RoPE) rather than absolute.

    Raises:
        ValueError: If the network's patches span more than one latent frame.
    """

    def __init__(
        self, network: WanTransformer3DModel, geometry: Geometry, relative: bool = False
    ) -> None:
        # Any: diffusers types its config as a dict, and its blocks no further than nn.Module.
        wan: Any = network
        config = wan.config
        if tuple(config.patch_size) != (1, geometry.patch, geometry.patch):
            raise ValueError(
                f"the network has patches {tuple(config.patch_size)}, the geometry "
                f"{geometry.patch}. Both must be (1, {geometry.patch}, {geometry.patch})."
            )
        super().__init__(
            geometry,
            layers=config.num_layers,
            head_dim=config.attention_head_dim,
            relative=relative,
        )
        self.network = network
        wan.rope = PlanInsteadOfRope()
        wan.condition_embedder.timesteps_proj = _Timesteps(config.freq_dim)
        for layer, block in enumerate(wan.blocks):
            block.attn1.set_processor(CausalSelfAttention(layer))
            block.attn2.set_processor(TextCrossAttention(layer, wan.rope))

    def compile_blocks(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Let torch.compile compile the blocks at their first pass, once for all layers.

        A LoRA may be added before or after, but the transformer must be sharded after.

        Args:
            backend: See ``torch.compile``.

        Raises:
            ValueError: If the transformer is sharded already.
        """
        network: Any = self.network
        if isinstance(network, FSDPModule):
            raise ValueError("the transformer is sharded already. Compile it before shard().")
        network.compile_repeated_blocks(backend=backend)

    @property
    def _weight(self) -> Tensor:
        """A weight that tells precision and device of the network."""
        weight: Tensor = self.network.patch_embedding.weight
        return weight

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._weight.device

    @property
    def _checkpoints(self) -> bool:
        network: Any = self.network
        return bool(network.is_gradient_checkpointing)

    def velocity(self, latents: Tensor, timestep: Tensor, embeds: Tensor, plan: Plan) -> Tensor:
        """See `CausalTransformer`."""
        network: Any = self.network  # its rotary module is ours
        if embeds.shape[-1] != network.config.text_dim:
            raise ValueError(
                f"embeds are {kind(embeds)}; this network reads text of {network.config.text_dim} "
                "numbers a token. Use the text encoder that belongs to it."
            )
        # Not `.to(weight)`: a sharded weight is a DTensor.
        device, dtype = self._weight.device, self._weight.dtype
        network.rope.plan = plan
        try:
            output = network(
                hidden_states=latents.flatten(0, 1).unsqueeze(2).to(device, dtype),
                timestep=timestep.flatten().to(device),  # [B*f], of latents [B*f, C, 1, h, w]
                encoder_hidden_states=embeds.to(device, dtype),
                return_dict=False,
            )
        finally:
            network.rope.plan = None  # it would hold the cache for as long as nothing else runs
        velocity: Tensor = output[0].squeeze(2).unflatten(0, latents.shape[:2])
        return velocity.to(latents)
