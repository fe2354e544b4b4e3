"""Several rewards as one: the weighted sum that reinforcement learning maximises."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Self, cast, get_args

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from torch import Tensor, nn

from astrolabe_rewards.declared import check_scores
from astrolabe_rewards.errors import RewardError, UnscoredError, WeightsError
from astrolabe_rewards.keys import GROUP, INDEX, PIXELS, REWARD, SCORE, VALID
from astrolabe_rewards.normalisation import (
    Normalise,
    Statistics,
    by_group,
    by_moments,
    checked_statistics,
    groups_of,
    merged,
    standardised,
)
from astrolabe_rewards.reward import Reward, check_pixels
from astrolabe_rewards.reward_fn import Portable
from astrolabe_rewards.rounding import rounding_key, rounding_of
from astrolabe_rewards.terms import beside, blur_of, named_terms, one_of, peak_memory
from astrolabe_rewards.untouched import untouched
from astrolabe_rewards.wire import UnavailableError
from astrolabe_rewards.wiring import UNDECLARED, Rewired, Scorer, reads, renamed, written_by

_log = logging.getLogger(__name__)
#: Faults of the set-up, which leaving out single videos would hide.
_SET_UP = (KeyError, ImportError, WeightsError, RewardError, ConnectionError)


class CompositeReward(Portable):
    """Weighted sum of rewards, ``R = Σ_k w_k · n_k(score_k)``.

    Reads what its terms read and, for ``normalise="group"``, ``("prompt","group")`` and where
    present ``("window","index")``; writes ``("score", name)`` of every term (raw),
    ``("next","valid")`` and ``("next","reward")``, and under ``"rounding"`` by how much equal
    scores and rewards may differ: scores may come in 16 bits, and terms that cancel leave the
    rounding of each. A term that does not say what it reads may read ``("video","pixels")``,
    ``("video","fps")`` and ``("prompt","text")``.

    Args:
        rewards: Name to (reward, weight). A reward is a ``Reward``, or any callable that takes a
            TensorDict and writes ``("score", name)`` into it, float ``[*B]`` or ``[*B, 1]``; of a
            module with a single output, such as a ``TensorDictModule``, that one is taken.
            A term of weight 0 is scored and has no part in the sum, nor in whether a video is
            valid.
        normalise: What ``n_k`` is, so that scores of different units can be summed. ``"none"``:
            the identity. ``"fixed"``: ``(score - mean) / std`` with given numbers. ``"running"``:
            with those of all valid videos seen in training mode so far, the present batch included.
            ``"group"``: with those of the valid videos of the same prompt and window, so that a
            term counts by how well it tells them apart; rewards of different groups then no longer
            compare, and every group must be whole when it is combined.
        statistics: Name to (mean, std) of every term; for ``normalise="fixed"`` only.
        on_error: ``"raise"`` stops at a failing or non-finite score. ``"invalid"`` marks a video
            whose score is not finite: its failed score is NaN, and if the term has a weight its
            reward is NaN too and its ``("next","valid")`` false. A term that raises an error is
            asked again for one video at a time; one that answers with NaN is not asked again.
            Missing entries, libraries and weights, and scores that are no number for each video,
            are errors in either case.
        group_key: Videos are of one group if these are equal, and so are those of ``index_key``.
        index_key: Windows of a video, see ``group_key``.
        in_keys: Other names for the entries that are read, in the order of ``in_keys`` without
            this argument. Terms find them under the names that they know. See also `set_keys`.
        out_keys: Other names for the entries that are written: the score of each term, whether a
            video is valid, and the reward, in this order.

    Attributes:
        seconds: Name to wall seconds of the last call.
        gib: Name to GiB by which the last call raised the peak memory of this process: what CUDA
            has allocated, summed over devices, if there is CUDA, else its resident memory (on
            Windows always 0), other threads included. 0 if the call fits under an earlier peak.

    Raises:
        TypeError: If rewards or keys are of another type.
        ValueError: If there are no rewards, a weight is not a finite number, ``statistics`` does
            not fit, or there are more or fewer keys than entries.
        RewardError: If a module's constructor does not call that of its base.
    """

    moments: Tensor

    def __init__(
        self,
        rewards: Mapping[str, tuple[Scorer, float]],
        *,
        normalise: Normalise = "none",
        statistics: Statistics | None = None,
        on_error: Literal["raise", "invalid"] = "raise",
        group_key: NestedKey = GROUP,
        index_key: NestedKey = INDEX,
        in_keys: Sequence[NestedKey] | None = None,
        out_keys: Sequence[NestedKey] | None = None,
    ) -> None:
        super().__init__()
        terms = named_terms(rewards)
        one_of("normalise", normalise, get_args(Normalise))
        one_of("on_error", on_error, ("raise", "invalid"))
        self.weights = {name: weight for name, (_, weight) in terms.items()}
        self.rewards: dict[str, Scorer] = {name: reward for name, (reward, _) in terms.items()}
        #: The terms that are modules, so that ``.to`` and ``.state_dict`` reach them.
        self.terms = nn.ModuleDict(
            {name: term for name, term in self.rewards.items() if isinstance(term, nn.Module)}
        )
        self.normalise = normalise
        self.statistics = checked_statistics(normalise, statistics, list(rewards))
        self.on_error = on_error
        #: Terms of which it was said that they gave no number.
        self._told: set[str] = set()
        self.group_key, self.index_key = unravel_key(group_key), unravel_key(index_key)
        self.seconds = dict.fromkeys(rewards, 0.0)
        self.gib = dict.fromkeys(rewards, 0.0)
        declared = [reads(term) for term in self.rewards.values()]
        #: What a batch must have: all that terms say they read, pixels of those that say nothing.
        self._required = list(dict.fromkeys(key for keys in declared for key in keys or (PIXELS,)))
        read = dict.fromkeys(key for keys in declared for key in keys or UNDECLARED)
        self._wire(
            "CompositeReward",
            [*(dict.fromkeys([*read, self.group_key]) if normalise == "group" else read)],
            [*((SCORE, name) for name in rewards), VALID, REWARD],
            in_keys,
            out_keys,
        )
        # Count, mean and sum of squared deviations of each term (Welford), for "running".
        self.register_buffer("moments", torch.zeros(len(rewards), 3, dtype=torch.float64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Torch's way to move and cast a module: the moments move, but keep their precision."""
        before = self.moments
        super()._apply(fn, recurse)
        if self.moments.dtype != before.dtype:
            self.moments = before.to(self.moments.device)
        return self

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Score a batch of any shape and sum the scores up: `score`, then `combine`."""
        return self.combine(self.score(tensordict))

    def score(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``("score", name)`` of every term. Large batches may be scored part by part.

        Raises:
            KeyError: If pixels or the groups are missing.
            RewardError: If a term does not write its key, writes anything but one floating number
                for each video, or changes what it reads.
            TypeError: If pixels are not uint8.
            UnscoredError: If (``on_error="raise"``) a score is not finite.
            ValueError: If shapes are wrong.
        """
        own = self._own()
        wanted = self._needed()[: len(self._required)]  # of groups `groups_of` says more
        if missing := [key for key in wanted if tensordict.get(key, None) is None]:
            raise KeyError(
                f"CompositeReward: the batch lacks {missing}; it reads {self.in_keys}. Add them, "
                "or say by set_keys how this batch calls them."
            )
        pixels = tensordict.get(own.get(PIXELS, PIXELS), None)
        if pixels is not None and PIXELS in own:
            check_pixels(pixels, "CompositeReward")
        if self.normalise == "group":  # refused before minutes are spent
            groups_of(tensordict, own[self.group_key], self.index_key)
        for name in self.rewards:
            begun, peak = time.perf_counter(), peak_memory()
            found = self._scores(name, tensordict)  # [*B, 2]
            tensordict.set(self.score_key(name), found[..., :1].contiguous())
            tensordict.set(rounding_key(self.score_key(name)), found[..., 1:].contiguous())
            self.seconds[name] = time.perf_counter() - begun
            self.gib[name] = (peak_memory() - peak) / 2**30
        return tensordict

    def combine(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``("next","valid")`` and ``("next","reward")`` of a batch that is scored.

        A video that a term of a weight could not score is not valid and has the reward NaN.

        Raises:
            KeyError: If a score or the groups are missing.
            ValueError: If there is not one group for each video.
        """
        scored = {name: self._scored(name, tensordict) for name in self.rewards}
        # What is only watched says nothing about training; where all is, all of it counts.
        summed = [name for name, weight in self.weights.items() if weight] or list(scored)
        valid = torch.stack([scored[name].isfinite() for name in summed]).all(0)
        normal = self._normalised(scored, valid, tensordict)
        total = cast(Tensor, sum(self.weights[name] * normal[name][0] for name in summed))
        blur = cast(
            Tensor, sum(abs(self.weights[name]) * blur_of(*normal[name]) for name in summed)
        )
        valid &= total.isfinite()  # the sum of finite numbers may still be too large
        count = len(self.rewards)
        valid_key, reward_key = self.out_keys[count : count + 2]
        tensordict.set(valid_key, valid)
        blur = torch.where(valid, blur, math.nan).to(total.dtype)
        tensordict.set(rounding_key(reward_key), blur)
        return tensordict.set(reward_key, torch.where(valid, total, math.nan))

    def _accompanying(self, written: Sequence[NestedKey]) -> list[NestedKey]:
        return [rounding_key(key) for key in (*written[:-2], written[-1])]

    def _score_keys(self) -> dict[str, NestedKey]:
        return {name: self.score_key(name) for name in self.rewards}

    def _needed(self) -> list[NestedKey]:
        group = [self.group_key] if self.normalise == "group" else []
        return [self._own()[key] for key in dict.fromkeys([*self._required, *group])]

    def _total_key(self) -> NestedKey:
        return self.out_keys[len(self.rewards) + 1]

    def _score_part(self, part: TensorDictBase) -> TensorDictBase:
        return self.score(part)

    def shown(self, batch: TensorDictBase) -> TensorDictBase:
        """Return a batch with the usual entries under the names that the terms read."""
        for term in self.rewards.values():
            batch = term.shown(batch) if isinstance(term, Rewired) else batch
        return super().shown(batch)

    def _sum_up(self, whole: TensorDictBase) -> TensorDictBase:
        return self.combine(whole)

    def score_key(self, name: str) -> NestedKey:
        """Return where the score of a term goes."""
        return self.out_keys[list(self.rewards).index(name)]

    def _scored(self, name: str, batch: TensorDictBase) -> Tensor:
        """The score of a term that a batch has, ``[*B, 1]``; of ``[*B]`` a sum would be a table."""
        key, shape = self.score_key(name), (*batch.batch_size, 1)
        scores = batch.get(key, None)
        if scores is None:
            raise KeyError(
                f"CompositeReward: the batch lacks {key}. Score it before: score(batch)."
            )
        if tuple(scores.shape) not in (shape, shape[:-1]) or not scores.is_floating_point():
            raise ValueError(
                f"CompositeReward: {key} is {scores.dtype} {tuple(scores.shape)}. Give one "
                f"floating number for each video, {shape}."
            )
        return cast(Tensor, scores.reshape(shape))

    def _own(self) -> dict[NestedKey, NestedKey]:
        """What terms read, to what the batch calls it."""
        return dict(zip(self._wired[1], self.in_keys, strict=True))

    def _normalised(
        self, scored: dict[str, Tensor], valid: Tensor, batch: TensorDictBase
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """The scores of all terms on the common scale, and the rounding of these, by name."""
        blurs = {name: rounding_of(batch, self.score_key(name)) for name in scored}
        if self.normalise == "fixed":
            return {
                name: standardised(scores, *self.statistics[name], blurs[name])
                for name, scores in scored.items()
            }
        if self.normalise == "group":
            groups = groups_of(batch, self._own()[self.group_key], self.index_key)
            return {
                name: by_group(scores, groups, valid & scores.isfinite(), blurs[name])
                for name, scores in scored.items()
            }
        if self.normalise == "running":
            moments = self.moments.double()
            self.moments = moments  # the same, unless a state of less precision was put in place
            for index, scores in enumerate(scored.values() if self.training else ()):
                moments[index] = merged(moments[index], scores[valid & scores.isfinite()])
            return {
                name: by_moments(scores, own, blurs[name])
                for (name, scores), own in zip(scored.items(), moments, strict=True)
            }
        return {name: (scores, blurs[name]) for name, scores in scored.items()}

    def _scores(self, name: str, batch: TensorDictBase) -> Tensor:
        """Scores of one term and their rounding; NaN where it failed and failures are allowed."""
        if self.on_error == "raise":
            found = self._call(name, batch)
            scores = found[..., :1]
            bad = (~torch.isfinite(scores)).flatten().nonzero().flatten().tolist()
            if bad:
                raise UnscoredError(
                    f"CompositeReward: {name!r} scored videos {bad[:8]} with numbers that are not "
                    "finite",
                    scores,
                )
            return found
        # An infinite score is as useless as none: both are told apart from scores by NaN alone.
        return self._patiently(name, batch).nan_to_num(math.nan, math.nan, math.nan)

    def _patiently(self, name: str, batch: TensorDictBase) -> Tensor:
        """Scores of one term; of a batch that it cannot bear, those it gives video by video."""
        try:
            return self._call(name, batch)
        except _SET_UP:
            raise
        except UnavailableError as error:  # asking for each video would take as many time-outs
            _log.warning("%s gave no answer (%s); the whole batch is invalid", name, error)
            return torch.full((*batch.batch_size, 2), math.nan, device=self._device(batch))
        except Exception as error:
            _log.warning("%s failed on a batch (%s); scoring video by video", name, error)
        flat = batch.reshape(-1)
        rows = []
        for index in range(flat.shape[0]):
            try:
                rows.append(self._call(name, flat[index : index + 1]))
            except _SET_UP:
                raise
            except Exception as error:
                _log.warning("%s could not score video %d: %s", name, index, error)
                rows.append(torch.full((1, 2), math.nan, device=self._device(batch)))
        return torch.cat(rows).reshape(*batch.batch_size, 2)

    def _call(self, name: str, batch: TensorDictBase) -> Tensor:
        """Scores of one term and their rounding, float32 [*B, 2].

        It runs on a shallow copy, so that it leaves nothing else behind.
        """
        term = self.rewards[name]
        count = batch.batch_size.numel()
        shown = renamed(batch, self.in_keys, self._wired[1])
        own = () if isinstance(term, Reward) else self._wired[1]  # a reward looks itself
        try:
            with untouched(f"CompositeReward: {name!r}", shown, own):
                out = term(shown)
        except UnscoredError as error:  # an answer too: asking again would bring the same
            if error.scores.numel() != count:
                raise
            if self.on_error == "invalid" and name not in self._told:
                self._told.add(name)
                _log.warning("%s; these and later ones are left out (told once)", error.what)
            return beside(error.scores.to(self._device(batch)), None, batch.batch_size)
        key = written_by(term, name)
        scores = out.get(key, None) if isinstance(out, TensorDictBase) else None
        if scores is None:
            raise RewardError(
                f"CompositeReward: the callable listed as {name!r} did not write {key}. "
                "Let it set that entry, or list it under the name that it writes."
            )
        found = check_scores(f"CompositeReward: {name!r}", scores, count)
        return beside(found, out.get(rounding_key(key), None), batch.batch_size)

    def _device(self, batch: TensorDictBase) -> torch.device:
        """Where the videos are."""
        found = [value for key in self.in_keys if isinstance(value := batch.get(key, None), Tensor)]
        return found[0].device if found else torch.device("cpu")
