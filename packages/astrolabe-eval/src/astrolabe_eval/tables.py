"""A comparison as Markdown, LaTeX and CSV."""

import csv
import io
import re
from collections.abc import Callable, Sequence
from typing import Final

from astrolabe_eval.comparison import Comparison
from astrolabe_eval.summary import HELD_OUT, Row, missing_in_words, notes, summarise

_LATEX: Final = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # At the start of a row it would be taken for the optional argument of the line break before.
    "[": "{[}",
    "]": "{]}",
    HELD_OUT: r"\textsuperscript{\dag}",
}
#: Spreadsheets skip blanks before a formula, and some read a full-width sign as the plain one.
_FORMULA: Final = re.compile(r"[\t\r\n]|\s*[=+\-@＝＋－＠]")  # noqa: RUF001
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def markdown_table(comparison: Comparison, *, title: str = "") -> str:
    """The scores as a table in GitHub's Markdown, with notes on how to read it.

    Args:
        comparison: Of one model or several.
        title: A heading; empty: none.

    Returns:
        Text that ends with a line feed; changes whose interval excludes zero are bold.
    """
    rows = summarise(comparison)
    heads, cells = _cells(comparison, rows, lambda text: f"**{text}**", _escape_markdown)
    lines = [f"## {_escape_markdown(title)}", ""] if title else []
    if comparison["partial"]:
        lines += [f"**{_escape_markdown(missing_in_words(comparison))}**", ""]
    words = _word_columns(comparison)
    lines.append(f"| {' | '.join(heads)} |")
    lines.append(f"| {' | '.join(['---'] * words + ['---:'] * (len(heads) - words))} |")
    lines += [f"| {' | '.join(row)} |" for row in cells]
    lines += ["", *(f"{_escape_markdown(note)}  " for note in notes(comparison))]
    return "\n".join(lines).rstrip() + "\n"


def latex_table(comparison: Comparison, *, title: str = "", label: str = "tab:scores") -> str:
    r"""The scores as a floating table for a paper; needs the package ``booktabs``.

    Args:
        comparison: Of one model or several.
        title: First words of the caption, plain text.
        label: For ``\ref``; letters, digits and ``:.-`` only.

    Returns:
        A ``table`` environment; changes whose interval excludes zero are bold.

    Raises:
        ValueError: If ``label`` has other characters.
    """
    if not re.fullmatch(r"[A-Za-z0-9:.-]+", label):
        raise ValueError(f"label is {label!r}. Use letters, digits, colons, dots and hyphens.")
    rows = summarise(comparison)
    heads, cells = _cells(comparison, rows, lambda text: rf"\textbf{{{text}}}", escape_latex)
    words = _word_columns(comparison)
    body: list[str] = []
    for index, (row, line) in enumerate(zip(rows, cells, strict=True)):
        # A hyphen between digits would be printed as one.
        numbers = [cell.replace("-", r"\textminus{}") for cell in line[words:]]
        line = [*line[:words], *numbers]
        if index and row.score == rows[index - 1].score:
            line = ["", *line[1:]]
        elif index and len(comparison["checkpoints"]) > 1:
            body.append(r"\addlinespace")
        body.append(" & ".join(line) + r" \\")
    caption = [f"{title.rstrip('.')}."] if title else []
    caption += [missing_in_words(comparison)] if comparison["partial"] else []
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape_latex(' '.join([*caption, *notes(comparison)]))}}}",
            rf"\label{{{label}}}",
            rf"\begin{{tabular}}{{{'l' * words}{'r' * (len(heads) - words)}}}",
            r"\toprule",
            " & ".join(heads) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def csv_table(comparison: Comparison) -> str:
    """Every score of every video, one line for each video.

    Args:
        comparison: Of one model or several.

    Returns:
        Lines ``model,sample,prompt,seed,<score>,...`` (RFC 4180, but ended by a line feed alone),
        numbers with all their digits, nothing where there is no score. ``sample`` counts from 0 in
        the order of the suite. Texts are as `csv_cell` makes them.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    samples = comparison["samples"]
    names = list(samples[0]["before"])
    writer.writerow(["model", "sample", "prompt", "seed", *map(csv_cell, names)])
    for label in comparison["labels"]:
        for index, sample in enumerate(samples):
            first = label == comparison["labels"][0]
            scores = (
                sample["before"] if first else sample["checkpoints"].get(label, sample["after"])
            )
            assert scores is not None
            numbers = ["" if scores[name] is None else repr(scores[name]) for name in names]
            prompt = csv_cell(sample["prompt"])
            writer.writerow([csv_cell(label), index, prompt, sample["seed"], *numbers])
    return file.getvalue()


def csv_cell(text: str) -> str:
    """Text that no spreadsheet takes for a formula: one that could be is put after an apostrophe.

    >>> [csv_cell(text) for text in ("a cat", "-0.5", "=1+1", "- a cat")]
    ['a cat', '-0.5', "'=1+1", "'- a cat"]
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def csv_text(cell: str) -> str:
    """The text of which `csv_cell` made a cell.

    >>> csv_text(csv_cell("=1+1")), csv_text("'tis a cat")
    ('=1+1', "'tis a cat")
    """
    return cell[1:] if cell[:1] == "'" and csv_cell(cell[1:]) == cell else cell


def escape_latex(text: str) -> str:
    r"""Plain text as LaTeX that prints it, on one line.

    >>> escape_latex("50 % of a_b & {c}")
    '50 \\% of a\\_b \\& \\{c\\}'
    """
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


def _escape_markdown(text: str) -> str:
    """Plain text that Markdown shows as it is, on one line, also inside a table."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", " ".join(text.split()))


def _word_columns(comparison: Comparison) -> int:
    """How many columns at the left hold words: the score, and the model if there are several."""
    return 2 if len(comparison["checkpoints"]) > 1 else 1


def _cells(
    comparison: Comparison,
    rows: Sequence[Row],
    bold: Callable[[str], str],
    escape: Callable[[str], str],
) -> tuple[list[str], list[list[str]]]:
    """Headings and cells, all of them escaped."""
    if not comparison["paired"]:
        return ["score", "mean"], [
            [escape(row.name), row.number(row.change["before"])] for row in rows
        ]
    several = len(comparison["checkpoints"]) > 1
    labels = comparison["labels"]
    percent = f"{100 * comparison['level']:.0f} %"
    heads = [
        "score",
        *(["model", labels[0], "mean"] if several else [labels[0], labels[-1]]),
        f"change [{percent}]",
        "prompts",
        f"win rate [{percent}]",
        "change / SD",
    ]
    return [escape(head) for head in heads], [
        [escape(row.name), *([escape(row.model)] if several else []), *_numbers(row, bold)]
        for row in rows
    ]


def _numbers(row: Row, bold: Callable[[str], str]) -> list[str]:
    """Base, mean, change, independent prompts, win rate and normalised change."""
    change, wins, normalised = row.change, row.wins, row.normalised
    assert wins is not None
    assert normalised is not None
    difference = row.signed(change["difference"])
    if change["interval"] is not None:
        ends = ", ".join(row.signed(end) for end in change["interval"])
        difference = f"{difference} [{ends}]"
    low, high = wins["interval"]
    return [
        row.number(change["before"]),
        row.number(change["after"]),
        difference if row.verdict == "no clear change" else bold(difference),
        str(change["prompts"]),
        "n/a" if wins["rate"] is None else f"{wins['rate']:.2f} [{low:.2f}, {high:.2f}]",
        "n/a" if normalised["difference"] is None else f"{normalised['difference']:+.2f}",
    ]
