"""Several rewards as one: the weighted sum that reinforcement learning maximises."""

import difflib
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from astrolabe_rewards.keys import FPS, PIXELS, REWARD, SCORE, TEXT, VALID
from astrolabe_rewards.reward import Reward, check_pixels

Scorer = Callable[[TensorDictBase], TensorDictBase]

_log = logging.getLogger(__name__)
_STD_FLOOR = 1e-4  # a term that never varies must not be blown up


class CompositeReward(TensorDictModuleBase):
    """Weighted sum of rewards, ``R = Σ_k w_k · n_k(score_k)``.

    Reads ``("video","pixels")``, ``("video","fps")``, ``("prompt","text")``; writes ``("score",
    name)`` of every term (raw), ``("next","valid")`` and ``("next","reward")``. ``n_k`` is the
    identity, a fixed ``(score - mean) / std``, or the same with mean and std of all valid scores
    seen in training mode so far, the present batch included.

    Args:
        rewards: Name to (reward, weight). A reward is a ``Reward``, or any callable that takes a
            TensorDict and writes ``("score", name)`` into it, float ``[*B]`` or ``[*B, 1]``.
        normalise: How scores of different units are brought to one scale before they are summed.
        statistics: Name to (mean, std) of every term; for ``normalise="fixed"`` only.
        on_error: ``"raise"`` stops at a failing or non-finite score. ``"invalid"`` scores the batch
            again, one video at a time, and marks those that fail: their failed score is NaN, their
            reward 0, their ``("next","valid")`` false.

    Attributes:
        seconds: Name to wall seconds of the last call.

    Raises:
        ValueError: If there are no rewards, a weight is not a finite number, or ``statistics`` does
            not fit.
    """

    def __init__(
        self,
        rewards: Mapping[str, tuple[Scorer, float]],
        *,
        normalise: Literal["none", "fixed", "running"] = "none",
        statistics: Mapping[str, tuple[float, float]] | None = None,
        on_error: Literal["raise", "invalid"] = "raise",
    ) -> None:
        super().__init__()
        if not rewards:
            raise ValueError(
                "CompositeReward got no rewards. Give at least one: "
                "{'sharpness_vq': (SharpnessVQ(), 1.0)}."
            )
        _one_of("normalise", normalise, ("none", "fixed", "running"))
        _one_of("on_error", on_error, ("raise", "invalid"))
        self.weights = {name: _weight(name, entry) for name, entry in rewards.items()}
        self.rewards: dict[str, Scorer] = {name: entry[0] for name, entry in rewards.items()}
        #: The terms that are modules, so that ``.to`` and ``.state_dict`` reach them.
        self.terms = nn.ModuleDict(
            {name: term for name, term in self.rewards.items() if isinstance(term, nn.Module)}
        )
        self.normalise = normalise
        self.statistics = _checked_statistics(normalise, statistics, list(rewards))
        self.on_error = on_error
        self.seconds = dict.fromkeys(rewards, 0.0)
        self.in_keys = [PIXELS, FPS, TEXT]
        self.out_keys = [*((SCORE, name) for name in rewards), VALID, REWARD]
        # Count, mean and sum of squared deviations of each term (Welford), for "running".
        self.register_buffer("moments", torch.zeros(len(rewards), 3, dtype=torch.float64))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Score a batch of any shape and sum the scores up: `score`, then `combine`."""
        return self.combine(self.score(tensordict))

    def score(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``("score", name)`` of every term. Large batches may be scored part by part.

        Raises:
            KeyError: If pixels are missing, or a term does not write its key.
            TypeError: If pixels are not uint8.
            ValueError: If shapes are wrong, or (``on_error="raise"``) a score is not finite.
        """
        pixels = tensordict.get(PIXELS, None)
        if pixels is None:
            raise KeyError(f"CompositeReward: the batch lacks {PIXELS}; it reads {self.in_keys}.")
        check_pixels(pixels, "CompositeReward")
        for name in self.rewards:
            begun = time.perf_counter()
            tensordict.set((SCORE, name), self._scores(name, tensordict))
            self.seconds[name] = time.perf_counter() - begun
        return tensordict

    def combine(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``("next","valid")`` and ``("next","reward")`` of a batch that is scored.

        Raises:
            KeyError: If a score is missing.
        """
        scored = {name: cast(Tensor, tensordict.get((SCORE, name))) for name in self.rewards}
        first = next(iter(scored.values()))
        valid, total = torch.ones_like(first, dtype=torch.bool), torch.zeros_like(first)
        for index, (name, scores) in enumerate(scored.items()):
            finite = torch.isfinite(scores)
            valid &= finite
            normal = self._normalised(index, name, scores, finite)
            total = total + self.weights[name] * normal.nan_to_num(0.0, 0.0, 0.0)
        tensordict.set(VALID, valid)
        return tensordict.set(REWARD, torch.where(valid, total, torch.zeros_like(total)))

    def _scores(self, name: str, batch: TensorDictBase) -> Tensor:
        """Scores of one term, float32 [*B, 1]; NaN where it failed and failures are allowed."""
        if self.on_error == "raise":
            scores = self._call(name, batch)
            bad = (~torch.isfinite(scores)).flatten().nonzero().flatten().tolist()
            if bad:
                raise ValueError(
                    f"CompositeReward: {name!r} scored videos {bad[:8]} with numbers that are not "
                    "finite. Look at these videos, or set on_error='invalid' to leave them out."
                )
            return scores
        try:
            return self._call(name, batch)
        except KeyError:  # a missing entry is a fault of the set-up, not of one video
            raise
        except Exception as error:
            _log.warning("%s failed on a batch (%s); scoring video by video", name, error)
        flat = batch.reshape(-1)
        rows = []
        for index in range(flat.shape[0]):
            try:
                rows.append(self._call(name, flat[index : index + 1]))
            except Exception as error:
                _log.warning("%s could not score video %d: %s", name, index, error)
                rows.append(torch.full((1, 1), math.nan, device=batch.get(PIXELS).device))
        return torch.cat(rows).reshape(*batch.batch_size, 1)

    def _call(self, name: str, batch: TensorDictBase) -> Tensor:
        """Run one term on a shallow copy, so that it leaves nothing else behind."""
        term = self.rewards[name]
        out = term(batch.copy())
        key: NestedKey = term.out_keys[0] if isinstance(term, Reward) else (SCORE, name)
        scores = out.get(key, None) if isinstance(out, TensorDictBase) else None
        if scores is None:
            raise KeyError(
                f"CompositeReward: the callable listed as {name!r} did not write {key}. "
                "Let it set that entry, or list it under the name that it writes."
            )
        if scores.numel() != batch.batch_size.numel():
            raise ValueError(
                f"CompositeReward: {name!r} wrote {tuple(scores.shape)} for a batch of "
                f"{tuple(batch.batch_size)}. Write one number per video."
            )
        return cast(Tensor, scores).detach().float().reshape(*batch.batch_size, 1)

    def _normalised(self, index: int, name: str, scores: Tensor, finite: Tensor) -> Tensor:
        """Bring the scores of a term to the common scale."""
        if self.normalise == "none":
            return scores
        if self.normalise == "fixed":
            mean, std = self.statistics[name]
            return (scores - mean) / std
        moments = cast(Tensor, self.moments)
        if self.training:
            moments[index] = _merged(moments[index], scores[finite].double().to(moments.device))
        count, centre, squares = map(float, moments[index])
        spread = math.sqrt(squares / count) if count else 1.0
        return (scores - centre) / max(spread, _STD_FLOOR)


def _merged(moments: Tensor, values: Tensor) -> Tensor:
    """Join (count, mean, squared deviations) with new values (Chan et al. 1983, eq. 2.1)."""
    if values.numel() == 0:
        return moments
    count, mean, squares = moments
    total = count + values.numel()
    gap = values.mean() - mean
    return torch.stack(
        [
            total,
            mean + gap * values.numel() / total,
            squares
            + (values - values.mean()).square().sum()
            + gap**2 * count * values.numel() / total,
        ]
    )


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value outside a closed set."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}.{_nearest(value, choices)} Choose from: {choices}.")


def _nearest(word: str, known: tuple[str, ...]) -> str:
    """A suggestion, or nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _weight(name: str, entry: Any) -> float:
    """The checked weight of one entry; ``Any`` because a recipe may hold anything."""
    if not isinstance(entry, tuple) or len(entry) != 2 or not callable(entry[0]):
        raise ValueError(
            f"rewards[{name!r}] is {entry!r}, not a pair of reward and weight. Write (reward, 1.0)."
        )
    weight = entry[1]
    if (
        isinstance(weight, bool)
        or not isinstance(weight, (int, float))
        or not math.isfinite(weight)
    ):
        raise ValueError(f"the weight of {name!r} is {weight!r}. Give a finite number such as 1.0.")
    return float(weight)


def _checked_statistics(
    normalise: str, statistics: Mapping[str, tuple[float, float]] | None, names: list[str]
) -> dict[str, tuple[float, float]]:
    """Statistics that fit the terms one to one, or none where none are used."""
    if normalise != "fixed":
        if statistics is not None:
            raise ValueError(
                f"statistics are given but normalise is {normalise!r}. "
                "Set normalise='fixed', or leave them out."
            )
        return {}
    given = dict(statistics or {})
    for name in given:
        if name not in names:
            raise ValueError(
                f"statistics name {name!r}, which is no reward here.{_nearest(name, tuple(names))} "
                f"Rewards: {names}."
            )
    for name in names:
        mean, std = given.get(name, (math.nan, math.nan))
        if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
            raise ValueError(
                f"normalise='fixed' needs a finite mean and a positive std of {name!r}, got "
                f"{given.get(name)!r}. Give statistics={{{name!r}: (mean, std)}}."
            )
    return given
