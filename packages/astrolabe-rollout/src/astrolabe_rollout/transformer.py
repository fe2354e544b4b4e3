"""CausalWan: diffusers' own Wan transformer, run frame by frame with causal attention.

Wan's patches span one latent frame, so frames can lie in the batch: each then has a timestep of its
own for free, and only attention has to join them (see ``attention``). No block is copied or
subclassed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from astrolabe_rollout.attention import (
    CausalSelfAttention,
    KeyValue,
    Plan,
    PlanInsteadOfRope,
    StreamPlan,
    TextCrossAttention,
    WindowPlan,
)
from astrolabe_rollout.batch_cache import BatchCache, Cache, Part
from astrolabe_rollout.cache import KVCache
from astrolabe_rollout.cache_rule import CacheRule
from astrolabe_rollout.extras import wan_extra
from astrolabe_rollout.geometry import Geometry
from astrolabe_rollout.rope import rotations

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


class CausalWan(nn.Module):
    """A causal video transformer.

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
        super().__init__()
        # Any: diffusers types its config as a dict, and its blocks no further than nn.Module.
        wan: Any = network
        config = wan.config
        if tuple(config.patch_size) != (1, geometry.patch, geometry.patch):
            raise ValueError(
                f"the network has patches {tuple(config.patch_size)}, the geometry "
                f"{geometry.patch}. Both must be (1, {geometry.patch}, {geometry.patch})."
            )
        self.network, self.geometry = network, geometry
        self.head_dim, self.layers = config.attention_head_dim, config.num_layers
        self.rule = CacheRule(geometry.tokens, geometry.window, geometry.sink, relative)
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

    def new_cache(self, capacity: int | None = None) -> KVCache:
        """Return an empty cache; ``capacity`` in latent frames is needed for a global window."""
        return KVCache(self.rule, self.layers, capacity)

    @torch.no_grad()
    def forward_chunk(
        self, latents: Tensor, timestep: Tensor, embeds: Tensor, cache: Cache
    ) -> Tensor:
        """Predict the velocity of the cache's open chunk and store its keys and values.

        Args:
            latents: Noisy latents ``[B, f, C, h, w]``.
            timestep: ``1000 σ``, ``[B, f]``.
            embeds: Text ``[B, L, D]``.
            cache: Cache, or caches of the batch, with an open chunk of f frames.

        Returns:
            Velocity ``[B, f, C, h, w]``.
        """
        device = self._weight.device
        parts = [
            (part.on(device), self._rotation(part.cache.positions, latents))
            for part in (cache.parts if isinstance(cache, BatchCache) else [Part(cache)])
        ]
        plan = StreamPlan(parts, latents.shape[1], cache.text(embeds))
        return self._run(latents, timestep, embeds, plan)

    def forward_window(
        self,
        latents: Tensor,
        timestep: Tensor,
        embeds: Tensor,
        *,
        chunks: Sequence[int] | None = None,
        prefix: KVCache | None = None,
        clean: dict[int, KeyValue] | None = None,
        record: dict[int, KeyValue] | None = None,
        window: int | None = None,
        start: int = 0,
        consume: bool = False,
    ) -> Tensor:
        """Predict a whole window's velocity in one pass; chunks see what they would in a stream.

        Args:
            latents: Noisy latents ``[B, f, C, h, w]``.
            timestep: ``1000 σ``, ``[B, f]``.
            embeds: Text ``[B, L, D]``.
            chunks: Latent frames of each chunk; by default the geometry's.
            prefix: Closed cache of the frames before the window, of B videos or fewer (shared by
                groups).
            clean: Recorded keys and values of the window's clean latents, to be seen by later
                chunks. Without it they see this pass's own (noisy context).
            record: Filled with this pass's keys and values.
            window: Frames that a chunk sees, its own included, if not those of the geometry.
            start: Number of the first frame in the video, where no prefix tells it.
            consume: Whether prefix and clean may be emptied on the way, which saves memory. They
                stay where gradient checkpointing will need them again.

        Returns:
            Velocity ``[B, f, C, h, w]``.
        """
        frames = latents.shape[1]
        if chunks is None:
            chunks = (self.geometry.chunk,) * self.geometry.chunks(frames)
        start = start if prefix is None else prefix.end
        rotation = self._rotation(range(start, start + frames), latents)
        rule = self.rule if window is None else replace(self.rule, window=window, sink=0)
        network: Any = self.network
        consume = consume and not network.is_gradient_checkpointing
        plan = WindowPlan(rule, rotation, chunks, prefix, clean, record, consume)
        return self._run(latents, timestep, embeds, plan)

    @property
    def _weight(self) -> Tensor:
        """A weight that tells precision and device of the network."""
        weight: Tensor = self.network.patch_embedding.weight
        return weight

    def _rotation(self, frames: range, latents: Tensor) -> Tensor:
        height, width = (size // self.geometry.patch for size in latents.shape[-2:])
        return rotations(frames, height, width, self.head_dim, self._weight.device)

    def _run(self, latents: Tensor, timestep: Tensor, embeds: Tensor, plan: Plan) -> Tensor:
        network: Any = self.network  # its rotary module is ours
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
