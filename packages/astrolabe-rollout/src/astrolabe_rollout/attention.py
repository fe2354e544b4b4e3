"""The two attention processors that turn diffusers' Wan into a causal model.

Frames lie in the batch, so the network sees ``[B * T, S, D]``; only attention joins them again.
What a frame may attend to is decided by a *plan* that travels through the blocks as their rotary
argument: recomputation under gradient checkpointing therefore sees the plan of its own pass.

``set_attention_backend`` and ``compile_repeated_blocks`` of diffusers' network work as usual. What
reads a plan stays out of compiled graphs: numbers of layers, frames and cached tokens would be
guards there, and every chunk a compilation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from astrolabe_rollout.batch_cache import Part
from astrolabe_rollout.cache import KVCache, expand
from astrolabe_rollout.cache_rule import CacheRule
from astrolabe_rollout.checks import kind
from astrolabe_rollout.extras import wan_extra
from astrolabe_rollout.rope import rotate

with wan_extra():
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
    from diffusers.models.transformers.transformer_wan import WanAttention

KeyValue = tuple[Tensor, Tensor]

Backend = AttentionBackendName | None
"""One of diffusers' attention back ends; None for its default."""


class Plan(Protocol):
    """What the frames of one forward pass attend to."""

    frames: int
    text: dict[int, KeyValue] | None
    """Keys and values of the prompt by layer, filled in the first pass; None where a gradient needs
    them computed each time."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, backend: Backend = None
    ) -> Tensor:
        """Attend with unrotated queries and keys ``[B, frames * S, heads, head_dim]``."""


def _check(
    plan: "StreamPlan | WindowPlan",
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rotation: Tensor,
) -> None:
    """Refuse what is no attention over the frames of a pass, and note the layer."""
    plan.attended.append(layer)
    tokens, half = len(rotation), rotation.shape[-1]
    wanted = (query.shape[0], tokens, query.shape[-2], 2 * half)
    if not tuple(query.shape) == tuple(key.shape) == tuple(value.shape) == wanted:
        raise ValueError(
            f"attend got query {kind(query)}, key {kind(key)} and value {kind(value)} in layer "
            f"{layer}. Give all three as [B, {tokens} tokens, heads, {2 * half}], frame after "
            "frame."
        )


@dataclass
class StreamPlan:
    """One open chunk over KV caches, which it updates; used without gradient.

    Args:
        parts: The caches of the batch, each with the rotation of its chunk.
        frames: Latent frames of the chunk.
        text: See `Plan`.
    """

    parts: Sequence[tuple[Part, Tensor]]
    frames: int
    text: dict[int, KeyValue] | None
    attended: list[int] = field(default_factory=list, init=False)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, backend: Backend = None
    ) -> Tensor:
        """Write the chunk's keys and values, then attend to all the caches show."""
        _check(self, layer, query, key, value, self.parts[0][1])
        out = torch.empty_like(query) if len(self.parts) > 1 else query
        for part, rotation in self.parts:
            q, k, v = (x if part.rows is None else x[part.rows] for x in (query, key, value))
            keys, values = part.cache.write(layer, rotate(k, rotation), v)
            seen = _attention(rotate(q, rotation), keys, values, backend)
            out = seen if part.rows is None else out.index_copy(0, part.rows, seen)
        return out


@dataclass
class WindowPlan:
    """Many chunks at once, each over what it would see in a stream; the cache is only read.

    Args:
        rule: What a stream would keep.
        rotation: Rotation of every token.
        chunks: Latent frames of each chunk.
        prefix: Closed cache of what lies before the window.
        clean: Keys and values of the window's clean latents, one pair a layer, shown to later
            chunks in place of this pass's own.
        record: Filled with this pass's keys and values when given.
        consume: Whether prefix and clean keys may go, layer by layer, once they were seen. What the
            backward pass needs of them are copies.
    """

    rule: CacheRule
    rotation: Tensor
    chunks: Sequence[int]
    prefix: KVCache | None = None
    clean: dict[int, KeyValue] | None = None
    record: dict[int, KeyValue] | None = None
    consume: bool = False
    frames: int = field(init=False)
    text: dict[int, KeyValue] | None = field(default=None, init=False)
    attended: list[int] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.frames = sum(self.chunks)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, backend: Backend = None
    ) -> Tensor:
        """Attend chunk by chunk: dense calls without a mask, on any device."""
        _check(self, layer, query, key, value, self.rotation)
        query, key = rotate(query, self.rotation), rotate(key, self.rotation)
        if self.record is not None:
            self.record[layer] = (key, value)
        past = (key, value) if self.clean is None else self.clean[layer]
        outputs, start = [], 0
        for frames in self.chunks:
            keys, values = self._seen(layer, past, (key, value), start, start + frames)
            span = slice(start * self.rule.tokens, (start + frames) * self.rule.tokens)
            outputs.append(_attention(query[:, span], keys, values, backend))
            start += frames
        if self.consume:
            self._drop(layer)
        return torch.cat(outputs, 1)

    def _drop(self, layer: int) -> None:
        if self.clean is not None:
            del self.clean[layer]
        if self.prefix is not None:
            self.prefix.drop(layer)

    def _seen(self, layer: int, past: KeyValue, own: KeyValue, start: int, stop: int) -> KeyValue:
        """Keys and values that the chunk ``[start, stop)`` of the window sees."""
        rule, s = self.rule, self.rule.tokens
        before = 0 if self.prefix is None else self.prefix.length
        first, dropped = rule.visible(before + stop)
        since = max(0, first - before) if dropped else 0
        pieces = []
        if self.prefix is not None:
            keys, values = self.prefix.history(layer, self.prefix.end + stop)
            pieces.append((expand(keys, own[0].shape[0]), expand(values, own[0].shape[0])))
        elif dropped and rule.sink:
            sink = rule.sink * s
            pieces.append((rule.place_sink(past[0][:, :sink], dropped), past[1][:, :sink]))
        if past is own:
            pieces.append((own[0][:, since * s : stop * s], own[1][:, since * s : stop * s]))
        else:
            if start > since:
                pieces.append(
                    (past[0][:, since * s : start * s], past[1][:, since * s : start * s])
                )
            pieces.append((own[0][:, start * s : stop * s], own[1][:, start * s : stop * s]))
        if len(pieces) == 1:
            return pieces[0]
        return torch.cat([k for k, _ in pieces], 1), torch.cat([v for _, v in pieces], 1)


