"""Rectified flow: noise levels, their time shift, and the few-step list of a distilled model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real

import torch
from torch import Tensor

from astrolabe_rollout.seeds import whole_number


@dataclass(frozen=True)
class FlowSchedule:
    """The straight path ``x_σ = (1-σ) x_0 + σ ε`` with velocity ``v = ε - x_0``.

    Args:
        shift: Time shift; σ = shift u / (1 + (shift - 1) u) for u in [0, 1]. Wan 2.1 at 480p has 5.
        size: Entries of the table of noise levels.

    Raises:
        TypeError: If ``size`` is no whole number.
        ValueError: If a number is not above 0.
    """

    shift: float = 5.0
    size: int = 1000

    def __post_init__(self) -> None:
        whole_number("size", self.size)
        number = isinstance(self.shift, Real) and not isinstance(self.shift, bool)
        if not number or not 0 < self.shift < math.inf or self.size < 1:
            raise ValueError(
                f"shift is {self.shift!r}, size {self.size}. Give a shift above 0, such as 5.0, "
                "and a size of 1 or more."
            )

    @cached_property
    def sigmas(self) -> Tensor:
        """Table of shifted noise levels from 1 down to just above 0, float32 ``[size]``."""
        u = torch.linspace(1, 0, self.size + 1, dtype=torch.float64)[:-1]
        return (self.shift * u / (1 + (self.shift - 1) * u)).float()

    def warp(self, steps: Sequence[int]) -> tuple[float, ...]:
        """Noise levels at which a few-step list such as (1000, 750, 500, 250) really samples.

        A step counts down the table (Self-Forcing's ``warp_denoising_step``): with shift 5 the list
        above gives 1, 0.9375, 0.8333, 0.625.

        Raises:
            ValueError: If a step lies outside 1..size or the list does not fall.
        """
        if isinstance(steps, str):
            raise ValueError(f"denoising_steps is the text {steps!r}. Give numbers: (1000, 500).")
        outside = [step for step in steps if not 1 <= step <= self.size]
        if not steps or outside or list(steps) != sorted(set(steps), reverse=True):
            raise ValueError(
                f"denoising_steps={tuple(steps)} is no falling list of numbers from {self.size} "
                "to 1. Distilled models use 1000, 750, 500, 250."
            )
        return tuple(float(self.sigmas[self.size - step]) for step in steps)

    def nearest(self, timestep: Tensor) -> Tensor:
        """Noise level in the table nearest to each ``timestep = 1000 σ``, as public samplers do."""
        table = self.sigmas.to(timestep.device)
        index = (table.double() * 1000 - timestep.double().flatten()[:, None]).abs().argmin(1)
        return table[index].reshape(timestep.shape)


def add_noise(x0: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """Return ``x_σ = (1-σ) x_0 + σ ε``; ``sigma`` is a number or broadcasts from the left.

    Raises:
        ValueError: If the noise is of another shape.
    """
    if noise.shape != x0.shape:
        raise ValueError(
            f"the noise is {list(noise.shape)} for latents {list(x0.shape)}. Draw one of the same "
            "shape."
        )
    sigma = _align(sigma, x0)
    return (1 - sigma) * x0 + sigma * noise


def to_x0(noisy: Tensor, velocity: Tensor, sigma: Tensor | float) -> Tensor:
    """Return ``x_0 = x_σ - σ v``, computed in float64 since both terms are large at high noise.

    Raises:
        ValueError: If the velocity is of another shape.
    """
    if velocity.shape != noisy.shape:
        raise ValueError(
            f"the velocity is {list(velocity.shape)} for noisy latents {list(noisy.shape)}. "
            "Let the transformer return one of the same shape."
        )
    sigma = _align(sigma, noisy)
    sigma = sigma.double() if isinstance(sigma, Tensor) else sigma
    return (noisy.double() - sigma * velocity.double()).to(noisy.dtype)


def _align(sigma: Tensor | float, like: Tensor) -> Tensor | float:
    if not isinstance(sigma, Tensor):
        return sigma
    return sigma.to(like.device).reshape(*sigma.shape, *[1] * (like.ndim - sigma.ndim))
