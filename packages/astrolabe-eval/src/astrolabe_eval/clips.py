"""Videos and pictures as data URIs, few and coarse enough for a page that can be sent."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from astrolabe_eval.comparison import Comparison
from astrolabe_eval.scoring import Evaluation
from astrolabe_eval.selection import Choice, choose
from astrolabe_eval.sheets import contact_sheet
from astrolabe_eval.video_io import encode_mp4

#: For each choice of prompts: the index of each with one data URI for each model.
Clips: TypeAlias = list[tuple[Choice, list[tuple[int, list[str]]]]]


@dataclass(frozen=True)
class Quality:
    """How many videos a report embeds, and how finely."""

    extremes: int
    random: int
    crf: int
    max_side: int | None


#: Tried in order until the videos fit.
QUALITIES: Final = (
    Quality(extremes=3, random=9, crf=18, max_side=None),
    Quality(extremes=3, random=9, crf=26, max_side=480),
    Quality(extremes=2, random=4, crf=30, max_side=384),
    Quality(extremes=1, random=2, crf=34, max_side=256),
)
_MIN_SIDE = 192  # pixels; smaller videos are enlarged, pixels kept square
_SHEET_ROWS = 8


def choose_clips(models: Sequence[Evaluation], comparison: Comparison, budget: int) -> Clips:
    """Choose and encode the videos of a report.

    Args:
        models: The base and what is compared with it.
        comparison: Of these models; decides which prompts are shown.
        budget: Characters that all data URIs may have together; the coarsest quality is used even
            if it does not fit.

    Returns:
        Nothing if a model has no videos.
    """
    if not _all_have_videos(models):
        return []
    for quality in QUALITIES:
        choices = choose(comparison, quality.extremes, quality.random)
        shown = {index for choice in choices for index in choice.indices}
        encoded = {index: [clip(model, index, quality) for model in models] for index in shown}
        clips = [
            (choice, [(index, encoded[index]) for index in choice.indices]) for choice in choices
        ]
        if sum(len(uri) for _, rows in clips for _, uris in rows for uri in uris) <= budget:
            break
    return clips


def choose_sheet(
    models: Mapping[str, Evaluation], comparison: Comparison
) -> tuple[Choice, str] | None:
    """Some prompts and their contact sheet as a data URI.

    Args:
        models: Label to evaluation; the first and the last are shown.
        comparison: Of these models.

    Returns:
        None if a model has no videos.
    """
    labels = list(models)
    shown = [models[label] for label in dict.fromkeys((labels[0], labels[-1]))]
    if not _all_have_videos(shown):
        return None
    choice = choose(comparison, extremes=0, random=_SHEET_ROWS)[0]
    picked = [[model.videos[index] for index in choice.indices] for model in shown]
    picture = contact_sheet(
        picked[0],
        [shown[0].suite.prompts[index] for index in choice.indices],
        after=picked[1] if len(picked) > 1 else None,
        labels=(labels[0], labels[-1]),
    )
    return choice, data_uri("image/png", picture)


def clip(model: Evaluation, index: int, quality: Quality) -> str:
    """One video as a data URI."""
    data = encode_mp4(
        model.videos[index],
        model.fps,
        min_side=_MIN_SIDE,
        max_side=quality.max_side,
        crf=quality.crf,
    )
    return data_uri("video/mp4", data)


def data_uri(kind: str, data: bytes) -> str:
    """A file as an address that holds all of it (RFC 2397)."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _all_have_videos(models: Sequence[Evaluation]) -> bool:
    return all(len(model.videos) > 0 for model in models)
