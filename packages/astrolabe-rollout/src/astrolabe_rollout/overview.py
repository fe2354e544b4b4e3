"""Overview: some frames that stand for a whole video, however long it gets."""

import torch
from torch import Tensor


class Overview:
    """Frames spread evenly over a video that goes on; memory stays bounded.

    Every ``stride``-th frame is kept. When there are more than twice as many as are asked for,
    every second one is dropped and the stride doubles.

    Args:
        count: Frames to give, at least 2.
        before: Overview of what lies before, of as many videos or of fewer (shared by groups); it
            must not grow any more.

    Raises:
        ValueError: If ``count`` is below 2.
    """

    def __init__(self, count: int, before: "Overview | None" = None) -> None:
        if count < 2:
            raise ValueError(f"an overview of {count} frames shows no change. Ask for 2 or more.")
        self.count, self.before = count, before
        self.first: int = 0 if before is None else before.end
        """Number of the first frame that is kept here and not in ``before``."""
        self.end: int = self.first
        """Frames of the video so far."""
        self._stride = 1
        self._kept: Tensor | None = None

    def add(self, pixels: Tensor) -> None:
        """Go on with frames ``[B, F, 3, H, W]``."""
        chosen = pixels[:, (self.first - self.end) % self._stride :: self._stride]
        self.end += pixels.shape[1]
        self._kept = chosen.clone() if self._kept is None else torch.cat([self._kept, chosen], 1)
        while self._kept.shape[1] > 2 * self.count:
            self._stride *= 2
            self._kept = self._kept[:, ::2].clone()

    def frames(self) -> Tensor:
        """Return ``[B, count, 3, H, W]``: the first, the last kept, and others between them.

        A video of fewer frames shows some of them twice.

        Raises:
            ValueError: If the video has no frames here yet.
        """
        if self._kept is None:
            raise ValueError("this video has no frames yet. Add some first.")
        videos = len(self._kept)
        return torch.stack([self._nearest(number, videos) for number in self._numbers()], 1)

    def fps(self, fps: float) -> float:
        """Return the rate of these frames, given that of the video."""
        return fps * (self.count - 1) / max(self.end - 1, 1)

    def _numbers(self) -> list[int]:
        numbers: list[int] = torch.linspace(0, self.end - 1, self.count).round().int().tolist()
        return numbers

    def _nearest(self, number: int, videos: int) -> Tensor:
        """The kept frame nearest to a frame's number, ``[videos, 3, H, W]``."""
        if self.before is not None and number < self.first:
            return self.before._nearest(number, videos)
        assert self._kept is not None
        index = min(round((number - self.first) / self._stride), self._kept.shape[1] - 1)
        return self._kept[:, index].repeat_interleave(videos // len(self._kept), 0)
