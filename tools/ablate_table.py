"""What the laboratory found: intervals, a table and a plot for each family.

Left out on purpose: any choice of what to show. Arms that failed or are not finished have a row.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from astrolabe_eval import bootstrap_interval

#: Scores of the table, in its order, with the decimals they need.
SCORES = {
    "total": 2,
    "sharpness_vq": 4,
    "flow_mq": 4,
    "tiny_ta": 4,
    "pixel_check": 4,
    "brightness": 4,
    "saturation": 4,
    "motion": 4,
}
#: Medians over the steps of a run, then means over seeds.
TRAINING = {
    "seconds": "seconds",
    "processor": "processor_seconds",
    "evaluation": "evaluation_seconds",
    "GiB": "peak_gib",
    "loss": "loss/policy",
    "KL": "policy/kl",
    "selected": "kl/selected_fraction",
    "gradient": "policy/gradient_norm",
    "zero std": "advantage/zero_std_fraction",
}


def interval(differences: ArrayLike, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of the mean over seeds and prompts, both of them drawn from many.

    All seeds share their prompts. The variance of the mean is that of the means of seeds plus that
    of the means of prompts; each counts with the square of Student's t for its own number, as in
    the modified large-sample intervals of Graybill and Wang ("Confidence intervals on nonnegative
    linear combinations of variances", 1980), so that few seeds that differ make it wide. One seed:
    :func:`bootstrap_interval` over the prompts, and it speaks of that run alone.

    Args:
        differences: ``[S, P]``, after minus before, of each seed and prompt.
        level: Share of intervals that hold the truth.

    Returns:
        Low and high end; minus and plus infinity if no two differ, or for one seed with few
        prompts.
    """
    values = np.asarray(differences, dtype=np.float64)
    seeds, prompts = values.shape
    if seeds == 1:
        return bootstrap_interval(values[0], level=level)
    reach = 0.0
    for axis, count in ((1, seeds), (0, prompts)):
        if count > 1:
            quantile = float(student.ppf((1 + level) / 2, count - 1))
            reach += quantile**2 * float(values.mean(axis=axis).var(ddof=1)) / count
    if reach <= np.finfo(np.float64).eps ** 2 * np.square(values).max():
        return -math.inf, math.inf
    mean = float(values.mean())
    return mean - math.sqrt(reach), mean + math.sqrt(reach)


def refuse_unscored(scores: Mapping[str, ArrayLike]) -> None:
    """Refuse scores with holes: all arms are compared on the same videos.

    Raises:
        ValueError: If one is NaN or infinite.
    """
    for name, row in scores.items():
        lost = int((~np.isfinite(np.asarray(row, dtype=np.float64))).sum())
        if lost:
            raise ValueError(
                f"{name} could not score {lost} of {np.size(row)} videos, and arms are compared on "
                "all of them. Look at these videos, or take the score out."
            )


def summarise(
    arms: Sequence[Any],  # Any: `Arm`, whose module is only on the path of a script
    results: Mapping[str, Mapping[int, dict[str, Any]]],
    errors: Mapping[str, Mapping[int, str]],
    before: Mapping[str, Sequence[float]],
) -> dict[str, dict[str, Any]]:
    """Everything that is known of each arm, as JSON can hold it.

    Args:
        arms: In the order of the table.
        results: By arm and seed, with ``scores`` and ``curves``.
        errors: By arm and seed, the last line of what went wrong.
        before: Scores of the untrained model by name, one for each prompt.
    """
    changes = {
        arm: {
            name: {
                seed: np.subtract(one["scores"][name], before[name]) for seed, one in runs.items()
            }
            for name in SCORES
        }
        for arm, runs in results.items()
        if runs
    }
    summary: dict[str, dict[str, Any]] = {}
    for arm in arms:
        runs = results.get(arm.name, {})
        entry: dict[str, Any] = {
            "what": arm.what,
            "changes": list(arm.changes),
            "recipes": list(arm.recipes),
            "baseline": arm.baseline,
            "seeds": sorted(runs),
            "errors": dict(errors.get(arm.name, {})),
        }
        if runs:
            mine, base = changes[arm.name], changes.get(arm.baseline)
            common = sorted(runs.keys() & results.get(arm.baseline, {}).keys())
            entry["change"] = {name: _estimate(mine[name], sorted(runs)) for name in SCORES}
            if base and common and arm.name != arm.baseline:
                # The same seed means the same prompts and first noise: seeds are paired too.
                entry["against_baseline"] = {
                    name: _estimate({s: mine[name][s] - base[name][s] for s in common}, common)
                    for name in SCORES
                }
            entry["training"] = {
                label: float(np.mean([_typical(one, key) for one in runs.values()]))
                for label, key in TRAINING.items()
            }
        summary[arm.name] = entry
    return summary


