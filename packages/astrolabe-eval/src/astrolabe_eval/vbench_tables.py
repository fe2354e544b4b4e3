"""VBench totals as a table for a page or a paper."""

from collections.abc import Mapping

from astrolabe_eval.tables import escape_latex
from astrolabe_eval.vbench import DIMENSIONS, Totals

_HEADS = ("model", "Total", "Quality", "Semantic")


def totals_markdown(models: Mapping[str, Totals]) -> str:
    """One row for each model in GitHub's Markdown, percent with two decimals as in papers.

    Args:
        models: Label to totals.

    Returns:
        Text that ends with a line feed. A score that cannot be had is ``n/a``; below the table
        stands which dimensions are missing.
    """
    lines = [f"| {' | '.join(_HEADS)} |", "| --- | ---: | ---: | ---: |"]
    for label, scores in models.items():
        cells = [" ".join(label.split()).replace("|", r"\|"), *_cells(scores)]
        lines.append(f"| {' | '.join(cells)} |")
    notes = [f"Partial: {note}." for note in _missing(models)]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def totals_latex(models: Mapping[str, Totals]) -> str:
    r"""The rows between ``\midrule`` and ``\bottomrule``: label, total, quality, semantic.

    Args:
        models: Label to totals.

    Returns:
        Text that ends with a line feed; comments at the end say which dimensions are missing.
    """
    rows = [
        " & ".join([escape_latex(label), *_cells(scores)]).replace(" -", r" \textminus{}") + r" \\"
        for label, scores in models.items()
    ]
    return "\n".join([*rows, *(f"% partial: {note}" for note in _missing(models))]) + "\n"


def _cells(scores: Totals) -> list[str]:
    return [
        "n/a" if value is None else f"{100 * value:.2f}"
        for value in (scores.total, scores.quality, scores.semantic)
    ]


def _missing(models: Mapping[str, Totals]) -> list[str]:
    return [
        f"{' '.join(label.split())} lacks {len(scores.missing)} of {len(DIMENSIONS)} dimensions "
        f"({', '.join(scores.missing)})"
        for label, scores in models.items()
        if scores.partial
    ]
