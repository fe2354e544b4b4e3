"""One term of a sum of rewards: its weight, its scores with their rounding, what it cost."""

import math
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from astrolabe_rewards.declared import check_made
from astrolabe_rewards.normalisation import nearest
from astrolabe_rewards.rounding import rounding

if sys.platform != "win32":
    import resource


def beside(scores: Tensor, said: Tensor | None, shape: torch.Size) -> Tensor:
    """Scores and their rounding in float32, ``[*shape, 2]``."""
    blur = rounding(scores, scores.dtype)
    if said is not None:
        blur = torch.maximum(blur, said.to(blur).reshape(blur.shape))
    both = torch.stack([scores.to(torch.float32), blur.to(scores.device, torch.float32)], dim=-1)
    return both.reshape(*shape, 2)


def blur_of(normal: Tensor, blur: Tensor) -> Tensor:
    """By how much equal terms of the sum may differ, the rounding of the sum itself included."""
    return torch.maximum(blur, rounding(normal, normal.dtype))


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value outside a closed set."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}.{nearest(value, choices)} Choose from: {choices}.")


def named_terms(rewards: Any) -> dict[str, tuple[Any, float]]:  # Any: a user may give anything
    """Return the terms of a sum by name: reward and weight.

    Raises:
        TypeError: If it is no mapping of names, or a reward is a class.
        ValueError: If there are none, a name cannot be used, or an entry is no pair of something
            to call and a finite number.
        RewardError: If a module's constructor does not call that of its base.
    """
    example = "{'sharpness_vq': (SharpnessVQ(), 1.0)}"
    if not isinstance(rewards, Mapping):
        raise TypeError(
            f"CompositeReward: rewards are a {type(rewards).__name__}. Give names with pairs of "
            f"reward and weight: {example}."
        )
    if not rewards:
        raise ValueError(f"CompositeReward got no rewards. Give at least one: {example}.")
    for name in rewards:
        if not isinstance(name, str) or not name or "." in name:
            raise ValueError(
                f"CompositeReward: a reward is called {name!r}. Give it a name without a dot."
            )
    return {name: _term(name, entry) for name, entry in rewards.items()}


def _term(name: str, entry: Any) -> tuple[Any, float]:
    if not isinstance(entry, (tuple, list)) or len(entry) != 2 or not callable(entry[0]):
        raise ValueError(
            f"rewards[{name!r}] is {entry!r}, not a pair of reward and weight. Write (reward, 1.0)."
        )
    reward, weight = entry
    if isinstance(reward, type):
        raise TypeError(
            f"rewards[{name!r}] is the class {reward.__name__}. Make one: {reward.__name__}()."
        )
    check_made(reward)
    if hasattr(weight, "ndim") and weight.ndim == 0:  # a number of torch or numpy
        weight = weight.item()
    if (
        isinstance(weight, bool)
        or not isinstance(weight, (int, float))
        or not math.isfinite(weight)
    ):
        raise ValueError(f"the weight of {name!r} is {weight!r}. Give a finite number such as 1.0.")
    return reward, float(weight)


def peak_memory() -> int:
    """Largest memory use so far, bytes: of all CUDA devices if there are any, else resident."""
    if torch.cuda.is_available():
        return sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
    if sys.platform == "win32":
        return 0
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
