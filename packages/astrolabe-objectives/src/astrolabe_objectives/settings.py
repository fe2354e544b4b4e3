"""What a setting has to be: a number in its range, a whole one, a switch, one of a list, a key."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from torch.distributed import ProcessGroup


def number(
    owner: str,
    name: str,
    value: Any,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
) -> None:
    """Refuse what is no finite number in ``[least, most]`` and above ``above``.

    Raises:
        TypeError: If it is no number; a bool is none.
        ValueError: If it is not finite, or outside.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        wanted = _range(least, above, most)
        raise TypeError(f"{owner} got {name}={value!r}. Give a number, {wanted}.")
    if not (math.isfinite(value) and above < float(value) and least <= float(value) <= most):
        raise ValueError(f"{owner} got {name}={value!r}. Give {_range(least, above, most)}.")


def whole(owner: str, name: str, value: Any, *, least: int) -> None:
    """Refuse what is no whole number of ``least`` or more.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If it is below.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{owner} got {name}={value!r}. Give a whole number, {least} or more.")
    if value < least:
        raise ValueError(f"{owner} got {name}={value!r}. Give {least} or more.")


def switch(owner: str, name: str, value: Any) -> None:
    """Refuse what is neither True nor False.

    Raises:
        TypeError: If so: a word such as ``"no"`` would count as True.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{owner} got {name}={value!r}. Give True or False.")


def choice(owner: str, name: str, value: Any, known: Sequence[str]) -> None:
    """Refuse what is not one of the known words.

    Raises:
        ValueError: If so.
    """
    if value not in known:
        raise ValueError(f"{owner} got {name}={value!r}. Choose from {tuple(known)}.")


def keys(owner: str, **values: Any) -> None:
    """Refuse what cannot be the key of an entry of a TensorDict, by the name of its setting.

    Raises:
        TypeError: If one is neither text nor a tuple of texts.
    """
    for name, value in values.items():
        parts = value if isinstance(value, tuple) and value else (value,)
        if not all(isinstance(part, str) for part in parts):
            raise TypeError(
                f"{owner} got {name}={value!r}. Give the key of an entry, text such as "
                "'advantage' or a tuple such as ('score', 'hpsv3')."
            )


def rules(owner: str, **values: Any) -> None:
    """Refuse what cannot be called, by the name of its setting.

    Raises:
        TypeError: If so.
    """
    for name, value in values.items():
        if not callable(value):
            raise TypeError(f"{owner} got {name}={value!r}. Give a rule, such as OldDecay().")


def ranks(owner: str, value: Any) -> None:
    """Refuse what is neither a process group nor None.

    Raises:
        TypeError: If so.
    """
    if value is not None and not isinstance(value, ProcessGroup):
        raise TypeError(
            f"{owner} got process_group={value!r}. Give what torch.distributed.new_group returned, "
            "or None."
        )


def _range(least: float, above: float, most: float) -> str:
    if math.isfinite(most):
        return f"{least:g} to {most:g}"
    if math.isfinite(least):
        return f"{least:g} or more"
    return f"more than {above:g}" if math.isfinite(above) else "a finite one"
