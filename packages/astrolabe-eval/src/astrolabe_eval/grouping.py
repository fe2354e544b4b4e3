"""Samples that share a prompt: what they say together, and how many prompts that is worth.

Videos of one prompt with several seeds resemble each other, so they are not independent draws from
"prompts like these". An interval that treats them as independent is too narrow.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def by_prompt(
    values: ArrayLike, prompts: Sequence[str] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and number of the samples of each distinct prompt, ``[K]`` each.

    Args:
        values: ``[n]``.
        prompts: The prompt of each; None: all differ.

    Returns:
        In the order of first occurrence.

    Example:
        >>> by_prompt([1.0, 3.0, 8.0], ["a", "a", "b"])
        (array([2., 8.]), array([2., 1.]))
    """
    samples = np.asarray(values, dtype=np.float64)
    if prompts is None:
        return samples, np.ones(len(samples))
    members = members_of(prompts)
    counts = np.bincount(members).astype(np.float64)
    return np.bincount(members, weights=samples) / counts, counts


def per_prompt(values: ArrayLike, prompts: Sequence[str]) -> NDArray[np.float64]:
    """One number for each distinct prompt, with the mean of all values.

    With ``m_i`` the mean of the ``n_i`` values of prompt ``i``, ``n`` the mean of all ``n_i`` and
    ``m`` the mean of all values, prompt ``i`` becomes ``m + (n_i / n) (m_i - m)``: the linearised
    ratio estimator (Cochran, "Sampling techniques", 3rd ed., 1977, sec. 9A.1), so that a
    bootstrap of these numbers resamples whole prompts.

    Args:
        values: ``[n]``.
        prompts: The prompt of each.

    Returns:
        ``[K]`` in the order of first occurrence; ``values`` themselves if no prompt repeats.

    Example:
        >>> per_prompt([1.0, 3.0, 8.0, 8.0], ["a", "a", "b", "b"])
        array([2., 8.])
    """
    samples = np.asarray(values, dtype=np.float64)
    means, counts = by_prompt(samples, prompts)
    if len(counts) == len(samples):
        return samples
    centre = samples.mean()
    grouped: NDArray[np.float64] = centre + counts / counts.mean() * (means - centre)
    return grouped


def effective_count(prompts: Sequence[str]) -> float:
    """How many independent prompts the samples are worth at least, ``n² / Σ n_i²`` (Kish).

    >>> effective_count(["a", "b", "c"]), effective_count(["a", "a", "b", "b"])
    (3.0, 2.0)
    """
    counts = np.bincount(members_of(prompts))
    return float(counts.sum() ** 2 / (counts**2).sum())


def independent(prompts: Sequence[str]) -> int:
    """The same as a whole number, rounded: what a verdict rests on; 0 of none.

    >>> independent(["a", "a", "b", "b", "c"]), independent(["a", "a", "a", "a", "b"])
    (3, 1)
    """
    return math.floor(effective_count(prompts) + 0.5) if len(prompts) else 0


def members_of(prompts: Sequence[str]) -> NDArray[np.int64]:
    """The number of each sample's prompt, counted by first occurrence.

    Letters' case and white space make no other prompt.

    >>> members_of(["b", "a", "B "])
    array([0, 1, 0])
    """
    numbers: dict[str, int] = {}
    alike = (" ".join(prompt.split()).casefold() for prompt in prompts)
    return np.array([numbers.setdefault(prompt, len(numbers)) for prompt in alike], dtype=np.int64)