def _estimate(changes: Mapping[int, NDArray[np.float64]], seeds: Sequence[int]) -> dict[str, Any]:
    rows = np.stack([changes[seed] for seed in seeds])  # [S, P]
    ends = interval(rows)
    return {
        "mean": float(rows.mean()),
        "interval": list(ends) if np.isfinite(ends).all() else None,
        "of_seeds": [float(row.mean()) for row in rows],
    }


def _typical(run: Mapping[str, Any], key: str) -> float:
    if key in run:
        return float(run[key])
    values = [value for value in run["curves"].get(key, []) if value is not None]
    return float(np.median(values)) if values else math.nan


def table(summary: Mapping[str, Mapping[str, Any]], before: Mapping[str, Sequence[float]]) -> str:
    """Everything as Markdown: changes, changes against the baseline, and how training went."""
    start = ", ".join(f"{name} {np.mean(before[name]):.{d}f}" for name, d in SCORES.items())
    prompts = len(next(iter(before.values())))
    lines = [
        "# Laboratory",
        "",
        f"Changes on {prompts} held-out prompts with fixed noise; 95 % intervals over seeds "
        "and prompts (with one seed: over prompts alone). Total and judge are those of the "
        "default recipe in every row, whatever an arm was trained on. `*`: the interval leaves "
        "zero out.",
        "",
        f"Before: {start}.",
    ]
    for family in dict.fromkeys(name.partition("/")[0] for name in summary):
        rows = [name for name in summary if name.partition("/")[0] == family]
        lines += ["", f"## {family}", "", "After minus before", "", *_head("arm", "seeds", *SCORES)]
        lines += [_row(name, summary[name], "change") for name in rows]
        compared = [name for name in rows if "against_baseline" in summary[name]]
        if compared:
            lines += ["", "Minus the baseline", "", *_head("arm", "baseline", *SCORES)]
            lines += [_row(name, summary[name], "against_baseline") for name in compared]
        lines += ["", "Training", "", *_head("arm", *TRAINING, "what")]
        for name in rows:
            numbers = summary[name].get("training", {})
            cells = [f"{numbers[key]:.3g}" if key in numbers else "" for key in TRAINING]
            lines.append(f"| {name} | {' | '.join(cells)} | {summary[name]['what']} |")
        for name in rows:
            for seed, error in summary[name]["errors"].items():
                lines += ["", f"`{name}`, seed {seed}: {error}"]
    return "\n".join(lines) + "\n"


def _head(*cells: str) -> list[str]:
    return [f"| {' | '.join(cells)} |", f"|{' --- |' * len(cells)}"]


def _row(name: str, entry: Mapping[str, Any], kind: str) -> str:
    second = str(len(entry["seeds"])) if kind == "change" else entry["baseline"]
    found = entry.get(kind)
    cells = [_cell(found[score], digits) if found else "" for score, digits in SCORES.items()]
    return f"| {name} | {second} | {' | '.join(cells)} |"


def _cell(estimate: Mapping[str, Any], digits: int) -> str:
    if estimate["interval"] is None:
        return f"{estimate['mean']:+.{digits}f}"
    low, high = estimate["interval"]
    mark = "*" if low > 0 or high < 0 else ""
    return f"{estimate['mean']:+.{digits}f}{mark} [{low:+.{digits}f}, {high:+.{digits}f}]"


def plot(path: Path, names: Sequence[str], summary: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw the changes of some arms: a dot for each seed, a bar for the interval."""
    figure = Figure(
        figsize=(3 * len(SCORES) / 2, 2 * (0.8 + 0.3 * len(names))), layout="constrained"
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(SCORES) // 2, sharey=True, squeeze=False).ravel()
    for panel, score in zip(panels, SCORES, strict=True):
        for height, name in enumerate(names):
            estimate = summary[name]["change"][score]
            colour = "#57606a" if name == names[0] else "#1f6feb"
            ends = estimate["interval"] or [estimate["mean"]] * 2
            panel.plot(ends, [height] * 2, color=colour, linewidth=2.5, alpha=0.5)
            dots = estimate["of_seeds"]
            panel.plot(dots, [height] * len(dots), "o", color=colour, markersize=3.5)
            panel.plot(estimate["mean"], height, "|", color="black", markersize=11)
        panel.axvline(0, color="#8c959f", linewidth=0.8)
        panel.set_yticks(range(len(names)), names, fontsize=8)
        panel.tick_params(labelsize=7)
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.set_title(f"{score}, after - before", fontsize=8, loc="left")
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=130)
