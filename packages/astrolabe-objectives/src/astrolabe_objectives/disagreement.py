"""Which samples the primary reward likes much more than the others do.

Such a sample may have gamed the primary reward, so the policy is held to its reference there and
left free elsewhere (Astrolabe, section 3.4 and algorithm 1, lines 9-17).
"""

from collections import deque
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, Literal, get_args

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor
from torch.distributed import ProcessGroup

from astrolabe_objectives import settings
from astrolabe_objectives.batch import countable, group_ids, read
from astrolabe_objectives.gather import gather_rows
from astrolabe_objectives.keys import GROUP, INDEX, SCORE, SELECTED, VALID
from astrolabe_objectives.ranks import average_ranks
from astrolabe_objectives.rounding import side_by_side

Mode = Literal["selective", "uniform", "none"]
RankScope = Literal["batch", "group"]
Sign = Literal["paper", "public"]

# Settings of the public code, which the paper does not give.
START, LOWEST, HIGHEST, FACTOR, MEMORY = 0.1, 0.02, 0.2, 1.1, 20


class RankDisagreement(TensorDictModuleBase):
    """Marks the samples on which the KL penalty acts.

    Reads ``("score", *)`` and, where present, ``("next","valid")``; for ``rank_scope="group"`` also
    ``("prompt","group")`` and ``("window","index")``; writes ``("kl","selected")``.

    With the worst sample ranked 1 and the best ranked N, ``Δ_i = rank of i by the primary reward -
    mean of its ranks by the others``; ``Δ > 0`` where the primary reward likes i more than the
    others do. Selected are ``Δ_i > τ``, τ the ``(1-ρ)`` percentile of the ``Δ ≥ 0``; where the
    largest gaps tie with it, as in a batch with a single ``Δ ≥ 0``, nothing is.

    ρ starts at 0.1 and follows the disagreement: times 1.1 when the batch mean of the ``Δ ≥ 0``
    exceeds all of the last 20, times 0.9 when it is below all of them, always inside [0.02, 0.2].
    It is part of ``state_dict()``, with those means.

    Samples that are not valid, or have a score that is not finite, are not ranked nor selected.
    With a single reward nothing disagrees: no sample is selected, and ρ stays.
    Scores that differ by no more than rounding share a rank.

    Args:
        primary: Name of the score that could be gamed.
        auxiliary: Names of the scores it is compared with. None: all others in the batch.
        mode: ``"selective"`` as above; ``"uniform"``: every valid sample; ``"none"``: no sample.
        rank_scope: Rank all samples of the ``"batch"`` together (algorithm 1) or each ``"group"``,
            which does not mix easy and hard prompts.
        sign: ``"paper"`` as above. ``"public"`` ranks the best sample 1, as the public code does,
            and so selects what the primary reward *dislikes*: only for comparison.
        process_group: Ranks among which a batch is spread. None: this rank alone.
        score_key: Where the scores are, an entry per reward.
        selected_key: Where the result goes.

    Raises:
        ValueError: From the constructor for an unknown option; from ``forward`` for a score that
            the batch does not hold.

    Example:
        >>> from tensordict import TensorDict
        >>> hps, motion = torch.tensor([[1.0], [2.0], [9.0], [4.0]]), torch.arange(4.0)[:, None]
        >>> batch = TensorDict({"score": {"hps": hps, "motion": motion}}, batch_size=[4])
        >>> RankDisagreement("hps")(batch)["kl", "selected"].squeeze(-1)
        tensor([False, False,  True, False])
    """

    def __init__(
        self,
        primary: str,
        auxiliary: Sequence[str] | None = None,
        *,
        mode: Mode = "selective",
        rank_scope: RankScope = "batch",
        sign: Sign = "paper",
        process_group: ProcessGroup | None = None,
        score_key: NestedKey = SCORE,
        selected_key: NestedKey = SELECTED,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        settings.choice(name, "mode", mode, get_args(Mode))
        settings.choice(name, "rank_scope", rank_scope, get_args(RankScope))
        settings.choice(name, "sign", sign, get_args(Sign))
        settings.ranks(name, process_group)
        settings.keys(name, score_key=score_key, selected_key=selected_key)
        if isinstance(auxiliary, str):
            raise TypeError(f"{name} got auxiliary={auxiliary!r}. Give a list of names.")
        for reward in (primary, *(auxiliary or ())):
            if not isinstance(reward, str):
                raise TypeError(f"{name} got {reward!r} as the name of a reward. Give text.")
        self.primary = primary
        self.auxiliary = None if auxiliary is None else tuple(auxiliary)
        self.mode: Mode = mode
        self.rank_scope: RankScope = rank_scope
        self.sign: Sign = sign
        self.process_group = process_group
        self.score_key = score_key
        self.selected_key = selected_key
        self.in_keys = [score_key]
        self.out_keys = [selected_key]
        self.rho = START
        self._recent: deque[float] = deque(maxlen=MEMORY)

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the marks, bool ``[*B, 1]``, into ``tensordict`` and return it."""
        reader = "RankDisagreement"
        scores = read(tensordict, self.score_key, reader)
        if not isinstance(scores, TensorDictBase):
            raise TypeError(
                f"{reader} reads {self.score_key!r} as an entry for each reward, and it is a "
                f"{type(scores).__name__}. Write each score to ({self.score_key!r}, its name)."
            )
        known: list[str] = sorted(scores.keys())
        # The first column is the primary where that matters.
        names = self._names(known) if self.mode == "selective" else self._compared(known)
        prefix = self.score_key if isinstance(self.score_key, tuple) else (self.score_key,)
        values, blur = side_by_side(tensordict, [(*prefix, name) for name in names], reader)
        valid = countable(tensordict, VALID, values, reader)
        if self.mode == "selective":
            selected = self._select(tensordict, values, blur, valid)
        else:
            selected = valid if self.mode == "uniform" else torch.zeros_like(valid)
        size = tensordict.batch_size or scores[names[0]].shape[:1]
        return tensordict.set(self.selected_key, selected.reshape(*size, 1))

    def _select(
        self, tensordict: TensorDictBase, scores: Tensor, blur: Tensor, valid: Tensor
    ) -> Tensor:
        if self.rank_scope == "group":
            ids = group_ids(tensordict, GROUP, INDEX, "RankDisagreement", like=valid)
        else:
            ids = torch.zeros_like(valid, dtype=torch.int64)
        everyone, own = gather_rows(self.process_group, scores, blur, valid, ids)
        scores, blur, valid, ids = everyone
        selected = torch.zeros_like(valid)
        if scores.shape[1] < 2:  # nothing disagrees with a single reward
            return selected[own]
        gap = rank_gap(scores[valid], ids[valid], blur[valid])
        selected[valid] = self._above(gap if self.sign == "paper" else -gap)
        return selected[own]

    def _above(self, gap: Tensor) -> Tensor:
        """Adapt ρ to a batch of gaps ``[n]``, then mark those beyond the percentile."""
        raised = gap[gap >= 0]
        if not raised.numel():  # no valid sample: there is nothing to learn from this batch
            return gap > 0
        self._adapt(float(raised.mean()))
        # Different gaps are at least 1/(2 · rewards) apart; 1e-6 keeps the rounding of means, as in
        # 5 - 10/3 < 2 - 1/3, from telling equal ones apart.
        return gap > torch.quantile(raised, 1.0 - self.rho) + 1e-6

    def _adapt(self, mean: float) -> None:
        if self._recent:
            if mean > max(self._recent):
                self.rho *= FACTOR
            elif mean < min(self._recent):
                self.rho *= 2.0 - FACTOR
            self.rho = min(max(self.rho, LOWEST), HIGHEST)
        self._recent.append(mean)

    def _compared(self, known: list[str]) -> list[str]:
        """Those of the known scores that take part; all of them unless it was said which."""
        named = (self.primary, *(known if self.auxiliary is None else self.auxiliary))
        return [name for name in known if name in named] or known

    def _names(self, known: list[str]) -> list[str]:
        auxiliary = self.auxiliary
        if auxiliary is None:
            auxiliary = tuple(name for name in known if name != self.primary)
        for name in (self.primary, *auxiliary):
            if name not in known:
                close = get_close_matches(name, known, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise ValueError(
                    f"RankDisagreement needs score {name!r}; the batch has {sorted(known)}.{hint}"
                )
        return [self.primary, *auxiliary]

    def get_extra_state(self) -> dict[str, Any]:  # torch's name; a float and a list of floats
        """Return ρ and the means it is compared with, for ``state_dict()``."""
        return {"rho": self.rho, "recent": list(self._recent)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what `get_extra_state` gave."""
        self.rho = state["rho"]
        self._recent = deque(state["recent"], maxlen=MEMORY)


def rank_gap(scores: Tensor, ids: Tensor, blur: Tensor | None = None) -> Tensor:
    """Rank by the first reward minus the mean rank by the others.

    Args:
        scores: ``[n, rewards]``, at least two rewards, all finite.
        ids: ``[n]`` or ``[n, K]``; samples are ranked against those with equal ids.
        blur: What in each score may be rounding, see `average_ranks`.

    Returns:
        ``Δ`` ``[n]`` in float64, the worst sample having rank 1.
    """
    ranks = average_ranks(scores, ids, blur)
    return ranks[:, 0] - ranks[:, 1:].mean(dim=1)
