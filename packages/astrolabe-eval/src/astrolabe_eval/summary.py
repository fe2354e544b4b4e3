"""The rows of every table of scores, and the sentences that say how to read them."""

import math
from dataclasses import dataclass
from typing import Final

from astrolabe_eval.changes import Change, Normalised
from astrolabe_eval.comparison import Comparison, Verdict, verdict, versions
from astrolabe_eval.subsets import least_prompts
from astrolabe_eval.win_rates import WinRate

#: Marks scores that no model was trained on.
HELD_OUT: Final = "†"


@dataclass(frozen=True)
class Row:
    """One score of one model against the base; ``wins`` and ``normalised`` None for one alone."""

    score: str
    model: str
    judge: bool
    held_out: bool
    places: int
    change: Change
    verdict: Verdict
    wins: WinRate | None = None
    normalised: Normalised | None = None

    @property
    def name(self) -> str:
        """The score with its mark."""
        return f"{self.score} {HELD_OUT}" if self.held_out else self.score

    def number(self, value: float | None) -> str:
        """``value`` with as many decimals as this score needs; ``n/a`` if nothing was scored."""
        return "n/a" if value is None else f"{value:.{self.places}f}"

    def signed(self, value: float | None) -> str:
        """The same with its sign."""
        return "n/a" if value is None else f"{value:+.{self.places}f}"


def summarise(comparison: Comparison) -> list[Row]:
    """One row for each score and model: rewards before judges, the combined reward first.

    Args:
        comparison: Of one model or several.

    Returns:
        The rows, those of one score together, models in the order they were given.
    """
    models = versions(comparison) or {comparison["labels"][0]: comparison}
    rows: list[Row] = []
    for judge, names in ((False, comparison["rewards"]), (True, comparison["judges"])):
        for name in names:
            for label, model in models.items():
                change = (model["judges"] if judge else model["rewards"])[name]
                normalised = model["normalised"].get(name)
                rows.append(
                    Row(
                        score=name,
                        model=label,
                        judge=judge,
                        held_out=name in comparison["held_out"],
                        places=_places(normalised),
                        change=change,
                        verdict=verdict(change),
                        wins=model["wins"].get(name),
                        normalised=normalised,
                    )
                )
    return rows


def notes(comparison: Comparison) -> list[str]:
    """What a reader must know to trust the table, as sentences."""
    count, distinct = comparison["prompts"], comparison["distinct_prompts"]
    lines = [f"{count} samples of suite {comparison['suite']}, {distinct} distinct prompts."]
    if comparison["paired"]:
        percent = f"{100 * comparison['level']:.0f} %"
        lines += [
            "Every model got the same prompts with the same noise and is compared with "
            f"{comparison['labels'][0]} sample by sample.",
            f"Change: mean difference with its {percent} interval"
            + (", samples of one prompt taken together." if distinct < count else "."),
            "Prompts: how many independent ones the change rests on. With fewer than "
            f"{least_prompts(comparison['level'])} chance alone can move all of them the same way, "
            "and there is neither interval nor verdict.",
            f"Win rate: share of samples that score higher, ties half, with its {percent} Wilson "
            "interval.",
            _unit_note(comparison),
        ]
    lines += _unscored(comparison)
    if comparison["held_out"]:
        lines.append(f"{HELD_OUT} Held out: nothing was trained on this score.")
    if len(comparison["checkpoints"]) > 1:
        lines.append(
            "Each interval is that of one number alone: of twenty changes that are none, one seems "
            "to be some."
        )
    return lines


def _unscored(comparison: Comparison) -> list[str]:
    """Which scores rest on fewer samples than there are, and on how many fewer."""
    several = versions(comparison) or {"": comparison}
    lacking = [
        f"{name}{f' of {label}' if len(several) > 1 else ''}: {change['unscored']}"
        for label, model in several.items()
        for name, change in (model["rewards"] | model["judges"]).items()
        if change["unscored"]
    ]
    if not lacking:
        return []
    return [f"Samples without a score, left out: {', '.join(lacking)} of {comparison['prompts']}."]


def missing_in_words(comparison: Comparison) -> str:
    """How many samples each model lacks; empty if none does.

    >>> missing_in_words({"missing": {"before": {"a": "broken"}, "after": {}}})
    'Partial: 1 sample of before was left out or is not finished.'
    """
    parts = [
        f"{len(names)} sample{'s' if len(names) > 1 else ''} of {label}"
        for label, names in comparison["missing"].items()
        if names
    ]
    if not parts:
        return ""
    several = len(parts) > 1 or not parts[0].startswith("1 ")
    verbs = "were left out or are" if several else "was left out or is"
    return f"Partial: {' and '.join(parts)} {verbs} not finished."


def _unit_note(comparison: Comparison) -> str:
    given = [
        f"{name} {entry['unit']:g}"
        for name, entry in comparison["normalised"].items()
        if entry["given"]
    ]
    note = (
        f"Change / SD: divided by the standard deviation of {comparison['labels'][0]} over the "
        "samples"
    )
    return f"{note}, or by the unit given ({', '.join(given)})." if given else f"{note}."


def _places(normalised: Normalised | None) -> int:
    """Decimals that show a hundredth of the unit: 3 to 6."""
    if normalised is None or normalised["unit"] is None:
        return 3
    return min(max(3, 2 - math.floor(math.log10(normalised["unit"]))), 6)
