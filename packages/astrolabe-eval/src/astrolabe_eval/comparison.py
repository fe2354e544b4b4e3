"""Compare models sample by sample; the content of ``report.json``."""

import math
from collections.abc import Mapping
from typing import Literal, TypedDict

from astrolabe_eval.changes import LEVEL, Change, Versus, check_units, total_first, versus
from astrolabe_eval.grouping import members_of
from astrolabe_eval.pairing import check_pairs
from astrolabe_eval.rows import check_mapping
from astrolabe_eval.scoring import TOTAL, Evaluation


class Sample(TypedDict):
    """One prompt: its scores by name, and ``after - before``; all models' in ``checkpoints``.

    None where there is no score.
    """

    prompt: str
    seed: int
    before: dict[str, float | None]
    after: dict[str, float | None] | None
    difference: dict[str, float | None] | None
    checkpoints: dict[str, dict[str, float | None]]


class Comparison(Versus):
    """The shape of ``report.json``: the last model against the base, and all that they share.

    ``checkpoints`` has every model of :func:`compare_many`, and is empty for :func:`compare`.
    ``labels`` names the models, the base first. ``prompts`` counts samples, ``distinct_prompts``
    those with different texts. ``held_out`` names the scores that no model was trained on.
    ``missing`` has, for each model that lacks some, the names of samples and why; ``partial`` is
    true if there are any.
    """

    suite: str
    prompts: int
    distinct_prompts: int
    labels: list[str]
    paired: bool
    level: float
    held_out: list[str]
    partial: bool
    missing: dict[str, dict[str, str]]
    checkpoints: dict[str, Versus]
    samples: list[Sample]
    details: dict[str, str]


Verdict = Literal["rose", "fell", "no clear change"]


def compare(
    before: Evaluation,
    after: Evaluation | None = None,
    *,
    labels: tuple[str, str] = ("before", "after"),
    units: Mapping[str, float] | None = None,
) -> Comparison:
    """Mean scores of one model, or of two with the paired difference and its interval.

    Intervals are those of the mean of ``after - before`` at 95 % (:func:`bootstrap_interval`) with
    a fixed seed, so the same scores give the same file. Samples of one prompt count together.

    Args:
        before: The first model.
        after: The second, on the same suite, with the same scorers. None: only the first is
            described, and everything about a change is None or empty.
        labels: What to call the two.
        units: Score name to the unit of its normalised change, above 0; by default the standard
            deviation of the score over the samples of ``before``.

    Returns:
        A dict that JSON can hold: ``{"rewards": {"total": {"before", "after", "difference",
        "interval": [low, high], "prompts": n, "unscored": 0}, "<name>": ...}, "judges": same
        shape, "wins": {"<name>": {"rate", "interval", ...}}, "normalised": {"<name>": ...},
        "best", "worst", "held_out", "suite", "prompts": n, "paired", "level", "samples": [...],
        ...}``. With fewer than six independent
        prompts there is a difference but no interval (None).

    Raises:
        SuiteError: If prompts, seeds or score names differ between the two.
        TypeError: If one is no `Evaluation`.
        ValueError: If the labels are equal, or a unit is not above 0 or belongs to no score.
    """
    others = {} if after is None else {labels[1]: after}
    result = _compare(before, others, labels[0], units or {})
    result["checkpoints"] = {}
    for sample in result["samples"]:
        sample["checkpoints"] = {}
    return result


def compare_many(
    base: Evaluation,
    checkpoints: Mapping[str, Evaluation],
    *,
    base_label: str = "base",
    units: Mapping[str, float] | None = None,
) -> Comparison:
    """Compare several models with one base, each as :func:`compare` does.

    Every interval is that of one number alone: of twenty changes that are none, one seems to be.

    Args:
        base: What the others are compared with.
        checkpoints: Label to evaluation, in the order of the table; at least one.
        base_label: What to call the base.
        units: As in :func:`compare`.

    Returns:
        As :func:`compare` for the last checkpoint, with all of them under ``"checkpoints"``:
        ``{"step 10": {"rewards", "judges", "wins", "normalised", "best", "worst"}, ...}``.

    Raises:
        SuiteError: If prompts, seeds or score names of one differ from the base's.
        TypeError: If one is no `Evaluation`.
        ValueError: If there are no checkpoints, or as in :func:`compare`.
    """
    check_mapping("checkpoints", checkpoints, "labels with evaluations")
    if not checkpoints:
        raise ValueError("There are no checkpoints to compare. Give at least one.")
    return _compare(base, checkpoints, base_label, units or {})


