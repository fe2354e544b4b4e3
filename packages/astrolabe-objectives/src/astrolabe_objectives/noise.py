"""What is drawn for a sample: its noise level and its noise, from a stream or from its own seed."""

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

Levels = Literal["one", "all"]
Draw = Literal["list", "uniform"]


class NoiseSource:
    """Draws levels and noise on the CPU: a seed gives the same numbers on every device.

    Args:
        sigmas: Noise levels in (0, 1].
        levels: ``"one"`` level for each sample, or ``"all"`` of them.
        draw: ``"list"`` takes the levels that are given; ``"uniform"`` draws from all between the
            lowest and the highest, for ``levels="all"`` one from each of as many equal parts.
        seed: Start of the stream.

    Attributes:
        generator: The stream for samples without a seed.

    Raises:
        ValueError: If a level is outside (0, 1], there is none, or only one to draw between, or
            ``levels`` or ``draw`` is unknown.
    """

    def __init__(self, sigmas: Sequence[float], levels: Levels, draw: Draw, seed: int) -> None:
        if not sigmas or not all(0.0 < sigma <= 1.0 for sigma in sigmas):
            raise ValueError(
                f"sigmas are {tuple(sigmas)!r}. Give one or more noise levels in (0, 1], "
                "as the sampler uses them; a timestep is divided by 1000."
            )
        if levels not in get_args(Levels):
            raise ValueError(f"levels is {levels!r}. Choose from {get_args(Levels)}.")
        if draw not in get_args(Draw):
            raise ValueError(f"draw is {draw!r}. Choose from {get_args(Draw)}.")
        if draw == "uniform" and min(sigmas) == max(sigmas):
            raise ValueError(
                f"draw is 'uniform', but sigmas are {tuple(sigmas)!r}, with nothing between the "
                "lowest and the highest. Give two different levels, or draw='list'."
            )
        self.sigmas = tuple(sigmas)
        self.uniform = draw == "uniform"
        self.every = levels == "all"
        self.copies = len(sigmas) if self.every else 1
        self.generator = torch.Generator().manual_seed(seed)

    def draw(
        self, samples: int, size: tuple[int, ...], seeds: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Levels ``[K M]`` and noise ``[K M, *size]``: all M samples, K times for all levels."""
        level, noise = torch.empty(self.copies, samples), torch.empty(self.copies, samples, *size)
        if seeds is None:
            level.copy_(self._levels(samples, self.generator).view_as(level))
            noise.normal_(generator=self.generator)
        else:
            for sample, generator in enumerate(seeded(seeds)):
                level[:, sample] = self._levels(1, generator)
                for one in noise[:, sample]:  # torch fills memory that is contiguous much faster
                    one.normal_(generator=generator)
        return level.flatten(), noise.flatten(0, 1)

    def _levels(self, samples: int, generator: torch.Generator) -> Tensor:
        """One level for each sample, ``[M]``, or each of ``levels="all"`` for all, ``[K M]``."""
        grid = torch.tensor(self.sigmas)
        if self.uniform:
            part = torch.arange(self.copies).repeat_interleave(samples)
            share = (part + torch.rand(len(part), generator=generator)) / self.copies
            return torch.lerp(grid.min(), grid.max(), share)
        if self.every:
            return grid.repeat_interleave(samples)
        return grid[torch.randint(len(grid), (samples,), generator=generator)]


def seeded(seeds: Tensor) -> Iterator[torch.Generator]:
    """One CPU generator again and again, each time at the start of the next seed's stream."""
    generator = torch.Generator()
    for seed in seeds.tolist():
        yield generator.manual_seed(seed)
