"""The rolling KV cache: a sink that stays, a window that moves, and prefixes that a group shares.

Sizes are counted in latent frames. One chunk at a time is *open*: ``open`` makes room for it once
for all layers, every forward pass overwrites its keys and values, ``close`` keeps what the last
pass (on clean latents) wrote. Counters are Python integers, so nothing waits for a GPU.

Keys are stored rotated. With block-relative positions (Infinity-RoPE) a frame's position is its
slot in the cache; attention depends on differences alone, so the newest frames stay at their
numbers in the video and only those that would lie apart (the sink, the frames around a cut) are
moved up to them.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from astrolabe_rollout.cache_rule import CUT, CacheRule
from astrolabe_rollout.rope import move


class KVCache:
    """Keys and values of one batch of videos.

    Args:
        rule: What to keep.
        layers: Number of transformer blocks.
        capacity: Frames to allocate; by default the rule's window.
        prefix: A cache of ``P`` videos whose frames are seen before this one's own, without a copy;
            this cache then holds ``P * G`` videos, those of one group next to each other.

    Raises:
        ValueError: If neither ``capacity`` nor the rule's window bounds the cache.
    """

    def __init__(
        self,
        rule: CacheRule,
        layers: int,
        capacity: int | None = None,
        prefix: "KVCache | None" = None,
    ) -> None:
        size = capacity or rule.window
        if size is None:
            raise ValueError(
                "a cache without a window needs the number of frames to hold: set capacity."
            )
        self.rule, self.layers, self.capacity, self.prefix = rule, layers, size, prefix
        # Frames of the video so far, the open chunk excluded.
        self.end: int = 0 if prefix is None else prefix.end
        self.length = 0  # frames stored here, the open chunk excluded
        self.opened = 0  # frames of the open chunk
        self._cut = False  # whether the open chunk lies behind a hard cut
        self._keys: list[Tensor | None] = [None] * layers
        self._values: list[Tensor | None] = [None] * layers
        self._sink_from = self.end  # position of the sink when it was written
        self._raw_sink: dict[int, Tensor] = {}  # its keys as they were written
        self._text_of: Tensor | None = None
        self._text: dict[int, tuple[Tensor, Tensor]] = {}

    @classmethod
    def holding(
        cls, rule: CacheRule, recorded: Mapping[int, tuple[Tensor, Tensor]], end: int
    ) -> "KVCache":
        """Return a closed cache of given keys and values, through which gradients can flow.

        Args:
            rule: What was kept of the video.
            recorded: Rotated keys and values ``[B, tokens, heads, head_dim]`` by layer; the sink's
                at positions from 0, all others at their own.
            end: Frames of the video up to here, seen and dropped ones included.
        """
        s = rule.tokens
        length = recorded[0][0].shape[1] // s
        cache = cls(rule, len(recorded), capacity=length)
        cache.length, cache.end, cache._sink_from = length, end, end - length
        sink = min(rule.sink, length) * s
        for layer, (keys, values) in recorded.items():
            placed = rule.place_sink(keys[:, :sink], end - length)
            cache._keys[layer] = torch.cat([placed, keys[:, sink:]], 1)
            cache._values[layer] = values
        return cache

    @property
    def positions(self) -> range:
        """Temporal positions of the open chunk."""
        first = self.end
        if self._cut:
            first = CUT + (self._base if self.rule.relative else 0)
        return range(first, first + self.opened)

    @property
    def _base(self) -> int:
        """Number of the frame that slot 0 would hold, had none after it been dropped."""
        return self.end - self.length

    @property
    def nbytes(self) -> int:
        """Bytes held for frames, a shared prefix included once."""
        own = sum(t.nbytes for t in (*self._keys, *self._values) if t is not None)
        own += sum(t.nbytes for t in self._raw_sink.values())
        return own + (0 if self.prefix is None else self.prefix.nbytes)

    @property
    def state(self) -> tuple[object, ...]:
        """All but the content: caches of equal state can be joined."""
        sink = (self._sink_from, tuple(self._raw_sink)) if self.rule.relative else ()
        return self.length, self.end, self.opened, self._cut, self.prefix is None, *sink

    def text(self, embeds: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """Return the prompt's keys and values by layer, to be filled once for each prompt.

        Args:
            embeds: The prompt; another tensor object is taken for another prompt.
        """
        if self._text_of is not embeds:
            self._text_of, self._text = embeds, {}
        return self._text

    def fork(self, frames: int) -> "KVCache":
        """Return a cache for several candidates that share this one's content.

        Args:
            frames: Frames that each of them may add.

        Raises:
            ValueError: If a chunk is open, or the sink is not complete yet.
        """
        if self.opened or self.length < max(self.rule.sink, 1):
            raise ValueError(
                f"the cache holds {self.length} closed frames and the sink has {self.rule.sink}; "
                "generate and close the first chunks before the cache is forked."
            )
        return KVCache(self.rule, self.layers, capacity=frames, prefix=self)

    def open(self, frames: int, cut: bool = False) -> None:
        """Make room for a new chunk: drop the oldest frames after the sink.

        Args:
            frames: Latent frames of the chunk.
            cut: Whether the chunk begins a new scene by a hard cut: it is placed at position 45,
                far from what came before (Infinity-RoPE). With block-relative positions it joins
                the others once it is closed, with absolute ones it stays there.

        Raises:
            ValueError: If a chunk is open already, or the chunk does not fit.
        """
        if self.opened:
            raise ValueError("a chunk is open already; close it before the next one.")
        drop = self.length + frames - self.capacity
        if drop > 0:
            sink = self.rule.sink if self.prefix is None else 0
            if self.rule.window is None or self.length - sink < drop or self.prefix is not None:
                raise ValueError(
                    f"the cache holds {self.capacity} frames; {self.length} are taken and "
                    f"{frames} more do not fit. Allocate it with a larger capacity."
                )
            self._drop(sink, drop)
        self.opened, self._cut = frames, cut
        self._place_sink()

    def _drop(self, sink: int, drop: int) -> None:
        """Move what is kept to the front, in pieces that do not overlap: no second buffer."""
        s = self.rule.tokens
        for tensor in (*self._keys, *self._values):
            if tensor is None:
                continue
            for first in range(sink, self.length - drop, drop):
                last = min(first + drop, self.length - drop)
                tensor[:, first * s : last * s] = tensor[:, (first + drop) * s : (last + drop) * s]
        self.length -= drop

    def _place_sink(self) -> None:
        """Keep block-relative positions: the sink follows the window."""
        rule = self.rule
        _, dropped = rule.visible(self.length + self.opened)
        moved = self._base + dropped - self._sink_from
        if not (rule.relative and rule.sink and moved) or self.prefix is not None:
            return
        size = min(rule.sink, self.length) * rule.tokens
        for layer, keys in enumerate(self._keys):
            if keys is not None:
                # From the original each time: rounding does not add up over a long video.
                raw = self._raw_sink.setdefault(layer, keys[:, :size].clone())
                keys[:, :size] = rule.place_sink(raw, moved)

    def flush(self) -> None:
        """Forget all but the first and the last two frames (Infinity-RoPE's flush for a new scene).

        Raises:
            ValueError: If a chunk is open, or the cache has a shared prefix.
        """
        self.must_rest("flushed")
        kept = [0, self.length - 2, self.length - 1]
        if self.length <= len(kept):
            return
        s = self.rule.tokens
        first = self._base + self.rule.visible(self.length)[1] if self.rule.sink else self._base
        for tensor in (*self._keys, *self._values):
            if tensor is not None:
                tensor[:, s : 3 * s] = tensor[:, kept[1] * s : self.length * s].clone()
        self.length = len(kept)
        if self.rule.relative:
            for keys in self._keys:
                if keys is not None:
                    keys[:, :s] = move(keys[:, :s], self._base - first)
        self._sink_from, self._raw_sink = self._base, {}

    def take(self, layer: int) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Give away what a layer holds: keys, values and the keys of the sink as written."""
        held = self._keys[layer], self._values[layer], self._raw_sink.pop(layer, None)
        self.drop(layer)
        return held

    def put(self, layer: int, held: Sequence[Tensor | None]) -> None:
        """Fill a layer with what `take` gave of one or several caches like this one."""
        self._keys[layer], self._values[layer], raw = held
        if raw is not None:
            self._raw_sink[layer] = raw

    def empty_like(self) -> "KVCache":
        """Return a cache of the same state, whose layers are to be filled by `put`."""
        other = KVCache(self.rule, self.layers, self.capacity)
        other.length, other.end, other._sink_from = self.length, self.end, self._sink_from
        return other

    def reopen(self, frames: int) -> None:
        """Open the newest frames again, to write them anew (LongLive's recache).

        Raises:
            ValueError: If a chunk is open, or the frames are neither all nor all after the sink.
        """
        self.must_rest("opened again")
        if frames != self.length and not 0 < frames <= self.length - self.rule.sink:
            raise ValueError(
                f"{frames} frames cannot be opened again: the cache holds {self.length}, "
                f"{self.rule.sink} of them a sink. Take all, or some of those after the sink."
            )
        if frames == self.length:
            self.restart(self._base)
        else:
            self.length -= frames
            self.end -= frames
        self.opened = frames

    def restart(self, frame: int = 0) -> None:
        """Forget everything; the next frame written is number ``frame`` of the video."""
        self.must_rest("restarted")
        self.length, self.end = 0, frame
        self._sink_from, self._raw_sink = frame, {}

    def must_rest(self, what: str) -> None:
        """Refuse what cannot be done while a chunk is open, or to a shared prefix."""
        if self.opened or self.prefix is not None:
            raise ValueError(
                f"the cache has an open chunk or a shared prefix and cannot be {what}. "
                "Close the chunk, or do this before the cache is forked."
            )

    def drop(self, layer: int) -> None:
        """Free the keys and values of a layer that nothing will look at any more."""
        self._keys[layer] = self._values[layer] = None

    def skip(self, frames: int) -> None:
        """Count frames of the video that were seen and dropped, without having been stored here."""
        self.end += frames

    def close(self) -> None:
        """Keep the open chunk as it was last written."""
        s, there = self.rule.tokens, self.positions.start
        if self._cut and self.rule.relative:
            for keys in self._keys:
                if keys is not None:
                    new = slice(self.length * s, (self.length + self.opened) * s)
                    keys[:, new] = move(keys[:, new], self.end - there)
        self.length += self.opened
        self.end += self.opened
        self.opened, self._cut = 0, False

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the open chunk's rotated keys and values; return all that the chunk attends to.

        Args:
            layer: Transformer block.
            keys: ``[B, opened * tokens, heads, head_dim]``.
            values: The same.

        Returns:
            Keys and values ``[B, visible tokens, heads, head_dim]``, the chunk's own last.
        """
        s = self.rule.tokens
        if self._keys[layer] is None:
            shape = (keys.shape[0], self.capacity * s, *keys.shape[2:])
            self._keys[layer], self._values[layer] = keys.new_empty(shape), values.new_empty(shape)
        keys_here, values_here = self._keys[layer], self._values[layer]
        assert keys_here is not None
        assert values_here is not None
        stop = self.length + self.opened
        keys_here[:, self.length * s : stop * s] = keys
        values_here[:, self.length * s : stop * s] = values
        if self.prefix is None:
            return self._seen(keys_here, stop), self._seen(values_here, stop)
        shared_keys, shared_values = self.prefix.history(layer, self.end + self.opened)
        return self._after(shared_keys, keys_here, stop), self._after(
            shared_values, values_here, stop
        )

    def _seen(self, buffer: Tensor, stop: int) -> Tensor:
        """Stored tokens that attention may see; not all if the capacity exceeds the window."""
        rule, s = self.rule, self.rule.tokens
        first, dropped = rule.visible(stop)
        if not dropped:
            return buffer[:, : stop * s]
        if not rule.sink:
            return buffer[:, first * s : stop * s]
        return torch.cat([buffer[:, : rule.sink * s], buffer[:, first * s : stop * s]], 1)

    def _after(self, shared: Tensor, own: Tensor, stop: int) -> Tensor:
        """The shared prefix, seen by every candidate of its group, then what they do not share."""
        rule, s = self.rule, self.rule.tokens
        seen = stop if rule.window is None else min(stop, rule.window - rule.sink)
        return torch.cat([expand(shared, own.shape[0]), own[:, (stop - seen) * s : stop * s]], 1)

    def history(self, layer: int, end: int) -> tuple[Tensor, Tensor]:
        """Return the closed keys and values that a later chunk ending at ``end`` sees.

        Both are ``[P, tokens, heads, head_dim]``.
        """
        rule, s = self.rule, self.rule.tokens
        keys, values = self._keys[layer], self._values[layer]
        assert keys is not None
        assert values is not None
        keys, values = keys[:, : self.length * s], values[:, : self.length * s]
        first, dropped = rule.visible(self.length + end - self.end)
        if not dropped:
            return keys, values
        sink, after = rule.sink * s, min(first * s, keys.shape[1])
        raw = self._raw_sink.get(layer, keys[:, :sink])
        placed = rule.place_sink(raw, self._base + dropped - self._sink_from)
        return (
            torch.cat([placed, keys[:, after:]], 1),
            torch.cat([values[:, :sink], values[:, after:]], 1),
        )


def expand(shared: Tensor, batch: int) -> Tensor:
    """Repeat each of ``[P, ...]`` for its ``batch / P`` candidates, which lie side by side."""
    group = batch // shared.shape[0]
    return shared[:, None].expand(-1, group, *[-1] * (shared.ndim - 1)).flatten(0, 1)
