"""The file that keeps the scores of one sample, and what it says of the sample's video."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from astrolabe_eval.errors import DamageError
from astrolabe_eval.scoring import Evaluation
from astrolabe_eval.sealed import Content, seal

KINDS: Final = ("rewards", "judges")
_PLAIN: Final = {"prompt", "seed", *KINDS}


@dataclass(frozen=True)
class Row:
    """Scores of one sample, NaN where there is none.

    ``video`` is the digest of its video; None in a file of an earlier version, which had no seal.
    """

    rewards: dict[str, float]
    judges: dict[str, float]
    video: str | None

    @property
    def names(self) -> tuple[tuple[str, ...], ...]:
        """The names of the scores, of rewards and of judges."""
        return tuple(sorted(self.rewards)), tuple(sorted(self.judges))

    @property
    def whole(self) -> bool:
        """Whether no score is lacking."""
        return not any(math.isnan(v) for v in (*self.rewards.values(), *self.judges.values()))


def row_bytes(prompt: str, seed: int, result: Evaluation, folder: str, video: str) -> bytes:
    """Return the file of a sample.

    Args:
        prompt: Of the sample, like ``seed``.
        seed: Of its noise.
        result: Scores of this one sample.
        folder: Digest of the folder's manifest.
        video: Digest of the sample's video.
    """
    return seal(
        {
            "prompt": prompt,
            "seed": seed,
            "rewards": {name: _or_none(values[0]) for name, values in result.rewards.items()},
            "judges": {name: _or_none(values[0]) for name, values in result.judges.items()},
            "folder": folder,
            "video": video,
        }
    )


def read_row(content: Content, prompt: str, seed: int, folder: str, *, plain: bool) -> Row:
    """Read what `row_bytes` wrote, or a version before it.

    Args:
        content: Of the file.
        prompt: Of the sample that it is to belong to, like ``seed``.
        seed: Of its noise.
        folder: Digest of the manifest.
        plain: Whether the folder is of a version that sealed nothing.

    Raises:
        DamageError: If it belongs to something else, or holds no scores.
    """
    entries, sealed = content
    if not sealed and not plain:
        raise DamageError("has no seal, as all files of its folder have")
    belongs = entries.get("folder") == folder if sealed else entries.keys() == _PLAIN
    if not belongs or (entries.get("prompt"), entries.get("seed")) != (prompt, seed):
        raise DamageError("belongs to another sample or evaluation")
    rewards, judges = (_numbers(entries, kind) for kind in KINDS)
    return Row(rewards, judges, str(entries["video"]) if sealed else None)


def columns(rows: Sequence[Mapping[str, float]]) -> dict[str, NDArray[np.float64]]:
    """Return each score of some samples as float64 ``[n]``."""
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]}


def odd_rows(rows: Mapping[int, Row]) -> dict[int, str]:
    """Return the samples whose scores have other names than those of most, and what they are."""
    usual = Counter(row.names for row in rows.values()).most_common(1)
    odd = {}
    for index, row in rows.items():
        for kind, names, others in zip(KINDS, row.names, usual[0][0], strict=True):
            if names != others:
                odd[index] = f"its {kind} are {list(names)}, those of others {list(others)}"
    return odd


def _or_none(score: float) -> float | None:
    """A score as JSON can hold it."""
    return None if math.isnan(score) else float(score)


def _numbers(entries: Mapping[str, Any], kind: str) -> dict[str, float]:  # Any: what JSON holds
    """The scores of one kind; null, and the NaN of other writers, is NaN."""
    scores = entries.get(kind)
    if not isinstance(scores, dict):
        raise DamageError(f"has no {kind!r}")
    for name, score in scores.items():
        known = isinstance(score, int | float) and not isinstance(score, bool)
        if score is not None and not (known and not math.isinf(score)):
            raise DamageError(f"says that {name!r} is {score!r}, which is no finite number")
    return {name: math.nan if score is None else float(score) for name, score in scores.items()}
