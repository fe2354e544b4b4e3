"""Write ``report.html``, one file that needs nothing else, and ``report.json``."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from astrolabe_eval.comparison import (
    LEVEL,
    Change,
    Comparison,
    Verdict,
    compare,
    differences,
    verdict,
)
from astrolabe_eval.files import write_atomic
from astrolabe_eval.plots import Curve, Theme, paired_differences, reward_curves
from astrolabe_eval.scoring import TOTAL, Evaluation
from astrolabe_eval.selection import Choice, choose
from astrolabe_eval.sheets import contact_sheet
from astrolabe_eval.video_io import encode_mp4


@dataclass(frozen=True)
class _Quality:
    """How many videos a report embeds, and how finely."""

    extremes: int
    random: int
    crf: int
    max_side: int | None


#: Tried in order until the videos fit.
_QUALITIES: Final = (
    _Quality(extremes=3, random=9, crf=18, max_side=None),
    _Quality(extremes=3, random=9, crf=26, max_side=480),
    _Quality(extremes=2, random=4, crf=30, max_side=384),
    _Quality(extremes=1, random=2, crf=34, max_side=256),
)
_MIN_SIDE = 192  # pixels; smaller videos are enlarged, pixels kept square
_SHEET_ROWS = 8


@dataclass(frozen=True)
class _Row:
    """One score in a table, with its interval in words (empty for a single model)."""

    name: str
    change: Change
    verdict: Verdict
    words: str


@dataclass(frozen=True)
class _Table:
    """Scores that belong together."""

    title: str
    note: str
    rows: list[_Row]


@dataclass(frozen=True)
class _Picture:
    """One figure in both themes, as data URIs."""

    title: str
    light: str
    dark: str


def write_report(
    folder: str | Path,
    before: Evaluation,
    after: Evaluation | None = None,
    *,
    title: str = "Evaluation",
    labels: tuple[str, str] = ("before", "after"),
    curves: Mapping[str, Curve] | None = None,
    monitors: Mapping[str, Curve] | None = None,
    details: Mapping[str, str] | None = None,
    max_bytes: int = 5_000_000,
) -> Comparison:
    """Compare two models, or describe one, in ``folder/report.html`` and ``folder/report.json``.

    The page holds everything it shows: it opens from a disk, an e-mail or a web server, and asks no
    other machine for anything. Which videos it shows is said in it (:func:`selection.choose`).

    Args:
        folder: Where both files go; made if missing. Older reports there are replaced.
        before: The first model.
        after: The second, on the same suite. None: a report of the first alone.
        title: Heading of the page.
        labels: What to call the two models, in few words.
        curves: Title to steps and values of what was logged in training.
        monitors: The same of figures that were only watched; one plot for all of them.
        details: More to know about the run, such as its settings, shown as a list and stored in
            ``report.json``.
        max_bytes: The page's size to aim at; fewer and coarser videos are embedded if need be.

    Returns:
        The content of ``report.json``, as :func:`compare` makes it, with ``details``.

    Raises:
        OSError: If the folder cannot be written or the disk is full.
        ValueError: If the two evaluations cannot be paired.
    """
    comparison = compare(before, after)
    comparison["details"] = dict(details or {})
    figures = [_curves({name: curve}, name) for name, curve in (curves or {}).items()]
    watched = [_curves(monitors, "Monitors", columns=3)] if monitors else []
    changes = _change_figure(comparison)
    sheet = _sheet(before, after, labels, comparison)
    spent = sum(len(figure.light) + len(figure.dark) for figure in [*figures, *watched, *changes])
    spent += len(sheet[1]) if sheet else 0
    clips = _clips(before, after, comparison, max_bytes - spent)
    template = _environment().get_template("report.html.j2")
    page = template.render(
        title=title,
        labels=labels,
        comparison=comparison,
        total=TOTAL,
        tables=_tables(comparison),
        headline=_headline(comparison),
        outcome=verdict(comparison["rewards"][TOTAL]),
        improved=sum(change > 0 for change in differences(comparison)),
        curves=figures,
        monitors=watched,
        changes=changes,
        clips=clips,
        sheet=sheet,
    )
    folder = Path(folder)
    write_atomic(folder / "report.html", page.encode())
    content = json.dumps(comparison, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(folder / "report.json", f"{content}\n".encode())
    return comparison


def interval_in_words(change: Change) -> str:
    """Say what the paired interval means, for a reader new to them.

    >>> interval_in_words({"before": 1.0, "after": 1.5, "difference": 0.5, "interval": [0.2, 0.8]})
    'Rose. On prompts like these the mean change is between +0.200 and +0.800 (95% confidence).'
    """
    if change["interval"] is None:
        return "One prompt alone says nothing about others."
    low, high = change["interval"]
    if low == high == 0:
        return "No prompt changed."
    verdicts = {
        "rose": "Rose.",
        "fell": "Fell.",
        "no clear change": "No clear change: the interval holds zero, so this may be chance.",
    }
    return (
        f"{verdicts[verdict(change)]} On prompts like these the mean change is between "
        f"{low:+.3f} and {high:+.3f} ({100 * LEVEL:.0f}% confidence)."
    )


def _headline(comparison: Comparison) -> str:
    """The result in one sentence."""
    change = comparison["rewards"][TOTAL]
    count = comparison["prompts"]
    prompts = f"{count} prompt{'s' if count > 1 else ''}"
    if change["difference"] is None:
        return f"The mean total reward over {prompts} is {change['before']:.3f}."
    return (
        f"Over {prompts} with the same noise, the mean total reward went from "
        f"{change['before']:.3f} to {change['after']:.3f} ({change['difference']:+.3f}). "
        f"{interval_in_words(change)}"
    )


def _tables(comparison: Comparison) -> list[_Table]:
    """The rewards and, if there are any, the judges."""
    tables = [
        _Table(
            "Rewards",
            "What training maximises: the total, and the scores it is made of. Larger is better.",
            _rows(comparison["rewards"]),
        )
    ]
    if comparison["judges"]:
        tables.append(
            _Table(
                "Independent judges",
                "Nothing was trained on these. If the rewards rise and a judge falls, the model "
                "learned to please the rewards rather than to do better.",
                _rows(comparison["judges"]),
            )
        )
    return tables


def _rows(changes: dict[str, Change]) -> list[_Row]:
    return [
        _Row(
            name,
            change,
            verdict(change),
            "" if change["difference"] is None else interval_in_words(change),
        )
        for name, change in changes.items()
    ]


def _curves(curves: Mapping[str, Curve], title: str, columns: int = 2) -> _Picture:
    def draw(theme: Theme) -> str:
        return _data_uri("image/svg+xml", reward_curves(curves, columns=columns, theme=theme))

    return _Picture(title, light=draw("light"), dark=draw("dark"))


def _change_figure(comparison: Comparison) -> list[_Picture]:
    """The plot of all paired differences; none for a single model."""
    values = differences(comparison)
    if not values:
        return []
    interval = comparison["rewards"][TOTAL]["interval"]

    def draw(theme: Theme) -> str:
        return _data_uri("image/svg+xml", paired_differences(values, interval, theme=theme))

    return [_Picture("Change of each prompt", light=draw("light"), dark=draw("dark"))]


def _sheet(
    before: Evaluation, after: Evaluation | None, labels: tuple[str, str], comparison: Comparison
) -> tuple[Choice, str] | None:
    """Some prompts and their contact sheet as a data URI; None without pictures."""
    if not _have_videos(before, after):
        return None
    choice = choose(comparison, extremes=0, random=_SHEET_ROWS)[0]
    picture = contact_sheet(
        [before.videos[index] for index in choice.indices],
        [before.suite.prompts[index] for index in choice.indices],
        after=None if after is None else [after.videos[index] for index in choice.indices],
        labels=labels,
    )
    return choice, _data_uri("image/png", picture)


def _clips(
    before: Evaluation, after: Evaluation | None, comparison: Comparison, budget: int
) -> list[tuple[Choice, list[tuple[int, list[str]]]]]:
    """For each choice, its prompts' indices with the videos as data URIs, within ``budget``."""
    if not _have_videos(before, after):
        return []
    models = [before] if after is None else [before, after]
    for quality in _QUALITIES:
        choices = choose(comparison, quality.extremes, quality.random)
        shown = {index for choice in choices for index in choice.indices}
        encoded = {index: [_clip(model, index, quality) for model in models] for index in shown}
        clips = [
            (choice, [(index, encoded[index]) for index in choice.indices]) for choice in choices
        ]
        if sum(len(uri) for _, rows in clips for _, uris in rows for uri in uris) <= budget:
            break
    return clips


def _clip(model: Evaluation, index: int, quality: _Quality) -> str:
    data = encode_mp4(
        model.videos[index],
        model.fps,
        min_side=_MIN_SIDE,
        max_side=quality.max_side,
        crf=quality.crf,
    )
    return _data_uri("video/mp4", data)


def _have_videos(before: Evaluation, after: Evaluation | None) -> bool:
    return len(before.videos) > 0 and (after is None or len(after.videos) > 0)


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _environment() -> Environment:
    # Prompts are anyone's text: escape all of it, and fail on a misspelt name in the template.
    return Environment(
        loader=PackageLoader("astrolabe_eval"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
