"""What a cache keeps of a video, and how it counts time."""

from dataclasses import dataclass

from torch import Tensor

from astrolabe_rollout.rope import move

CUT = 45
"""Temporal position of the first frame after a hard cut (Infinity-RoPE's RoPE cut)."""


@dataclass(frozen=True)
class CacheRule:
    """What a cache keeps and how it counts time.

    Args:
        tokens: Tokens of a latent frame.
        window: Frames that attention can see, sink and own chunk included; ``None`` for all.
        sink: Frames at the start that are never dropped.
        relative: Whether positions are slots of the cache (block-relative RoPE).
    """

    tokens: int
    window: int | None = None
    sink: int = 0
    relative: bool = False

    def visible(self, end: int) -> tuple[int, int]:
        """Return the first slot after the sink that a chunk ending at slot ``end`` sees.

        The second number counts the slots dropped by then.
        """
        dropped = 0 if self.window is None else max(0, end - self.window)
        return min(self.sink + dropped, end), dropped

    def place_sink(self, sink: Tensor, dropped: int) -> Tensor:
        """Return the sink's rotated keys where they are once so many frames are dropped."""
        return move(sink, dropped) if self.relative else sink
