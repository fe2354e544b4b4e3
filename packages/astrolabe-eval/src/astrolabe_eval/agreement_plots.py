"""Figures of how rewards agree, as the bytes of an SVG or PNG file."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from numpy.typing import ArrayLike

from astrolabe_eval.agreement import Pair, places
from astrolabe_eval.plots import COLOURS, Format, Theme, new_figure, save, style


def agreement_map(
    rewards: Sequence[str],
    pairs: Sequence[Pair],
    *,
    format: Format = "svg",
    theme: Theme = "light",
) -> bytes:
    """Draw Spearman's ρ of every pair of rewards: blue where they agree, orange where they oppose.

    Args:
        rewards: Names, in the order of rows and columns.
        pairs: From `agree`.
        format: Of the returned file.
        theme: Dark or light ink, on a transparent ground.

    Returns:
        The file.

    Raises:
        ValueError: If there are no pairs.
    """
    if not pairs:
        raise ValueError("There are no pairs to draw. Compare at least two rewards.")
    colours = COLOURS[theme]
    place = {name: index for index, name in enumerate(rewards)}
    values = np.full((len(rewards), len(rewards)), np.nan)
    for pair in pairs:
        value = np.nan if pair["spearman"] is None else pair["spearman"]
        row, column = place[pair["first"]], place[pair["second"]]
        values[row, column] = values[column, row] = value
    scale = LinearSegmentedColormap.from_list(
        "agreement", [colours.down, f"{colours.grid}20", colours.up]
    )
    figure = new_figure(1.6 + 0.8 * len(rewards), 1.0 + 0.62 * len(rewards))
    panel = figure.subplots()
    panel.imshow(values, cmap=scale, vmin=-1, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        text = "" if row == column else "n/a" if np.isnan(value) else f"{value:+.2f}"
        panel.text(column, row, text, ha="center", va="center", fontsize=9, color=colours.text)
    names = [name.replace("$", r"\$") for name in rewards]  # a dollar sign would start a formula
    panel.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
    panel.set_yticks(range(len(names)), names)
    style(panel, colours)
    panel.grid(visible=False)
    return save(figure, format)


def rank_scatter(
    scores: Mapping[str, ArrayLike],
    pairs: Sequence[Pair],
    marked: Sequence[int] = (),
    *,
    columns: int = 3,
    format: Format = "svg",
    theme: Theme = "light",
) -> bytes:
    """Draw the place of every video for two rewards, one panel for each pair.

    On the dashed line both agree. The marked videos are orange.

    Args:
        scores: Name to ``[n]``, NaN where there is none.
        pairs: From `agree`, those to draw.
        marked: Videos to tell apart, such as the disputed ones.
        columns: Panels side by side.
        format: Of the returned file.
        theme: Dark or light ink, on a transparent ground.

    Returns:
        The file.

    Raises:
        ValueError: If there are no pairs.
    """
    if not pairs:
        raise ValueError("There are no pairs to draw. Compare at least two rewards.")
    colours = COLOURS[theme]
    columns = min(columns, len(pairs))
    rows = math.ceil(len(pairs) / columns)
    figure = new_figure(3.0 * columns, 2.9 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, pair in zip(panels, pairs, strict=False):
        first, second = (
            np.asarray(scores[name], dtype=np.float64) for name in (pair["first"], pair["second"])
        )
        known = np.isfinite(first) & np.isfinite(second)
        special = np.isin(np.flatnonzero(known), np.asarray(marked, dtype=int))
        x, y = places(first[known]), places(second[known])
        panel.plot([0, 1], [0, 1], color=colours.grid, linewidth=1, linestyle="--")
        for chosen, ink in ((~special, colours.up), (special, colours.down)):
            panel.plot(x[chosen], y[chosen], ".", color=ink, markersize=6, alpha=0.75)
        panel.set_xlabel(f"place by {pair['first']}".replace("$", r"\$"))
        panel.set_ylabel(f"place by {pair['second']}".replace("$", r"\$"))
        panel.set_xlim(-0.04, 1.04)
        panel.set_ylim(-0.04, 1.04)
        style(panel, colours)
    for panel in panels[len(pairs) :]:
        panel.set_axis_off()
    return save(figure, format)
