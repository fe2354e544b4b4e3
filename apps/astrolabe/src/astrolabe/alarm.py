"""The alarm that a policy games its rewards: the trained reward rises, a held-out one falls.

Batch means jump with the prompts that were drawn, far more than training moves them in a step, and
in-batch deviations shrink as a policy collapses, so a single step is never judged, nor divided by
its own deviation. Instead the last steps are tested for a trend by ranks alone (Mann-Kendall), to
which prompts are noise of any distribution and outliers are harmless, and its size is the median
slope (Theil-Sen) in units of the window's median deviation inside groups.

Measured on series whose step noise is half a deviation inside groups, over 100 steps with the
defaults and a trained reward that rises: a held-out reward without a trend raises the alarm in 4 %
of runs, one that falls by 2 deviations in 83 %, by 5 in all; one that rises in none. Few prompts
make it dull: the 8 of the recipe `tiny` give noise of 0.7 (flow_mq) to 4.5 (sharpness_vq), and
under noise of 2.5 a fall by 8 deviations in 30 steps is found in 93 %, by 4 in 20 %.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import median
from typing import Any

import torch
from tensordict import TensorDictBase

from astrolabe.config import Guard
from astrolabe.errors import ConfigError
from astrolabe.monitors import groups_of, spread
from astrolabe_objectives.rounding import rounding, rounding_of


class HackingAlarm:
    """Watches the rewards of each step, and acts when they part.

    After an alarm the history is empty, so that each event is told once and what was done about it
    is judged by new steps alone.

    Args:
        guard: Settings.
        trained: Rewards that are trained on, to their weights.
        held_out: Rewards that are only watched; without any there is never an alarm.
        units: What a trained score is divided by before the sum, as the composite does; missing:
            its deviation inside groups, as running statistics would hide a rise.
        loss: Its ``kl_coeff`` is what ``raise_kl`` raises.

    Attributes:
        fired: Whether the last step raised the alarm.

    Raises:
        ConfigError: If the KL term is to be raised and the loss has none.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        trained: Mapping[str, float],
        held_out: Sequence[str],
        units: Mapping[str, float],
        loss: Any,  # any objective; those without a KL term lack kl_coeff
    ) -> None:
        if guard.action == "raise_kl" and not getattr(loss, "kl_coeff", 0.0) > 0:
            raise ConfigError(
                "guard.action is 'raise_kl', but the objective's kl_coeff is 0 or it has none. "
                "Set objective.options.kl_coeff above 0, or guard.action to 'warn' or 'stop'."
            )
        self.guard = guard
        self.trained, self.held_out, self.units = dict(trained), list(held_out), dict(units)
        self.loss = loss
        self.fired = False
        self._least = max(guard.window // 2, 5)
        #: Of each step, for each reward that was scored, its mean and its deviation inside groups.
        self.history: list[dict[str, list[float]]] = []

    def watch(self, batch: TensorDictBase) -> str:
        """Take in the scores of a step, ``[N, T]``, and act if they part.

        Returns:
            What to tell, empty if there is nothing.
        """
        self.fired = False
        if self.guard.action == "off" or not self.held_out:
            return ""
        groups = groups_of(batch)
        reading = {}
        for name in (*self.trained, *self.held_out):
            scores = batch["score", name].float().cpu().reshape(-1)
            known = scores[scores.isfinite()]
            blur = rounding_of(batch, ("score", name)).cpu()
            reading[name] = [float(known.mean()), spread(scores, groups, blur)]
        return self.take(reading)

    def take(self, reading: dict[str, list[float]]) -> str:
        """As `watch`, from the mean and the deviation inside groups of each reward."""
        self.fired = False
        known = {name: pair for name, pair in reading.items() if all(map(math.isfinite, pair))}
        if not known.keys() >= self.trained.keys():
            return ""  # a step in which a trained reward failed throughout says nothing
        self.history.append(known)
        del self.history[: -self.guard.window]
        if len(self.history) < self._least:
            return ""
        rise, certainty = trend(self._total())
        if not certainty >= self.guard.margin:
            return ""
        for name in self.held_out:
            values = [step[name][0] for step in self.history if name in step]
            if len(values) < self._least:
                continue
            change, certainty = trend(values)
            usual = self._usual_spread(name)
            if certainty <= -self.guard.margin and -change > self.guard.min_fall * usual:
                told = self._tell(rise, name, change, usual)
                self.history, self.fired = [], True
                return f"{told} {self._act()}"
        return ""

    def metrics(self) -> dict[str, float]:
        """Return ``guard/alarm``, 1 in the step that raised it, and ``guard/kl_coeff``."""
        coefficient = getattr(self.loss, "kl_coeff", None)
        known = {} if coefficient is None else {"guard/kl_coeff": float(coefficient)}
        return {"guard/alarm": float(self.fired), **known}

    def state_dict(self) -> dict[str, Any]:  # Any: lists and numbers
        """Return the history and the coefficient that may have been raised."""
        return {"history": self.history, "kl_coeff": getattr(self.loss, "kl_coeff", None)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.history = list(state["history"])
        if state["kl_coeff"] is not None:
            self.loss.kl_coeff = state["kl_coeff"]

    def _total(self) -> list[float]:
        """The trained reward of each step."""
        units = {
            name: self.units.get(name) or self._usual_spread(name) or 1.0 for name in self.trained
        }
        return [
            sum(weight * step[name][0] / units[name] for name, weight in self.trained.items())
            for step in self.history
        ]

    def _usual_spread(self, name: str) -> float:
        return median(step[name][1] for step in self.history if name in step)

    def _tell(self, rise: float, name: str, change: float, usual: float) -> str:
        size = f", {-change / usual:.1f} times what videos of one prompt differ by" if usual else ""
        return (
            f"ALARM: over the last {len(self.history)} steps the trained reward rose by {rise:.3g} "
            f"while the held-out {name!r} fell by {-change:.3g}{size}. The policy may be gaming "
            "its rewards: look at the newest samples."
        )

    def _act(self) -> str:
        """Do what the settings ask for, and say it."""
        if self.guard.action == "stop":
            return "The run stops, as guard.action says."
        if self.guard.action == "raise_kl":
            self.loss.kl_coeff *= self.guard.kl_factor
            return f"The KL coefficient is now {self.loss.kl_coeff:.3g}."
        return "If so, start anew with guard.action='raise_kl', or with other weights."


def trend(values: Sequence[float]) -> tuple[float, float]:
    """Change of a series from end to end, and how sure its direction is.

    The change is the median slope of all pairs times the length (Theil-Sen); the certainty is the
    Mann-Kendall statistic in standard deviations, of the sign of the trend. Values that differ by
    no more than the rounding of float32 are ties. These are not corrected for, which errs towards
    doubt.

    Example:
        >>> change, certainty = trend([0.0, 1.0, 2.0, 3.0, 4.0])
        >>> change, round(certainty, 2)
        (4.0, 2.2)
    """
    count = len(values)
    pairs = list(combinations(enumerate(values), 2))
    slopes = [(later - earlier) / (end - start) for (start, earlier), (end, later) in pairs]
    blurs = rounding(torch.tensor(values, dtype=torch.float32)).tolist()
    least = [max(pair) for pair in combinations(blurs, 2)]
    rising = sum(
        (later - earlier > blur) - (earlier - later > blur)
        for ((_, earlier), (_, later)), blur in zip(pairs, least, strict=True)
    )
    deviation = math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    sign = (rising > 0) - (rising < 0)
    return median(slopes) * (count - 1), (rising - sign) / deviation
