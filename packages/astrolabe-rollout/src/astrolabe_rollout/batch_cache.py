"""BatchCache: the KV caches of a batch whose videos may be treated differently.

Where one video of a batch meets another prompt or a hard cut, its cache loses or rewrites frames
that the others keep. A batch is then held in parts, each a cache of its own; only attention looks
at them one by one, so a forward pass stays one pass. Parts that are alike again are joined.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from astrolabe_rollout.cache import KVCache


@dataclass
class Part:
    """Some videos of a batch, and their cache."""

    cache: KVCache
    rows: Tensor | None = None
    """int64, on the CPU; None for all."""
    cut: bool = False
    """Whether the next chunk lies behind a hard cut."""

    def on(self, device: torch.device) -> "Part":
        """Return the same with its rows on a device, to index tensors there."""
        return self if self.rows is None else replace(self, rows=self.rows.to(device))


class BatchCache:
    """The caches of a batch of videos.

    Args:
        cache: Of all of them, as they begin.
        size: Number of videos.
    """

    def __init__(self, cache: KVCache, size: int) -> None:
        self.size = size
        self.parts = [Part(cache)]

    @property
    def capacity(self) -> int:
        """Frames that there is room for."""
        return self.parts[0].cache.capacity

    @property
    def end(self) -> int:
        """Frames of the videos so far, the open chunk excluded."""
        return self.parts[0].cache.end

    @property
    def length(self) -> int:
        """Frames stored of the video of which most are."""
        return max(part.cache.length for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes held, see `KVCache`."""
        return sum(part.cache.nbytes for part in self.parts)

    def text(self, embeds: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """Return the prompts' keys and values by layer, of all videos; see `KVCache`."""
        return self.parts[0].cache.text(embeds)

    def open(self, frames: int, cut: bool = False) -> None:
        """Make room for a new chunk of every video, behind a cut where there is to be one."""
        for part in self.parts:
            part.cache.open(frames, cut or part.cut)
            part.cut = False

    def close(self) -> None:
        """Keep the open chunk as it was last written."""
        for part in self.parts:
            part.cache.close()
        self.settle()

    def restart(self) -> None:
        """Forget everything, see `KVCache`."""
        for part in self.parts:
            part.cache.restart()
        self.settle()

    def cut(self, chosen: Sequence[bool]) -> None:
        """Flush these videos and let their next chunk lie far from what was before."""
        for part in self.split(chosen):
            part.cache.flush()
            part.cut = True

    def split(self, chosen: Sequence[bool]) -> list[Part]:
        """Return parts that hold these videos and no others.

        Raises:
            ValueError: If videos have to be parted while a chunk is open or of a shared prefix.
        """
        mask, parts, inside = torch.tensor(chosen), [], []
        for part in self.parts:
            rows = torch.arange(self.size) if part.rows is None else part.rows
            here = mask[rows]
            if here.any() and not here.all():
                caches = _divided(part.cache, [here.nonzero()[:, 0], (~here).nonzero()[:, 0]])
                new = [
                    Part(cache, rows[some], part.cut)
                    for cache, some in zip(caches, (here, ~here), strict=True)
                ]
            else:
                new = [part]
            parts += new
            inside += new[:1] if here.any() else []
        self.parts = parts
        return inside

    def settle(self) -> None:
        """Join the parts that differ in nothing but content."""
        alike: dict[object, list[Part]] = {}
        for part in self.parts:
            alike.setdefault((part.cut, *part.cache.state), []).append(part)
        if len(alike) < len(self.parts) and self.parts[0].cache.prefix is None:
            self.parts = [self._joined(parts) for parts in alike.values()]

    def fork(self, frames: int, count: int) -> "BatchCache":
        """Return caches of ``count`` candidates for each video, see `KVCache`."""
        other = BatchCache(self.parts[0].cache, self.size * count)
        other.parts = [
            Part(
                part.cache.fork(frames),
                None
                if part.rows is None
                else (part.rows[:, None] * count + torch.arange(count)).flatten(),
                part.cut,
            )
            for part in self.parts
        ]
        return other

    def _joined(self, parts: list[Part]) -> Part:
        first, *others = parts
        if not others:
            return first
        rows = torch.cat([part.rows for part in parts if part.rows is not None])
        rows, order = rows.sort()
        _join(first.cache, [part.cache for part in others], order)
        return Part(first.cache, None if len(rows) == self.size else rows, first.cut)


Cache = KVCache | BatchCache


def _divided(cache: KVCache, rows: Sequence[Tensor]) -> list[KVCache]:
    """A cache for each of several choices of videos; the given one is empty afterwards.

    Layer by layer, so that no second cache has to fit beside the first.
    """
    cache.must_rest("divided")
    made = [cache.empty_like() for _ in rows]
    for layer in range(cache.layers):
        held = cache.take(layer)
        for other, chosen in zip(made, rows, strict=True):
            other.put(layer, [None if one is None else one[chosen.to(one.device)] for one in held])
    return made


def _join(cache: KVCache, others: Sequence[KVCache], order: Tensor) -> None:
    """Take the videos of other caches into the first, in this order; the others are empty then."""
    for layer in range(cache.layers):
        columns = zip(*(one.take(layer) for one in (cache, *others)), strict=True)
        cache.put(layer, [_ordered(column, order) for column in columns])


def _ordered(pieces: Sequence[Tensor | None], order: Tensor) -> Tensor | None:
    present = [piece for piece in pieces if piece is not None]
    return torch.cat(present)[order.to(present[0].device)] if present else None
