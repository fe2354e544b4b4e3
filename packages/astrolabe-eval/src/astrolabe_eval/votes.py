"""Human votes: a page that shows two models blind, and the win rate in what it saves.

The page knows neither the names of the models nor which side is which. That is in the key, a
separate file that raters must not see.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import TypedDict

import numpy as np

from astrolabe_eval.changes import LEVEL
from astrolabe_eval.clips import QUALITIES, Quality, clip
from astrolabe_eval.errors import VoteError
from astrolabe_eval.files import check_place, write_atomic
from astrolabe_eval.pairing import check_pairs
from astrolabe_eval.report import page_template
from astrolabe_eval.scoring import Evaluation
from astrolabe_eval.sealed import seal
from astrolabe_eval.vote_files import (
    KEY_FORMAT,
    VOTES_FORMAT,
    Ballot,
    Choice,
    Key,
    Pair,
    read_ballot,
    read_key,
)
from astrolabe_eval.win_rates import WinRate, win_rate

#: Pairs encoded to estimate how large all would be.
_PROBES = 4


class Tally(WinRate):
    """How often the second model won, and the share of the left side where a side was chosen.

    A ``left_rate`` far from a half says that a rater did not look. None: there were only ties.
    """

    votes: int
    left_rate: float | None


class VoteResult(TypedDict):
    """What all raters said: ``pooled`` over all votes, and each rater alone."""

    labels: list[str]
    pairs: int
    level: float
    pooled: Tally
    raters: dict[str, Tally]


def write_votes(
    folder: str | Path,
    before: Evaluation,
    after: Evaluation,
    *,
    labels: tuple[str, str] = ("before", "after"),
    pairs: int | None = None,
    question: str = "Which video is better?",
    seed: int = 0,
    max_bytes: int = 50_000_000,
) -> tuple[Path, Path]:
    """Write ``folder/votes.html`` for raters, and ``folder/votes-key.json`` for whoever counts.

    Send the page only. It works from disk, keeps its progress in the browser, and saves a file of
    votes for :func:`read_votes`.

    Args:
        folder: Where both go; made if missing.
        before: The first model, with videos.
        after: The second, on the same suite.
        labels: What to call the two in the result.
        pairs: How many samples to show, drawn at random; None: all.
        question: What raters are asked.
        seed: Of the draw, the order and the sides, at least 0. Who knows it can tell the sides.
        max_bytes: The page's size to aim at; videos are coarser if need be, all of them alike.

    Returns:
        The paths of the page and of the key.

    Raises:
        OSError: If the folder cannot be written or the disk is full.
        SuiteError: If the two evaluations do not pair up.
        ValueError: If there are no videos, or ``pairs`` is out of range.
    """
    check_place(Path(folder) / "votes.html")
    check_pairs(before, after, labels)
    models = (before, after)
    if any(not len(model.videos) for model in models):
        raise ValueError("There are no videos to vote on. Keep them when evaluating.")
    count = len(before.suite)
    if pairs is not None and not 1 <= pairs <= count:
        raise ValueError(f"pairs is {pairs}. Take 1 to {count}, or None for all.")
    drawn = _draw(before, pairs, seed)
    quality = _choose_quality(models, drawn, max_bytes)
    shown = []
    for name, pair in drawn.items():
        clips = [clip(model, pair["sample"], quality) for model in models]
        shown.append((name, pair["prompt"], clips[::-1] if pair["after"] == "left" else clips))
    digest = hashlib.sha256(json.dumps(drawn).encode())
    for _, _, clips in shown:
        digest.update("".join(clips).encode())
    key = Key(
        format=KEY_FORMAT,
        page=digest.hexdigest()[:16],
        labels=list(labels),
        suite=before.suite.name,
        pairs=drawn,
    )
    page = page_template("votes.html.j2").render(
        page=key["page"], format=VOTES_FORMAT, question=question, pairs=shown, fps=before.fps
    )
    paths = Path(folder) / "votes.html", Path(folder) / "votes-key.json"
    # The key first: votes on a page without its key are worth nothing.
    write_atomic(paths[1], seal({**key}, indent=2))
    write_atomic(paths[0], page.encode())
    return paths


def read_votes(path: str | Path, key: str | Path) -> VoteResult:
    """Count the votes of all raters.

    Intervals are Wilson's (:func:`win_rates.win_rate`). All votes on one prompt, by several raters
    or with several seeds, count as one trial: a second rater is no second prompt.

    Args:
        path: A file that the page saved, or a folder with one from each rater (``*.json``; the
            key may lie there too).
        key: The ``votes-key.json`` of that page.

    Returns:
        The win rate of the second model against the first, ties half, for each rater and pooled.

    Raises:
        VoteError: If a file is missing or broken, belongs to another page, holds no votes, or two
            files are by one rater.
    """
    path, key = Path(path), Path(key)
    answers = read_key(key)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    ballots: dict[str, Ballot] = {}
    sources: dict[str, Path] = {}
    for file in files:
        if os.path.realpath(file) == os.path.realpath(key):
            continue
        ballot = read_ballot(file, answers)
        if ballot.rater in sources:
            raise VoteError(
                f"{str(sources[ballot.rater])!r} and {str(file)!r} are both by {ballot.rater!r}. "
                "Keep the later one, or rename the rater in one of them."
            )
        ballots[ballot.rater], sources[ballot.rater] = ballot, file
    if not ballots:
        raise VoteError(f"There are no votes in {str(path)!r}. Put the files of the raters there.")
    votes = {rater: list(ballot.votes.items()) for rater, ballot in ballots.items()}
    return {
        "labels": answers["labels"],
        "pairs": len(answers["pairs"]),
        "level": LEVEL,
        "pooled": _tally([vote for cast in votes.values() for vote in cast], answers),
        "raters": {rater: _tally(cast, answers) for rater, cast in votes.items()},
    }


def _draw(before: Evaluation, pairs: int | None, seed: int) -> dict[str, Pair]:
    """Which samples, in which order, on which sides."""
    generator = np.random.default_rng(seed)
    order = [int(index) for index in generator.permutation(len(before.suite))[:pairs]]
    swapped = generator.random(len(order)) < 0.5
    return {
        f"pair-{number}": Pair(
            sample=index,
            prompt=before.suite.prompts[index],
            seed=before.suite.seeds[index],
            after="left" if swap else "right",
        )
        for number, (index, swap) in enumerate(zip(order, swapped, strict=True), start=1)
    }


def _choose_quality(
    models: tuple[Evaluation, Evaluation], drawn: dict[str, Pair], budget: int
) -> Quality:
    """The finest quality at which all pairs should fit, judged by some of them."""
    probes = list(drawn.values())[:_PROBES]
    for quality in QUALITIES:
        size = sum(len(clip(model, pair["sample"], quality)) for pair in probes for model in models)
        if size / len(probes) * len(drawn) <= budget:
            break
    return quality


def _tally(votes: list[tuple[str, Choice]], key: Key) -> Tally:
    pairs = [key["pairs"][name] for name, _ in votes]
    outcomes = [
        0 if choice == "tie" else 1 if choice == pair["after"] else -1
        for (_, choice), pair in zip(votes, pairs, strict=True)
    ]
    sides = [choice == "left" for _, choice in votes if choice != "tie"]
    return {
        **win_rate(outcomes, [pair["prompt"] for pair in pairs], level=LEVEL),
        "votes": len(votes),
        "left_rate": sum(sides) / len(sides) if sides else None,
    }
