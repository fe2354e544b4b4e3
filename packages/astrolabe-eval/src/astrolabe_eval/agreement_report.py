"""Write ``agreement.html``, one file that needs nothing else, and ``agreement.json``."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypedDict

import numpy as np
from numpy.typing import ArrayLike

from astrolabe_eval.agreement import LEAST, Agreement, Disputed, Pair, agree
from astrolabe_eval.agreement_plots import agreement_map, rank_scatter
from astrolabe_eval.changes import LEVEL
from astrolabe_eval.clips import data_uri
from astrolabe_eval.figures import Picture
from astrolabe_eval.files import check_place, write_atomic
from astrolabe_eval.plots import Theme
from astrolabe_eval.report import page_template
from astrolabe_eval.subsets import least_prompts
from astrolabe_eval.video_io import Video, encode_mp4

#: Videos shown, crf and longest side; tried in order until the page is small enough.
_QUALITIES: Final = ((8, 24, 480), (8, 30, 320), (4, 34, 256))
_MIN_SIDE: Final = 192  # pixels; smaller videos are enlarged, pixels kept square
_PANELS: Final = 12


class Sample(TypedDict):
    """One video and its scores, None where there is none."""

    name: str
    prompt: str
    scores: dict[str, float | None]


class AgreementReport(Agreement):
    """The shape of ``agreement.json``."""

    samples: list[Sample]
    details: dict[str, str]


def write_agreement(
    folder: str | Path,
    scores: Mapping[str, ArrayLike],
    names: Sequence[str],
    *,
    prompts: Sequence[str] | None = None,
    read: Callable[[int], Video] | None = None,
    title: str = "Agreement of rewards",
    details: Mapping[str, str] | None = None,
    max_bytes: int = 5_000_000,
) -> AgreementReport:
    """Compare rewards by how they order the same videos, in a page and as JSON.

    The page shows all rank correlations with their intervals, a map of them, the places of all
    videos for the pairs that agree least, and the videos that rewards dispute most, which play.

    Args:
        folder: Where both files go; made if missing. Older ones there are replaced.
        scores: Name to ``[n]``, larger is better; NaN where a reward has no score.
        names: What to call each video, such as its file name.
        prompts: What each should show.
        read: Returns the video of a number, for the disputed ones. None: a page without videos.
        title: Heading of the page.
        details: More to know, shown as a list and stored in ``agreement.json``.
        max_bytes: The page's size to aim at; fewer and coarser videos are embedded if need be.

    Returns:
        The content of ``agreement.json``.

    Raises:
        OSError: If the folder cannot be written or the disk is full.
        ValueError: As in :func:`agree`, or if there is not one name (and prompt) for each video.
        VideoError: If ``read`` cannot read a video.
    """
    check_place(Path(folder) / "agreement.html")
    count = max(np.size(row) for row in scores.values()) if scores else 0
    texts = [""] * count if prompts is None else prompts
    if not len(names) == len(texts) == count:
        raise ValueError(
            f"{count} videos have {len(names)} names and {len(texts)} prompts. "
            "Give one of each for each video."
        )
    # A video without a prompt resembles no other by its prompt.
    apart = [text or f"video {index}" for index, text in enumerate(texts)]
    result = agree(scores, prompts=apart, disputed=_QUALITIES[0][0])
    report: AgreementReport = {
        **result,
        "samples": _samples(scores, names, texts),
        "details": dict(details or {}),
    }
    figures = _figures(scores, result)
    spent = sum(len(figure) for figure in figures)
    page = page_template("agreement.html.j2").render(
        title=title,
        report=report,
        headline=_headline(result),
        words=[(pair, _in_words(pair)) for pair in result["pairs"]],
        left_out=max(0, len(result["pairs"]) - _PANELS),
        figures=figures,
        clips=_clips(result["disputed"], read, max_bytes - spent),
    )
    folder = Path(folder)
    write_atomic(folder / "agreement.html", page.encode())
    content = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(folder / "agreement.json", f"{content}\n".encode())
    return report


def _samples(
    scores: Mapping[str, ArrayLike], names: Sequence[str], prompts: Sequence[str]
) -> list[Sample]:
    rows = {name: np.asarray(row, dtype=np.float64).tolist() for name, row in scores.items()}
    return [
        {
            "name": name,
            "prompt": prompt,
            "scores": {
                reward: row[index] if math.isfinite(row[index]) else None
                for reward, row in rows.items()
            },
        }
        for index, (name, prompt) in enumerate(zip(names, prompts, strict=True))
    ]


def _headline(result: Agreement) -> str:
    """The result in a sentence or two."""
    known = [pair for pair in result["pairs"] if pair["spearman"] is not None]
    if not known:
        return "No two of these rewards vary over the same videos, so none can be compared."
    ends = [known[0]] if len(known) == 1 else [known[0], known[-1]]
    words = " Least: ".join(
        f"{pair['first']} and {pair['second']} (rank correlation {pair['spearman']:+.2f})."
        for pair in ends
    )
    lead = "Two rewards" if len(result["rewards"]) == 2 else f"{len(result['rewards'])} rewards"
    most = "Their agreement" if len(ends) == 1 else "The two that agree most"
    return f"{lead} ordered {result['videos']} videos. {most}: {words}"


def _in_words(pair: Pair) -> str:
    """What a correlation and its interval mean, for a reader new to them.

    >>> pair = {"first": "a", "second": "b", "videos": 9, "prompts": 9}
    >>> pair = {**pair, "spearman": 0.1, "kendall": 0.1}
    >>> _in_words({**pair, "spearman_interval": [-0.4, 0.6], "kendall_interval": [-0.3, 0.5]})
    'No clear relation: the interval holds zero.'
    """
    if pair["videos"] < LEAST:
        return "Too few videos have both scores."
    if pair["spearman"] is None:
        return "One of the two does not vary over the videos that both scored."
    if pair["spearman_interval"] is None:
        return (
            f"No verdict: {pair['prompts']} independent prompts are too few. "
            f"Use {least_prompts(LEVEL)} or more."
        )
    low, high = pair["spearman_interval"]
    if low > 0:
        return "They agree: what one ranks high, the other tends to rank high."
    if high < 0:
        return "They oppose each other: what one ranks high, the other tends to rank low."
    return "No clear relation: the interval holds zero."


def _figures(scores: Mapping[str, ArrayLike], result: Agreement) -> list[Picture]:
    """The map of correlations, and the places of all videos for the pairs that agree least."""
    known = [pair for pair in result["pairs"] if pair["spearman"] is not None]
    words = "; ".join(f"{p['first']} and {p['second']}: {p['spearman']:+.2f}" for p in known)
    figures = [
        _picture(
            f"Rank correlations: {words}",
            lambda theme: agreement_map(result["rewards"], result["pairs"], theme=theme),
        )
    ]
    if known:
        shown = known[::-1][:_PANELS]
        marked = [video["video"] for video in result["disputed"]]
        figures.append(
            _picture(
                "The place of every video for two rewards, for "
                + ", ".join(f"{pair['first']} and {pair['second']}" for pair in shown),
                lambda theme: rank_scatter(scores, shown, marked, theme=theme),
            )
        )
    return figures


def _picture(words: str, draw: Callable[[Theme], bytes]) -> Picture:
    light, dark = (data_uri("image/svg+xml", draw(theme)) for theme in ("light", "dark"))
    return Picture(words, light=light, dark=dark)


def _clips(
    disputed: Sequence[Disputed], read: Callable[[int], Video] | None, budget: int
) -> list[tuple[Disputed, str, float]]:
    """The disputed videos as data URIs with their frame rates, within ``budget`` if possible."""
    if read is None:
        return []
    videos = [(entry, read(entry["video"])) for entry in disputed]
    for count, crf, side in _QUALITIES:
        clips = [(entry, _encoded(video, crf, side), video.fps) for entry, video in videos[:count]]
        if sum(len(uri) for _, uri, _ in clips) <= budget:
            break
    return clips


def _encoded(video: Video, crf: int, side: int) -> str:
    data = encode_mp4(video.frames, video.fps, min_side=_MIN_SIDE, max_side=side, crf=crf)
    return data_uri("video/mp4", data)
