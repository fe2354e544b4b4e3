"""Write ``report.html``, one file that needs nothing else, and its numbers in four more formats."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from astrolabe_eval.changes import LEVEL, Change
from astrolabe_eval.clips import choose_clips, choose_sheet, data_uri
from astrolabe_eval.comparison import (
    Comparison,
    compare,
    compare_many,
    differences,
    verdict,
    versions,
)
from astrolabe_eval.figures import draw_changes, draw_curve, draw_differences, draw_monitors
from astrolabe_eval.files import check_place, write_atomic
from astrolabe_eval.plots import Curve
from astrolabe_eval.rows import check_mapping
from astrolabe_eval.scoring import TOTAL, Evaluation
from astrolabe_eval.subsets import least_prompts
from astrolabe_eval.summary import HELD_OUT, Row, missing_in_words, notes, summarise
from astrolabe_eval.tables import csv_table, latex_table, markdown_table

#: Formats of the numbers: ending of the file to its media type.
_KINDS: Final = {
    "json": "application/json",
    "csv": "text/csv",
    "md": "text/markdown",
    "tex": "application/x-tex",
}


@dataclass(frozen=True)
class _Table:
    """Scores that belong together."""

    title: str
    note: str
    rows: list[Row]


@dataclass(frozen=True)
class _Download:
    """A file that the page holds."""

    name: str
    size: int
    uri: str


def write_report(
    folder: str | Path,
    before: Evaluation,
    after: Evaluation | Mapping[str, Evaluation] | None = None,
    *,
    title: str = "Evaluation",
    labels: tuple[str, str] = ("before", "after"),
    units: Mapping[str, float] | None = None,
    curves: Mapping[str, Curve] | None = None,
    monitors: Mapping[str, Curve] | None = None,
    details: Mapping[str, str] | None = None,
    max_bytes: int = 5_000_000,
) -> Comparison:
    """Compare models, or describe one, in ``folder/report.html``.

    The page holds everything it shows: it opens from a disk, an e-mail or a web server, and asks no
    other machine for anything. Which videos it shows is said in it (:func:`selection.choose`). The
    numbers are in it for download, and stand beside it: ``report.json`` (all), ``report.csv``
    (every score of every video), ``report.md`` and ``report.tex`` (tables for a text).

    Args:
        folder: Where the files go; made if missing. Older reports there are replaced.
        before: The first model, or the base.
        after: The second, on the same suite; or several checkpoints by their labels, of which
            the last one is described in full. None: a report of the first alone.
        title: Heading of the page.
        labels: What to call the two models, in few words; the first one names the base of several.
        units: Score name to the unit of its normalised change, as in :func:`compare`.
        curves: Title to steps and values of what was logged in training.
        monitors: The same of figures that were only watched; one plot for all of them.
        details: More to know about the run, such as its settings, shown as a list and stored in
            ``report.json``.
        max_bytes: The page's size to aim at; fewer and coarser videos are embedded if need be.

    Returns:
        The content of ``report.json``, as :func:`compare` or :func:`compare_many` makes it, with
        ``details``.

    Raises:
        OSError: If the folder cannot be written or the disk is full.
        SuiteError: If the evaluations cannot be paired.
        ValueError: As in :func:`compare`.
    """
    check_place(Path(folder) / "report.html")
    models = {labels[0]: before}
    if after is None or isinstance(after, Evaluation):
        comparison = compare(before, after, labels=labels, units=units)
        models |= {} if after is None else {labels[1]: after}
    else:
        check_mapping("after", after, "labels with evaluations")
        comparison = compare_many(before, after, base_label=labels[0], units=units)
        models |= after
    comparison["details"] = dict(details or {})
    rows = summarise(comparison)
    figures = {
        "curves": [draw_curve(name, curve) for name, curve in (curves or {}).items()],
        "monitors": [draw_monitors(monitors)] if monitors else [],
        "scores": draw_changes(rows),
        "changes": draw_differences(comparison),
    }
    files = _files(comparison, title)
    downloads = [_Download(name, len(data), _uri(name, data)) for name, data in files.items()]
    sheet = choose_sheet(models, comparison)
    spent = sum(len(picture) for pictures in figures.values() for picture in pictures)
    spent += sum(len(download.uri) for download in downloads) + (len(sheet[1]) if sheet else 0)
    page = page_template("report.html.j2").render(
        title=title,
        comparison=comparison,
        total=TOTAL,
        models=versions(comparison),
        partial=missing_in_words(comparison),
        tables=_tables(rows),
        in_words=interval_in_words,
        headline=_headline(comparison),
        outcome=verdict(comparison["rewards"][TOTAL]),
        changes=[change for change in differences(comparison) if not math.isnan(change)],
        figures=figures,
        downloads=downloads,
        clips=choose_clips(list(models.values()), comparison, max_bytes - spent),
        fps=before.fps,
        sheet=sheet,
        notes=notes(comparison),
    )
    for name, data in {**files, "report.html": page.encode()}.items():
        write_atomic(Path(folder) / name, data)
    return comparison


def interval_in_words(change: Change, places: int = 3) -> str:
    """Say what the paired interval means, for a reader new to them.

    >>> change = {"before": 1.0, "after": 1.5, "difference": 0.5, "prompts": 9, "unscored": 0}
    >>> interval_in_words({**change, "interval": [0.2, 0.8]})[:65]
    'Rose. On prompts like these the mean change is between +0.200 and'
    >>> interval_in_words({**change, "interval": None, "prompts": 3})
    'No verdict: 3 independent prompts are too few to tell a change from chance. Use 6 or more.'
    """
    count, least = change["prompts"], least_prompts(LEVEL)
    if change["difference"] is None:
        return "No verdict: no sample has this score."
    if change["interval"] is None:
        if count < least:
            few = "1 independent prompt is" if count == 1 else f"{count} independent prompts are"
            return f"No verdict: {few} too few to tell a change from chance. Use {least} or more."
        if change["difference"] == 0:
            return "No prompt changed."
        return "No verdict: all prompts changed by the same amount, which says nothing of others."
    low, high = change["interval"]
    verdicts = {
        "rose": "Rose.",
        "fell": "Fell.",
        "no clear change": "No clear change: the interval holds zero, so this may be chance.",
    }
    return (
        f"{verdicts[verdict(change)]} On prompts like these the mean change is between "
        f"{low:+.{places}f} and {high:+.{places}f} ({100 * LEVEL:.0f}% confidence from {count} "
        "independent prompts)."
    )


def page_template(name: str) -> Template:
    """A page of this package; every text put into it is escaped."""
    # Prompts are anyone's text: escape all of it, and fail on a misspelt name in the template.
    environment = Environment(
        loader=PackageLoader("astrolabe_eval"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _headline(comparison: Comparison) -> str:
    """The result in one sentence."""
    change = comparison["rewards"][TOTAL]
    count, distinct = comparison["prompts"], comparison["distinct_prompts"]
    prompts = f"{distinct} prompt{'s' if distinct > 1 else ''}"
    if count != distinct:
        prompts = f"{count} videos of {prompts}"
    if change["unscored"]:
        prompts += f" ({change['unscored']} of the videos without a score)"
    if change["before"] is None:
        return "No video has a total reward."
    if change["after"] is None or change["difference"] is None:
        return f"The mean total reward over {prompts} is {change['before']:.3f}."
    return (
        f"Over {prompts} with the same noise, the mean total reward went from "
        f"{change['before']:.3f} to {change['after']:.3f} ({change['difference']:+.3f}). "
        f"{interval_in_words(change)}"
    )


def _tables(rows: list[Row]) -> list[_Table]:
    """The rewards and, if there are any, the judges."""
    watched = any(row.held_out and not row.judge for row in rows)
    tables = [
        _Table(
            "Rewards",
            "What training maximises: the total, and the scores it is made of. Larger is better."
            + (f" Those with {HELD_OUT} were only watched." if watched else ""),
            [row for row in rows if not row.judge],
        ),
        _Table(
            "Independent judges",
            "Nothing was trained on these. If the rewards rise and a judge falls, the model "
            "learned to please the rewards rather than to do better.",
            [row for row in rows if row.judge],
        ),
    ]
    return [table for table in tables if table.rows]


def _files(comparison: Comparison, title: str) -> dict[str, bytes]:
    """The numbers in every format, by file name."""
    content = json.dumps(comparison, indent=2, ensure_ascii=False, allow_nan=False)
    texts = {
        "json": f"{content}\n",
        "csv": csv_table(comparison),
        "md": markdown_table(comparison, title=title),
        "tex": latex_table(comparison, title=title),
    }
    return {f"report.{ending}": text.encode() for ending, text in texts.items()}


def _uri(name: str, data: bytes) -> str:
    return data_uri(_KINDS[name.rpartition(".")[2]], data)