class Pass:
    """One forward pass. Every plan comes in this one class, or each would be compiled for apart.

    No dataclass: FSDP looks into those among a layer's arguments, and makes copies of them.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan


class PlanInsteadOfRope(nn.Module):
    """Stands where diffusers computes rotary embeddings; hands the plan to every block."""

    plan: Plan | None = None

    def forward(self, hidden_states: Tensor) -> Pass:
        """Return the plan of this pass."""
        assert self.plan is not None
        return Pass(self.plan)


class CausalSelfAttention:
    """Self-attention over the frames that the plan shows."""

    _attention_backend: Backend = None  # where diffusers' set_attention_backend writes

    def __init__(self, layer: int) -> None:
        self.layer = layer

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        attention_mask: Tensor | None,
        rotary_emb: Pass,
    ) -> Tensor:
        """Attend from each frame of ``[B * T, S, D]`` to all that the plan shows it."""
        query = attn.norm_q(attn.to_q(hidden_states))
        key = attn.norm_k(attn.to_k(hidden_states))
        value = attn.to_v(hidden_states)
        out = _attend_to_frames(self, rotary_emb, attn.heads, query, key, value)
        projected: Tensor = attn.to_out[0](out.type_as(hidden_states))
        return projected


class TextCrossAttention:
    """Cross-attention of all frames of a video to its prompt; like Wan's, without a mask."""

    _attention_backend: Backend = None  # where diffusers' set_attention_backend writes

    def __init__(self, layer: int, rope: PlanInsteadOfRope) -> None:
        # diffusers hands no rotary argument to cross-attention, so the plan comes this way.
        self.layer, self.rope = layer, rope

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_emb: None = None,
    ) -> Tensor:
        """Attend from ``[B * T, S, D]`` to text ``[B, L, D]``."""
        batch = encoder_hidden_states.shape[0]
        query = attn.norm_q(attn.to_q(hidden_states))
        query = query.reshape(batch, -1, attn.heads, query.shape[-1] // attn.heads)
        if torch.is_grad_enabled():
            # Recomputation under gradient checkpointing may find the plan of a later pass.
            key, value = _text(attn, encoder_hidden_states)
        else:
            key, value = _remembered_text(self, attn, encoder_hidden_states)
        out = _attention(query, key, value, self._attention_backend)
        out = out.reshape(*hidden_states.shape[:2], -1)
        projected: Tensor = attn.to_out[0](out.type_as(hidden_states))
        return projected


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch gives it no types
def _attend_to_frames(
    processor: CausalSelfAttention,
    running: Pass,
    heads: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
) -> Tensor:
    """Join the frames of ``[B * T, S, D]``, attend, and part them again."""
    plan = running.plan
    query_all, key_all, value_all = (
        torch.unflatten(torch.unflatten(x, 0, (-1, plan.frames)).flatten(1, 2), 2, (heads, -1))
        for x in (query, key, value)
    )
    backend = processor._attention_backend
    out = plan.attend(processor.layer, query_all, key_all, value_all, backend)
    return torch.unflatten(out.flatten(2), 1, (plan.frames, -1)).flatten(0, 1)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch gives it no types
def _remembered_text(processor: TextCrossAttention, attn: WanAttention, embeds: Tensor) -> KeyValue:
    """Keys and values of the prompt, computed in the first pass if the plan remembers them."""
    plan, layer = processor.rope.plan, processor.layer
    # Without a plan a pass is over and checkpointing repeats a block, of a window: none remembers.
    known = None if plan is None else plan.text
    if known is None:
        return _text(attn, embeds)
    if layer not in known:
        known[layer] = _text(attn, embeds)
    return known[layer]


def _text(attn: WanAttention, embeds: Tensor) -> KeyValue:
    key = attn.norm_k(attn.to_k(embeds)).unflatten(2, (attn.heads, -1))
    return key, attn.to_v(embeds).unflatten(2, (attn.heads, -1))


def _attention(query: Tensor, key: Tensor, value: Tensor, backend: Backend) -> Tensor:
    """Plain attention ``[B, tokens, heads, head_dim]`` by the named back end."""
    out: Tensor = dispatch_attention_fn(query, key, value, backend=backend)
    return out
