"""Which samples two models share: refuse what does not pair up, or keep what does."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import overload

from astrolabe_eval.errors import SuiteError
from astrolabe_eval.frames import Frames
from astrolabe_eval.scoring import Evaluation
from astrolabe_eval.suites import Suite

#: Prompts are cut in messages after so many characters.
_SHOWN = 60


def check_pairs(
    before: Evaluation, after: Evaluation, labels: tuple[str, str] = ("before", "after")
) -> None:
    """Refuse two evaluations that cannot be compared sample by sample.

    Args:
        before: The first model.
        after: The second.
        labels: What to call them in the message.

    Raises:
        SuiteError: If prompts, seeds, their order or the names of scores differ; the message says
            which and how many.
    """
    if (before.suite.prompts, before.suite.seeds) != (after.suite.prompts, after.suite.seeds):
        raise SuiteError(_what_differs(before, after, labels))
    _check_names("rewards", before.rewards, after.rewards, labels)
    _check_names("judges", before.judges, after.judges, labels)


def keep_shared(evaluations: Mapping[str, Evaluation]) -> dict[str, Evaluation]:
    """Reduce evaluations to the samples that all of them have.

    For evaluations of one suite some of whose videos are missing or broken. What is left out is
    added to ``missing`` of each, so that a report lists it.

    Args:
        evaluations: Label to evaluation, at least one.

    Returns:
        The same labels; samples in the order of the first evaluation.

    Raises:
        SuiteError: If no sample is shared, or a prompt occurs twice with the same seed.
    """
    places = {label: _places(label, evaluation.suite) for label, evaluation in evaluations.items()}
    first = next(iter(places.values()))
    shared = [key for key in first if all(key in place for place in places.values())]
    if not shared:
        raise SuiteError(
            f"{' and '.join(map(repr, evaluations))} have no prompt with the same seed in common. "
            "Generate them with one suite."
        )
    dropped = {
        f"{_cut(prompt)} (seed {seed})": f"not in {', '.join(map(repr, lacking))}"
        for prompt, seed in dict.fromkeys(key for place in places.values() for key in place)
        if (lacking := [label for label, place in places.items() if (prompt, seed) not in place])
    }
    return {
        label: _pick(evaluation, [places[label][key] for key in shared], dropped)
        for label, evaluation in evaluations.items()
    }


class _Picked(Sequence[Frames]):
    """Some entries of a sequence, read when they are asked for."""

    def __init__(self, source: Sequence[Frames], indices: Sequence[int]) -> None:
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Frames: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Frames]: ...
    def __getitem__(self, index: int | slice) -> Frames | Sequence[Frames]:
        if isinstance(index, slice):
            return _Picked(self.source, self.indices[index])
        return self.source[self.indices[index]]


def _pick(evaluation: Evaluation, indices: list[int], dropped: Mapping[str, str]) -> Evaluation:
    suite = evaluation.suite
    return replace(
        evaluation,
        suite=Suite(
            suite.name,
            tuple(suite.prompts[index] for index in indices),
            tuple(suite.seeds[index] for index in indices),
        ),
        rewards={name: row[indices] for name, row in evaluation.rewards.items()},
        judges={name: row[indices] for name, row in evaluation.judges.items()},
        videos=_Picked(evaluation.videos, indices) if len(evaluation.videos) else (),
        missing={**evaluation.missing, **dropped},
    )


def _places(label: str, suite: Suite) -> dict[tuple[str, int], int]:
    places = {key: index for index, key in enumerate(_keys(suite))}
    if len(places) != len(suite):
        prompt, seed = Counter(_keys(suite)).most_common(1)[0][0]
        raise SuiteError(
            f"{label!r} has {_cut(prompt)} with seed {seed} twice. Give each its own seed."
        )
    return places


def _keys(suite: Suite) -> list[tuple[str, int]]:
    return list(zip(suite.prompts, suite.seeds, strict=True))


def _check_names(
    kind: str,
    before: Mapping[str, object],
    after: Mapping[str, object],
    labels: tuple[str, str],
) -> None:
    if before.keys() != after.keys():
        only = [sorted(before.keys() - after.keys()), sorted(after.keys() - before.keys())]
        parts = " and ".join(
            f"{names} only in {label!r}" for names, label in zip(only, labels, strict=True) if names
        )
        raise SuiteError(
            f"{kind} of {labels[0]} are {sorted(before)} and of {labels[1]} {sorted(after)}: "
            f"{parts}. Score both models with the same scorers."
        )


def _what_differs(before: Evaluation, after: Evaluation, labels: tuple[str, str]) -> str:
    first, second = _keys(before.suite), _keys(after.suite)
    start = (
        f"{labels[0]} has {len(first)} samples of suite {before.suite.name!r}, {labels[1]} "
        f"{len(second)} of {after.suite.name!r}, and they are not the same prompts and seeds in "
        "the same order: "
    )
    if Counter(first) == Counter(second):
        moved = sum(one != other for one, other in zip(first, second, strict=True))
        return f"{start}{moved} samples stand elsewhere. Sort both alike."
    end = "Generate both with one suite."
    if before.missing or after.missing:
        end = "Some are listed as missing: keep_shared keeps those that both have."
    place = next(
        (
            index
            for index, (one, other) in enumerate(zip(first, second, strict=False))
            if one != other
        ),
        min(len(first), len(second)),
    )
    shown = " and ".join(
        f"{_cut(keys[place][0])} (seed {keys[place][1]}) in {label}"
        if place < len(keys)
        else f"nothing in {label}"
        for keys, label in ((first, labels[0]), (second, labels[1]))
    )
    counts = _counts(before.suite, after.suite, labels)
    return f"{start}{counts}. First, sample {place}: {shown}. {end}"


def _counts(before: Suite, after: Suite, labels: tuple[str, str]) -> str:
    """How many prompts occur on one side only; if none, how many samples."""
    kind, only = "prompts", _only(before.prompts, after.prompts)
    if not any(only):
        kind, only = "seeds of the same prompts", _only(_keys(before), _keys(after))
    return f"{only[0]} {kind} are only in {labels[0]}, {only[1]} only in {labels[1]}"


def _only(first: Iterable[object], second: Iterable[object]) -> tuple[int, int]:
    """How many entries the first has more than the second, and the second more than the first."""
    one, other = Counter(first), Counter(second)
    return (one - other).total(), (other - one).total()


def _cut(prompt: str) -> str:
    return repr(prompt if len(prompt) <= _SHOWN else f"{prompt[: _SHOWN - 1]}…")
