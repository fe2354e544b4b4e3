"""The figures of a report, in both themes, with words for those who cannot see them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from astrolabe_eval.clips import data_uri
from astrolabe_eval.comparison import Comparison, differences
from astrolabe_eval.plots import (
    Curve,
    Estimate,
    Theme,
    paired_differences,
    reward_curves,
    score_changes,
)
from astrolabe_eval.scoring import TOTAL
from astrolabe_eval.summary import Row


@dataclass(frozen=True)
class Picture:
    """One figure as data URIs, and what it shows in words."""

    words: str
    light: str
    dark: str

    def __len__(self) -> int:
        return len(self.light) + len(self.dark)


def draw_curve(name: str, curve: Curve) -> Picture:
    """One logged quantity over training."""
    known = [(step, value) for step, value in zip(*curve, strict=True) if value == value]
    words = f"Curve of {name}"
    if known:
        (first, start), (last, end) = known[0], known[-1]
        words += f": {start:.3g} at step {first:g}, {end:.3g} at step {last:g}"
    return _picture(words, lambda theme: reward_curves({name: curve}, theme=theme))


def draw_monitors(curves: Mapping[str, Curve]) -> Picture:
    """All that was only watched, in one figure."""
    words = f"Curves of {', '.join(curves)}"
    return _picture(words, lambda theme: reward_curves(curves, columns=3, theme=theme))


def draw_changes(rows: list[Row]) -> list[Picture]:
    """The normalised change of each score; nothing if there is none."""
    changes: dict[str, dict[str, Estimate]] = {}
    for row in rows:
        if row.normalised and row.normalised["difference"] is not None:
            estimate = row.normalised["difference"], row.normalised["interval"]
            changes.setdefault(row.name, {})[row.model] = estimate
    if not changes:
        return []
    words = "; ".join(
        f"{score}, {model}: {middle:+.2f}"
        + (f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else "")
        for score, models in changes.items()
        for model, (middle, interval) in models.items()
    )
    picture = _picture(
        f"Change of each score divided by its standard deviation: {words}",
        lambda theme: score_changes(changes, theme=theme),
    )
    return [picture]


def draw_differences(comparison: Comparison) -> list[Picture]:
    """The change of each prompt; nothing for a single model."""
    values = [change for change in differences(comparison) if math.isfinite(change)]
    if not values:
        return []
    interval = comparison["rewards"][TOTAL]["interval"]
    picture = _picture(
        f"Change of the total of {len(values)} samples in order, from {min(values):+.3f} to "
        f"{max(values):+.3f}; {sum(value > 0 for value in values)} rose",
        lambda theme: paired_differences(values, interval, theme=theme),
    )
    return [picture]


def _picture(words: str, draw: Callable[[Theme], bytes]) -> Picture:
    light, dark = (data_uri("image/svg+xml", draw(theme)) for theme in ("light", "dark"))
    return Picture(words, light=light, dark=dark)
