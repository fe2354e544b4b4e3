"""What is drawn for a sample: its noise level and its noise, from a stream or from its own seed."""

from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Literal, get_args

import torch
from torch import Tensor

from astrolabe_objectives import settings

Levels = Literal["one", "all"]
Draw = Literal["list", "uniform"]

#: Rank of one video ``[f, C, h, w]``, whose every frame is told its level.
VIDEO = 4


class NoiseSource:
    """Draws levels and noise on the CPU: a seed gives the same numbers on every device.

    Args:
        owner: Whose it is, for messages.
        sigmas: Noise levels in (0, 1].
        levels: ``"one"`` level for each sample, or ``"all"`` of them.
        draw: ``"list"`` takes the levels that are given; ``"uniform"`` draws from all between the
            lowest and the highest, for ``levels="all"`` one from each of as many equal parts.
        seed: Start of the stream.

    Attributes:
        generator: The stream for samples without a seed.

    Raises:
        TypeError: If the seed is no whole number.
        ValueError: If the seed is negative, a level is outside (0, 1], there is none, or only one
            to draw between, or ``levels`` or ``draw`` is unknown.
    """

    def __init__(
        self, owner: str, sigmas: Sequence[float] | Tensor, levels: Levels, draw: Draw, seed: int
    ) -> None:
        known = sigmas.tolist() if isinstance(sigmas, Tensor) else sigmas
        if (
            not isinstance(known, Sequence)
            or not known
            or not all(isinstance(sigma, Real) and 0 < float(sigma) <= 1 for sigma in known)
        ):
            raise ValueError(
                f"{owner} got sigmas={known!r}. Give one or more noise levels in (0, 1], "
                "as the sampler uses them; a timestep is divided by 1000."
            )
        settings.choice(owner, "levels", levels, get_args(Levels))
        settings.choice(owner, "draw", draw, get_args(Draw))
        if draw == "uniform" and min(known) == max(known):
            raise ValueError(
                f"{owner} got draw='uniform' and sigmas={tuple(known)!r}, with nothing between the "
                "lowest and the highest. Give two different levels, or draw='list'."
            )
        self.owner = owner
        self.sigmas: tuple[float, ...] = tuple(map(float, known))
        self.uniform = draw == "uniform"
        self.every = levels == "all"
        self.copies = len(self.sigmas) if self.every else 1
        self.generator = torch.Generator()
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Restart the stream.

        Raises:
            TypeError: If the seed is no whole number.
            ValueError: If it is negative.
        """
        settings.whole(self.owner, "seed", seed, least=0)
        self.generator.manual_seed(seed)

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


def as_level(level: Tensor, like: Tensor) -> Tensor:
    """A number for each sample, ``[M]``, as it is multiplied with ``[M, ...]``."""
    return level.reshape(-1, *[1] * (like.ndim - 1))


def told(level: Tensor, event: Sequence[int]) -> Tensor:
    """Levels ``[*B]`` as the network is told them: of every frame of a video, else of a sample."""
    if len(event) != VIDEO:
        return level.contiguous()
    return level.unsqueeze(-1).repeat(*[1] * level.ndim, event[0])
