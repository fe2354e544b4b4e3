"""Numbers as people hand them over: lists, arrays, tensors, and shares that are no percentages."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def as_row(name: str, values: Any) -> NDArray[np.float64]:  # Any: whatever holds numbers
    """Return one number for each sample.

    Args:
        name: What they are, for messages.
        values: ``[n]`` or ``[n, 1]``: a list, an array, or a tensor of any device and precision.

    Returns:
        float64 ``[n]``.

    Raises:
        TypeError: If they are no numbers.
        ValueError: If they are no row.

    Example:
        >>> as_row("scores", [[0.5], [1]])
        array([0.5, 1. ])
    """
    if hasattr(values, "detach"):  # a tensor: numpy knows neither its device nor bfloat16
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values
    try:
        row = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is no row of numbers ({error}). Give one for each.") from error
    if row.size and (row.dtype == bool or row.dtype.kind not in "iuf"):
        raise TypeError(f"{name} holds {row.dtype}, not numbers. Give one number for each.")
    if row.ndim == 2 and row.shape[1] == 1:
        row = row[:, 0]
    if row.ndim != 1:
        raise ValueError(f"{name} has shape {row.shape}. Give one number for each, in one row.")
    return row.astype(np.float64)


def precision(values: Any) -> float:  # Any: as above
    """Return the spacing near 1 of the precision in which numbers come; 0 of whole ones."""
    if hasattr(values, "detach"):
        import torch

        return float(torch.finfo(values.dtype).eps) if values.is_floating_point() else 0.0
    kind = np.asarray(values).dtype
    return float(np.finfo(kind).eps) if kind.kind == "f" else 0.0


def check_mapping(name: str, given: object, holds: str) -> None:
    """Refuse what does not give names.

    Args:
        name: What it is, for the message.
        given: To be a mapping.
        holds: What it is to have.

    Raises:
        TypeError: If it is none.

    Example:
        >>> check_mapping("scores", [1.0], "names with rows of numbers")
        Traceback (most recent call last):
        ...
        TypeError: scores is a list. Give a dictionary: names with rows of numbers.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"{name} is a {type(given).__name__}. Give a dictionary: {holds}.")


def check_share(name: str, value: float, *, ends: bool = False) -> None:
    """Refuse what is no share between 0 and 1, such as one in percent.

    Args:
        name: What it is, for the message.
        value: To be in (0, 1).
        ends: Whether 0 and 1 are in range too.

    Raises:
        ValueError: If it is not.

    Example:
        >>> check_share("level", 95)
        Traceback (most recent call last):
        ...
        ValueError: level is 95: it is a share in (0, 1), not in percent. Give 0.95.
    """
    if 0 < value < 1 or (ends and value in (0, 1)):
        return
    bounds = "[0, 1]" if ends else "(0, 1)"
    if 1 < value < 100:
        raise ValueError(
            f"{name} is {value}: it is a share in {bounds}, not in percent. Give {value / 100:g}."
        )
    raise ValueError(f"{name} is {value}: it is a share in {bounds}. Give one such as 0.95.")
