"""Figures of a report, as the bytes of an SVG or PNG file.

Figures are made from ``matplotlib.figure.Figure`` alone: ``pyplot`` keeps a global list of figures
and picks a window system, neither of which a library may do.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

#: Steps and values of one quantity over a training run, equally long.
Curve: TypeAlias = tuple[Sequence[float], Sequence[float]]
#: A change and the two ends of its interval, if it has one.
Estimate: TypeAlias = tuple[float, Sequence[float] | None]
Format = Literal["svg", "png"]
Theme = Literal["light", "dark"]


@dataclass(frozen=True)
class Colours:
    """Ink of one theme; the ground is transparent. Blue and orange differ for every eye."""

    text: str
    grid: str
    up: str
    down: str


COLOURS: Final[dict[Theme, Colours]] = {
    "light": Colours(text="#30363d", grid="#d8dee4", up="#1f6feb", down="#d9730d"),
    "dark": Colours(text="#c9d1d9", grid="#343b44", up="#58a6ff", down="#f0883e"),
}


def reward_curves(
    curves: Mapping[str, Curve],
    *,
    columns: int = 2,
    format: Format = "svg",
    theme: Theme = "light",
) -> bytes:
    """Draw quantities over training steps, one panel each.

    Every value is drawn faintly; the strong line is the mean of those around it, a tenth of the run
    to either side.

    Args:
        curves: Title of each panel to its steps and values; a line has a gap where a value is not
            finite.
        columns: Panels side by side.
        format: Of the returned file.
        theme: Dark or light ink, on a transparent ground.

    Returns:
        The file.

    Raises:
        ValueError: If there are no curves, or steps and values differ in length.
    """
    if not curves:
        raise ValueError("There are no curves to draw. Give at least one.")
    colours = COLOURS[theme]
    columns = min(columns, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = new_figure(4.4 * columns, 2.5 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, (title, curve) in zip(panels, curves.items(), strict=False):
        _draw_curve(panel, title, curve, colours)
    for panel in panels[len(curves) :]:
        panel.set_axis_off()
    return save(figure, format)


def paired_differences(
    differences: ArrayLike,
    interval: Sequence[float] | None,
    *,
    format: Format = "svg",
    theme: Theme = "light",
) -> bytes:
    """Draw the change of each video, smallest first, with the mean and its interval.

    Args:
        differences: ``[n]``, after minus before.
        interval: Low and high end of the mean difference, drawn as a band. None: no band.
        format: Of the returned file.
        theme: Dark or light ink, on a transparent ground.

    Returns:
        The file.

    Raises:
        ValueError: If there are no differences.
    """
    values = np.sort(np.asarray(differences, dtype=np.float64).ravel())
    if not len(values):
        raise ValueError("There are no differences to draw. Compare at least one prompt.")
    colours = COLOURS[theme]
    figure = new_figure(5.6, 2.9)
    panel = figure.subplots()
    fill = [colours.up if value >= 0 else colours.down for value in values]
    panel.bar(np.arange(1, len(values) + 1), values, width=0.85, color=fill)
    if interval is not None:
        panel.axhspan(interval[0], interval[1], color=colours.text, alpha=0.18, linewidth=0)
    panel.axhline(float(values.mean()), color=colours.text, linewidth=1.4, linestyle="--")
    panel.axhline(0, color=colours.text, linewidth=0.8)
    panel.set_xticks([])
    panel.set_xlabel("videos, from least to most improved")
    panel.set_ylabel("change of total reward")
    style(panel, colours)
    return save(figure, format)


def score_changes(
    changes: Mapping[str, Mapping[str, Estimate]],
    *,
    format: Format = "svg",
    theme: Theme = "light",
) -> bytes:
    """Draw the change of each score with its interval, one line for each model.

    Args:
        changes: Score to model to the change and its interval, each divided by the standard
            deviation of its score, so that they share one axis. The first score is at the top.
        format: Of the returned file.
        theme: Dark or light ink, on a transparent ground.

    Returns:
        The file. One model alone is coloured by what its interval says; several differ by colour
        and marker.

    Raises:
        ValueError: If there are no changes.
    """
    models = list(dict.fromkeys(label for models in changes.values() for label in models))
    if not models:
        raise ValueError("There are no changes to draw. Compare at least two models.")
    colours = COLOURS[theme]
    figure = new_figure(5.6, 0.8 + 0.2 * len(changes) * (len(models) + 0.6) + 0.2 * len(models))
    panel = figure.subplots()
    panel.axvline(0, color=colours.text, linewidth=0.8)
    for number, label in enumerate(models):
        for place, score in enumerate(changes):
            if label not in changes[score]:
                continue
            height = place + 0.8 * ((number + 0.5) / len(models) - 0.5)
            _draw_estimate(panel, changes[score][label], height, number, len(models), colours)
    panel.set_yticks(range(len(changes)), [name.replace("$", r"\$") for name in changes])
    panel.set_ylim(len(changes) - 0.5, -0.5)
    panel.set_xlabel("change / SD")
    style(panel, colours, grid="x")
    if len(models) > 1:
        _add_legend(panel, models, colours)
    return save(figure, format)


def smooth(values: NDArray[np.float64], reach: int) -> NDArray[np.float64]:
    """Mean over each value and up to ``reach`` neighbours to either side; NaN stays NaN.

    >>> smooth(np.array([0.0, 3.0, 0.0, 3.0]), 1)
    array([1.5, 1. , 2. , 1.5])
    >>> smooth(np.array([0.0, np.nan, 4.0, 2.0]), 1)
    array([ 0., nan,  3.,  3.])
    """
    known = np.isfinite(values)
    index = np.arange(len(values))
    first = np.maximum(index - reach, 0)
    last = np.minimum(index + reach + 1, len(values))
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    # Where a value is known, one at least is counted.
    shares = np.maximum(counts[last] - counts[first], 1)
    means: NDArray[np.float64] = np.where(known, (sums[last] - sums[first]) / shares, np.nan)
    return means


def _draw_curve(panel: Axes, title: str, curve: Curve, colours: Colours) -> None:
    steps = np.asarray(curve[0], dtype=np.float64)
    values = np.asarray(curve[1], dtype=np.float64)
    if steps.shape != values.shape:
        raise ValueError(
            f"Curve {title!r} has {steps.size} steps and {values.size} values. "
            "Give one value for each step."
        )
    known = np.isfinite(values)
    values = np.where(known, values, np.nan)  # the line is broken there
    panel.plot(steps, values, color=colours.up, alpha=0.35, linewidth=0.9)
    panel.plot(steps, smooth(values, int(known.sum()) // 10), color=colours.up, linewidth=1.8)
    beside = np.concatenate([[False], known, [False]])
    alone = known & ~beside[:-2] & ~beside[2:]  # between gaps a line of one point has no length
    panel.plot(steps[alone], values[alone], color=colours.up, linestyle="", marker=".")
    # A dollar sign would start a formula.
    panel.set_title(title.replace("$", r"\$"), fontsize=10, color=colours.text, loc="left")
    panel.set_xlabel("training step")
    panel.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    style(panel, colours)


def _draw_estimate(
    panel: Axes, estimate: Estimate, height: float, number: int, models: int, colours: Colours
) -> None:
    middle, interval = estimate
    low, high = interval or (middle, middle)
    colour = colours.up if low > 0 else colours.down if high < 0 else colours.text
    if models > 1:
        colour = _series(number, models, colours)
    panel.plot([low, high], [height, height], color=colour, linewidth=2, solid_capstyle="round")
    panel.plot([middle], [height], color=colour, marker=_marker(number), markersize=5)


def _add_legend(panel: Axes, models: Sequence[str], colours: Colours) -> None:
    for number, label in enumerate(models):
        panel.plot(
            [],
            [],
            color=_series(number, len(models), colours),
            marker=_marker(number),
            markersize=5,
            # A leading underscore would hide the entry, a dollar sign start a formula.
            label=f" {label}".replace("$", r"\$"),
        )
    panel.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3,
        frameon=False,
        fontsize=8.5,
        labelcolor=colours.text,
    )


def _series(number: int, count: int, colours: Colours) -> str:
    """A colour between orange and blue: checkpoints in order look ordered."""
    start, end = np.array(to_rgb(colours.down)), np.array(to_rgb(colours.up))
    return to_hex(start + (end - start) * number / max(1, count - 1))


def _marker(number: int) -> str:
    return "osD^vP"[number % 6]


def style(panel: Axes, colours: Colours, grid: Literal["x", "y"] = "y") -> None:
    """Give a panel the look of all: no frame, faint lines, small letters."""
    for side, spine in panel.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(colours.grid)
    panel.tick_params(colors=colours.text, labelsize=8, length=0)
    panel.xaxis.label.set(color=colours.text, fontsize=8.5)
    panel.yaxis.label.set(color=colours.text, fontsize=8.5)
    panel.grid(axis=grid, color=colours.grid, linewidth=0.7)
    panel.set_axisbelow(True)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches; the Agg canvas measures text, whatever the file."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, format: Format) -> bytes:
    """Return a figure as a file."""
    # The date is left out, so that the same numbers give the same picture.
    metadata = {"Date": None} if format == "svg" else {}
    file = io.BytesIO()
    figure.savefig(file, format=format, dpi=160, transparent=True, metadata=metadata)
    return file.getvalue()
