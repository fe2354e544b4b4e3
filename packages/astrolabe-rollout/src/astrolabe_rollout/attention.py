"""The two attention processors that turn diffusers' Wan into a causal model.

Frames lie in the batch, so the network sees ``[B * T, S, D]``; only attention joins them again.
What a frame may attend to is decided by a *plan* that travels through the blocks as their rotary
argument: recomputation under gradient checkpointing therefore sees the plan of its own pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor, nn

from astrolabe_rollout.cache import CacheRule, KVCache, expand
from astrolabe_rollout.rope import rotate

KeyValue = tuple[Tensor, Tensor]


class Plan(Protocol):
    """What the frames of one forward pass attend to."""

    frames: int
    text: dict[int, KeyValue] | None
    """Keys and values of the prompt by layer, filled in the first pass; None where a gradient needs
    them computed each time."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend with unrotated queries and keys ``[B, frames * S, heads, head_dim]``."""


@dataclass
class StreamPlan:
    """One open chunk over a KV cache, which it updates; used without gradient."""

    cache: KVCache
    rotation: Tensor
    frames: int
    text: dict[int, KeyValue] | None
    """Keys and values of the prompt by layer, filled in the first pass; None where a gradient needs
    them computed each time."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Write the chunk's keys and values, then attend to all the cache shows."""
        keys, values = self.cache.write(layer, rotate(key, self.rotation), value)
        return _attention(rotate(query, self.rotation), keys, values)


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
    """

    rule: CacheRule
    rotation: Tensor
    chunks: Sequence[int]
    prefix: KVCache | None = None
    clean: dict[int, KeyValue] | None = None
    record: dict[int, KeyValue] | None = None
    frames: int = field(init=False)
    text: dict[int, KeyValue] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.frames = sum(self.chunks)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend chunk by chunk: dense calls without a mask, on any device."""
        query, key = rotate(query, self.rotation), rotate(key, self.rotation)
        if self.record is not None:
            self.record[layer] = (key, value)
        past = (key, value) if self.clean is None else self.clean[layer]
        outputs, start = [], 0
        for frames in self.chunks:
            keys, values = self._seen(layer, past, (key, value), start, start + frames)
            span = slice(start * self.rule.tokens, (start + frames) * self.rule.tokens)
            outputs.append(_attention(query[:, span], keys, values))
            start += frames
        return torch.cat(outputs, 1)

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


class CausalSelfAttention:
    """Self-attention over the frames that the plan shows."""

    def __init__(self, layer: int) -> None:
        self.layer = layer

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        attention_mask: Tensor | None,
        rotary_emb: Plan,
    ) -> Tensor:
        """Join the frames of ``[B * T, S, D]``, attend, and part them again."""
        plan = rotary_emb
        query = attn.norm_q(attn.to_q(hidden_states))
        key = attn.norm_k(attn.to_k(hidden_states))
        value = attn.to_v(hidden_states)
        joined = [
            x.unflatten(0, (-1, plan.frames)).flatten(1, 2).unflatten(2, (attn.heads, -1))
            for x in (query, key, value)
        ]
        out = plan.attend(self.layer, *joined).flatten(2)  # [B, T * S, D]
        parted = torch.unflatten(out, 1, (plan.frames, -1)).flatten(0, 1).type_as(hidden_states)
        projected: Tensor = attn.to_out[0](parted)
        return projected


class PlanInsteadOfRope(nn.Module):
    """Stands where diffusers computes rotary embeddings; hands the plan to every block."""

    plan: Plan

    def forward(self, hidden_states: Tensor) -> Plan:
        """Return the plan of this pass."""
        return self.plan


class TextCrossAttention:
    """Cross-attention of all frames of a video to its prompt; like Wan's, without a mask."""

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
        key, value = self._text(attn, encoder_hidden_states)
        out = _attention(query, key, value).reshape(*hidden_states.shape[:2], -1)
        projected: Tensor = attn.to_out[0](out.type_as(hidden_states))
        return projected

    def _text(self, attn: WanAttention, embeds: Tensor) -> KeyValue:
        # Recomputation under gradient checkpointing may find the plan of a later pass here.
        known = None if torch.is_grad_enabled() else self.rope.plan.text
        if known is not None and self.layer in known:
            return known[self.layer]
        key = attn.norm_k(attn.to_k(embeds)).unflatten(2, (attn.heads, -1))
        text = key, attn.to_v(embeds).unflatten(2, (attn.heads, -1))
        if known is not None:
            known[self.layer] = text
        return text


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Plain attention ``[B, tokens, heads, head_dim]`` by the backend that diffusers selects."""
    out: Tensor = dispatch_attention_fn(query, key, value)
    return out