def versions(comparison: Comparison) -> dict[str, Versus]:
    """Every model that was compared with the base, under its label; none for a single model."""
    if comparison["checkpoints"] or not comparison["paired"]:
        return comparison["checkpoints"]
    return {comparison["labels"][-1]: comparison}


def verdict(change: Change) -> Verdict:
    """What the interval says: it lies above zero, below zero, or holds it. None says nothing.

    >>> change = {"before": 1.0, "after": 1.5, "difference": 0.5, "prompts": 9, "unscored": 0}
    >>> verdict({**change, "interval": [0.2, 0.8]}), verdict({**change, "interval": None})
    ('rose', 'no clear change')
    """
    if change["interval"] is None:
        return "no clear change"
    low, high = change["interval"]
    if low > 0:
        return "rose"
    return "fell" if high < 0 else "no clear change"


def differences(comparison: Comparison) -> list[float]:
    """``after - before`` of the combined reward for each prompt, in the order of the suite.

    NaN where a model has no score; empty for a single model.
    """
    return [
        math.nan if (change := sample["difference"][TOTAL]) is None else change
        for sample in comparison["samples"]
        if sample["difference"]
    ]


def _compare(
    base: Evaluation,
    others: Mapping[str, Evaluation],
    base_label: str,
    units: Mapping[str, float],
) -> Comparison:
    """Every one of ``others`` against the base, the last one in front."""
    for label, model in [(base_label, base), *others.items()]:
        if not isinstance(model, Evaluation):
            raise TypeError(
                f"{label!r} is a {type(model).__name__}, no evaluation. Make one by "
                "evaluate_suite, Evaluation.from_folder or SuiteFolder.open(folder).evaluation()."
            )
    if base_label in others:
        raise ValueError(f"Two models are called {base_label!r}. Give each its own label.")
    check_units(units, base)
    for label, other in others.items():
        check_pairs(base, other, (base_label, label))
    models = {base_label: base, **others}
    missing = {label: dict(model.missing) for label, model in models.items() if model.missing}
    against = {label: versus(base, other, units) for label, other in others.items()}
    return {
        **(list(against.values())[-1] if against else versus(base, None, units)),
        "suite": base.suite.name,
        "prompts": len(base.suite),
        "distinct_prompts": int(members_of(base.suite.prompts).max()) + 1,
        "labels": list(models),
        "paired": bool(others),
        "level": LEVEL,
        "held_out": _held_out(base, others),
        "partial": bool(missing),
        "missing": missing,
        "checkpoints": against,
        "samples": _samples(base, others),
        "details": {},
    }


def _held_out(base: Evaluation, others: Mapping[str, Evaluation]) -> list[str]:
    # What trained the others decides; the base counts only where it stands alone.
    watched = [set(model.held_out) for model in others.values()] or [set(base.held_out)]
    return [*sorted(set.intersection(*watched)), *base.judges]


def _samples(base: Evaluation, others: Mapping[str, Evaluation]) -> list[Sample]:
    names = list(total_first(base.rewards | base.judges))
    old = base.rewards | base.judges
    new = {label: other.rewards | other.judges for label, other in others.items()}
    samples: list[Sample] = []
    for index, (prompt, seed) in enumerate(zip(base.suite.prompts, base.suite.seeds, strict=True)):
        before = {name: _known(old[name][index]) for name in names}
        models = {
            label: {name: _known(rows[name][index]) for name in names}
            for label, rows in new.items()
        }
        after = list(models.values())[-1] if models else None
        samples.append(
            Sample(
                prompt=prompt,
                seed=seed,
                before=before,
                after=after,
                difference=after and {name: _minus(after[name], before[name]) for name in names},
                checkpoints=models,
            )
        )
    return samples


def _known(score: float) -> float | None:
    return float(score) if math.isfinite(score) else None


def _minus(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before
