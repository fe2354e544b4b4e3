"""The flat files of VBench's leaderboard: a number for each dimension, a share or in percent."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from astrolabe_eval.errors import VBenchError

#: Follow from the dimensions; not read, since they are computed again.
_TOTALS: Final = frozenset({"total_score", "quality_score", "semantic_score"})


def shares_of(
    path: Path, content: Mapping[str, Any], known: Mapping[str, object]
) -> dict[str, float]:
    """Dimension to raw score, 0 to 1.

    Args:
        path: Of the file, for messages.
        content: Dimension to number, or to a text such as ``"96.1%"``.
        known: Names of the dimensions.

    Raises:
        VBenchError: If a name is no dimension, a value no number, or it cannot be told whether the
            numbers are in percent.

    Example:
        >>> shares_of(Path("a.json"), {"Scene": "50 %", "color": 90.0}, {"scene": 0, "color": 0})
        {'scene': 0.5, 'color': 0.9}
    """
    numbers: dict[str, float] = {}
    marked = False
    for key, value in content.items():
        name = "_".join(key.lower().replace("_", " ").split())
        if name in _TOTALS:
            continue
        if name not in known:
            raise VBenchError(
                f"{str(path)!r} has {key!r}, which is no dimension of VBench 1.0. Files of "
                "VBench-2.0 or VBench-I2V cannot be totalled here."
            )
        if name in numbers:
            raise VBenchError(f"{str(path)!r} has {name} twice. Remove one.")
        numbers[name] = _number(path, key, value)
        marked |= isinstance(value, str) and value.strip().endswith("%")
    outside = [name for name, value in numbers.items() if abs(value) > 100]
    above = [name for name, value in numbers.items() if abs(value) > 1]
    if outside:
        raise VBenchError(f"{str(path)!r}: {outside[0]} is {numbers[outside[0]]}, above 100 %.")
    if not above and not marked:
        return numbers
    below = next((name for name, value in numbers.items() if value and name not in above), None)
    if not marked and below is not None:  # 0 is the same either way
        raise VBenchError(
            f"{str(path)!r}: {above[0]} is {numbers[above[0]]} and {below} {numbers[below]}, so "
            "it cannot be told whether the numbers are in percent. Write all of them as shares."
        )
    return {name: value / 100 for name, value in numbers.items()}


def _number(path: Path, key: str, value: object) -> float:
    text = value.strip().removesuffix("%").strip() if isinstance(value, str) else value
    try:
        if isinstance(text, bool) or not isinstance(text, int | float | str):
            raise ValueError
        number = float(text)
        if not math.isfinite(number):
            raise ValueError
    except ValueError:
        raise VBenchError(
            f"{str(path)!r}: {key!r} is {value!r}, which is no number. Leave out what was not "
            "computed."
        ) from None
    return number
