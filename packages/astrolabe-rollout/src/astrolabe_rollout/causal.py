"""What a causal video transformer is to this package, and how to make one of any network.

`Transformer` is all that streaming asks of a model, `WindowTransformer` what training on windows
asks besides. `CausalTransformer` has both: a network of one's own adds its forward pass.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from astrolabe_rollout.attention import KeyValue, Plan, StreamPlan, WindowPlan
from astrolabe_rollout.batch_cache import BatchCache, Cache, Part
from astrolabe_rollout.cache import KVCache
from astrolabe_rollout.cache_rule import CacheRule
from astrolabe_rollout.checks import floating, kind
from astrolabe_rollout.geometry import Geometry
from astrolabe_rollout.rope import rotations


@runtime_checkable
class Transformer(Protocol):
    """What `StreamingPolicy` and all streams ask of a transformer."""

    @property
    def geometry(self) -> Geometry:
        """Sizes, chunk, window and sink."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Weights, at least one; text goes to the device of the first."""

    def new_cache(self, capacity: int | None = None) -> KVCache:
        """Return an empty cache; ``capacity`` in latent frames is needed for a global window."""

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
            Velocity ``[B, f, C, h, w]``, of the precision and on the device of the latents.
        """


@runtime_checkable
class WindowTransformer(Transformer, Protocol):
    """What `Denoiser` asks of a transformer besides."""

    @property
    def rule(self) -> CacheRule:
        """What its cache keeps."""

    @property
    def layers(self) -> int:
        """Layers of attention over frames."""

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
        """Predict a whole window's velocity in one pass, see `CausalTransformer`."""


class CausalTransformer(nn.Module):
    """A causal video transformer: chunks over a cache, or a whole window at once.

    A network of one's own is a subclass with `velocity`, and whatever modules that needs.

    Args:
        geometry: Sizes, chunk, window and sink.
        layers: Layers of attention over frames.
        head_dim: Size of a head of it, even and at least 6.
        relative: Whether positions are block-relative (Infinity-RoPE) rather than absolute.

    Raises:
        TypeError: If the geometry is none.
        ValueError: If the head cannot be split among time, height and width.
    """

    def __init__(
        self, geometry: Geometry, *, layers: int, head_dim: int, relative: bool = False
    ) -> None:
        super().__init__()
        if not isinstance(geometry, Geometry):
            raise TypeError(
                f"geometry is {geometry!r}. Give an astrolabe_rollout.Geometry(height, width, ...)."
            )
        if head_dim < 6 or head_dim % 2 or layers < 1:
            raise ValueError(
                f"there are {layers} layers with heads of {head_dim}. Positions need a head that "
                "is even and 6 or more, and there has to be a layer."
            )
        self.geometry, self.layers, self.head_dim = geometry, layers, head_dim
        self.rule = CacheRule(geometry.tokens, geometry.window, geometry.sink, relative)

    @abstractmethod
    def velocity(self, latents: Tensor, timestep: Tensor, embeds: Tensor, plan: Plan) -> Tensor:
        """Predict the velocity ``ε - x_0`` of some frames.

        Where frames look at each other, ``plan.attend(layer, query, key, value)`` takes the place
        of attention, once for each of the layers 0, 1, ... in a pass: all three are ``[B, f *
        tokens, heads, head_dim]``, frame after frame, without positions, which it adds (rotary, as
        Wan's). All else in the network must treat each frame by itself.

        Args:
            latents: Noisy latents ``[B, f, C, h, w]``, of any precision and device.
            timestep: ``1000 σ``, ``[B, f]``; 0 for clean context.
            embeds: Text ``[B, L, D]``.
            plan: What the frames attend to in this pass.

        Returns:
            ``[B, f, C, h, w]``.
        """

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def new_cache(self, capacity: int | None = None) -> KVCache:
        """See `Transformer`."""
        return KVCache(self.rule, self.layers, capacity)

    @torch.no_grad()
    def forward_chunk(
        self, latents: Tensor, timestep: Tensor, embeds: Tensor, cache: Cache
    ) -> Tensor:
        """See `Transformer`.

        Raises:
            ValueError: If a tensor has another rank or size than the geometry says.
        """
        self._check(latents, timestep, embeds)
        parts = [
            (part.on(self.device), self._rotation(part.cache.positions, latents))
            for part in (cache.parts if isinstance(cache, BatchCache) else [Part(cache)])
        ]
        opened = parts[0][0].cache.opened
        if opened != latents.shape[1]:
            raise ValueError(
                f"the latents have {latents.shape[1]} frames, the cache's open chunk {opened}. "
                "Open a chunk of as many frames first: cache.open(frames)."
            )
        plan = StreamPlan(parts, latents.shape[1], cache.text(embeds))
        return self._attended(self.velocity(latents, timestep, embeds, plan), plan)

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

        Raises:
            ValueError: If a tensor has another rank or size than the geometry says, or the chunks
                are not those frames.
        """
        self._check(latents, timestep, embeds)
        frames = latents.shape[1]
        if chunks is None:
            chunks = (self.geometry.chunk,) * self.geometry.chunks(frames)
        if sum(chunks) != frames:
            raise ValueError(
                f"the chunks {tuple(chunks)} are {sum(chunks)} frames, the latents have {frames}. "
                "Give chunks of all frames."
            )
        start = start if prefix is None else prefix.end
        rotation = self._rotation(range(start, start + frames), latents)
        rule = self.rule if window is None else replace(self.rule, window=window, sink=0)
        plan = WindowPlan(
            rule, rotation, chunks, prefix, clean, record, consume and not self._checkpoints
        )
        return self._attended(self.velocity(latents, timestep, embeds, plan), plan)

    def _attended(self, velocity: Tensor, plan: StreamPlan | WindowPlan) -> Tensor:
        """Refuse a pass of which other chunks would see another layer's frames, or none."""
        if sorted(plan.attended) != list(range(self.layers)):
            raise ValueError(
                f"velocity attended in the layers {plan.attended} of {self.layers}. Call "
                f"plan.attend(layer, query, key, value) once for each of 0 to {self.layers - 1}."
            )
        return velocity

    @property
    def _checkpoints(self) -> bool:
        """Whether a backward pass runs parts of the forward pass again."""
        return False

    def _rotation(self, frames: range, latents: Tensor) -> Tensor:
        height, width = (size // self.geometry.patch for size in latents.shape[-2:])
        return rotations(frames, height, width, self.head_dim, self.device)

    def _check(self, latents: Tensor, timestep: Tensor, embeds: Tensor) -> None:
        geometry = self.geometry
        frame = (geometry.channels, *geometry.latent_size)
        if latents.ndim != 5 or tuple(latents.shape[2:]) != frame or not floating(latents):
            raise ValueError(
                f"latents are {kind(latents)}; this transformer takes floats "
                f"[B, f, {', '.join(map(str, frame))}]. Give frames of its geometry, in that order."
            )
        if timestep.shape != latents.shape[:2]:
            raise ValueError(
                f"timestep is {kind(timestep)} for latents {list(latents.shape)}. Give one a "
                f"frame, {list(latents.shape[:2])}: 1000 times its noise level."
            )
        if embeds.ndim != 3 or len(embeds) != len(latents) or not floating(embeds):
            raise ValueError(
                f"embeds are {kind(embeds)} for {len(latents)} videos. Give floats "
                f"[{len(latents)}, L, D], the text encoder's output."
            )
