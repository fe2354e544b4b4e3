"""How much better a video is than the others of its prompt."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor
from torch.distributed import ProcessGroup

from astrolabe_objectives import settings
from astrolabe_objectives.batch import countable, group_ids, read_numbers
from astrolabe_objectives.gather import gather_rows
from astrolabe_objectives.keys import ADVANTAGE, GROUP, INDEX, REWARD, SCORE, VALID
from astrolabe_objectives.ranks import average_ranks
from astrolabe_objectives.rounding import rounding, rounding_of, side_by_side

Std = Literal["global", "group", "none"]
Mode = Literal["reward", "leave_one_out", "rank", "per_reward"]


class GroupAdvantage(TensorDictModuleBase):
    """Reward relative to the other videos of the same prompt.

    Reads ``("prompt","group")``, ``("next","reward")`` (``mode="per_reward"``: ``("score", *)``)
    and, where present, ``("next","valid")``, ``("window","index")`` and ``("rounding", ...)`` of
    what is compared; writes ``"advantage"``.

    ``A_i = (R_i - mean of its group) / (std + ε)`` (Astrolabe, section 3.3 and table S1). Samples
    that are not valid, or whose reward is not finite, are left out of mean and std and get 0; so do
    the samples of a group whose rewards are all equal, or differ by no more than rounding does in
    the precision in which they were made (`astrolabe_objectives.rounding`).

    Coming from other code: the public trainers of DiffusionNFT and Flow-GRPO take the population's
    standard deviation plus 1e-4 as here, of the batch or the prompt by their ``global_std``; TRL's
    GRPO takes that of the sample, smaller advantages by √((n - 1) / n) with ``std="group"``.

    Args:
        std: ``"global"``: population standard deviation of all rewards of the batch (table S1);
            ``"group"``: of the rewards of the group; ``"none"``: do not divide.
        mode: What is compared, and with what. ``"reward"`` as above. ``"leave_one_out"``: the mean
            is that of the *other* samples of the group (RLOO, 2402.14740), which makes the
            advantage larger by n / (n - 1). ``"rank"``: the rank inside the group takes the place
            of the reward, from -1 for the worst to 1 for the best, so that no outlier dominates.
            ``"per_reward"``: each score of ``rewards`` gets an advantage of its own; their weighted
            sum is divided by its standard deviation over the batch (GDPO, 2601.05242), so that no
            reward drowns another one by its unit.
        rewards: Weight of each score by name, for ``mode="per_reward"`` only.
        eps: ``ε`` in units of the reward; the public code's 1e-4.
        process_group: Ranks among which a batch, and maybe a group, is spread. None: this one.
        reward_key: What is compared. ``("score", "hpsv3")`` gives the advantage of one reward
            (Astrolabe, algorithm 1, line 8) instead of the composite.
        score_key: Where the scores are, an entry per reward.
        group_key: Samples compete if these are equal, and so are those of ``index_key``.
        index_key: Windows of a video, see ``group_key``.
        valid_key: Optional marks of the samples that count.
        advantage_key: Where the result goes.

    Raises:
        ValueError: From the constructor for a setting outside its range, ``rewards`` without
            ``mode="per_reward"`` or the other way round, or that mode with ``std="none"``; from
            ``forward`` if a sample has no competitor, or an entry is not one number for each.
        KeyError: From ``forward`` if the batch lacks an entry.
        TypeError: From the constructor for a setting of another type; from ``forward`` if groups
            are no whole numbers, or marks no bools.

    Example:
        >>> from tensordict import TensorDict
        >>> batch = TensorDict(batch_size=[4])
        >>> batch["prompt", "group"] = torch.tensor([0, 0, 1, 1])
        >>> batch["next", "reward"] = torch.tensor([[1.0], [3.0], [5.0], [5.0]])
        >>> GroupAdvantage(std="none")(batch)["advantage"].squeeze(-1)
        tensor([-1.,  1.,  0.,  0.])
    """

    def __init__(
        self,
        *,
        std: Std = "global",
        mode: Mode = "reward",
        rewards: Mapping[str, float] | None = None,
        eps: float = 1e-4,
        process_group: ProcessGroup | None = None,
        reward_key: NestedKey = REWARD,
        score_key: NestedKey = SCORE,
        group_key: NestedKey = GROUP,
        index_key: NestedKey = INDEX,
        valid_key: NestedKey = VALID,
        advantage_key: NestedKey = ADVANTAGE,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        settings.choice(name, "std", std, get_args(Std))
        settings.choice(name, "mode", mode, get_args(Mode))
        settings.number(name, "eps", eps, least=0)
        settings.ranks(name, process_group)
        settings.keys(
            name,
            reward_key=reward_key,
            score_key=score_key,
            group_key=group_key,
            index_key=index_key,
            valid_key=valid_key,
            advantage_key=advantage_key,
        )
        if bool(rewards) != (mode == "per_reward"):
            raise ValueError(
                f"GroupAdvantage got mode={mode!r} and rewards={rewards!r}. Give the weights of "
                "the scores with mode='per_reward', and only with it."
            )
        if mode == "per_reward" and std == "none":
            raise ValueError(
                "GroupAdvantage got mode='per_reward' and std='none', so that no reward would be "
                "normalised. Choose std='group' or std='global'."
            )
        for reward, weight in (rewards or {}).items():
            settings.number(name, f"rewards[{reward!r}]", weight)
        self.std: Std = std
        self.mode: Mode = mode
        self.rewards = dict(rewards or {})
        self.eps = eps
        self.process_group = process_group
        self.reward_key = reward_key
        self.group_key = group_key
        self.index_key = index_key
        self.valid_key = valid_key
        self.advantage_key = advantage_key
        prefix = score_key if isinstance(score_key, tuple) else (score_key,)
        self.compared: list[NestedKey] = [(*prefix, name) for name in self.rewards] or [reward_key]
        self.in_keys = [group_key, *self.compared]
        self.out_keys = [advantage_key]

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the advantage, float32 ``[*B, 1]``, into ``tensordict`` and return it."""
        reader = "GroupAdvantage"
        values, blur = side_by_side(tensordict, self.compared, reader)  # [n, rewards]
        ids = group_ids(tensordict, self.group_key, self.index_key, reader, like=values[:, 0])
        valid = countable(tensordict, self.valid_key, values, reader)
        everyone, own = gather_rows(self.process_group, values, blur, ids, valid)
        values, blur, ids, valid = everyone
        if self.mode == "per_reward":
            weights = torch.tensor(list(self.rewards.values()), dtype=torch.float64)
            advantage = per_reward_advantage(
                values, weights.to(ids.device), ids, valid, std=self.std, eps=self.eps, blur=blur
            )
        else:
            advantage = group_advantage(
                values.squeeze(1),
                ids,
                valid,
                std=self.std,
                mode=self.mode,
                eps=self.eps,
                blur=blur.squeeze(1),
            )
        advantage = advantage[own].to(torch.float32)
        advantage = advantage.reshape(tensordict[self.compared[0]].shape)
        return tensordict.set(self.advantage_key, advantage)


def group_advantage(
    reward: Tensor,
    ids: Tensor,
    valid: Tensor,
    *,
    std: Std = "global",
    mode: Mode = "reward",
    eps: float = 1e-4,
    blur: Tensor | None = None,
) -> Tensor:
    """Reward minus the mean of its group, over a standard deviation plus ``eps``.

    Args:
        reward: ``[n]``; entries that are not valid may hold anything, NaN too.
        ids: ``[n]`` or ``[n, K]``, equal for samples that compete.
        valid: bool ``[n]``.
        std: See `GroupAdvantage`.
        mode: See `GroupAdvantage`; any but ``"per_reward"``.
        eps: See `GroupAdvantage`.
        blur: What in each reward may be rounding, ``[n]``; None: what its precision says.

    Returns:
        Advantages ``[n]`` in float64, 0 where not valid.

    Raises:
        ValueError: If a sample has no competitor, valid or not.
    """
    if blur is None:
        blur = rounding(reward)
    return _advantage(reward, ids, valid, blur, std=std, mode=mode, eps=eps)[0]


def _advantage(
    reward: Tensor, ids: Tensor, valid: Tensor, blur: Tensor, *, std: Std, mode: Mode, eps: float
) -> tuple[Tensor, Tensor]:
    """See `group_advantage`; also what of each advantage may be rounding, ``[n]``."""
    groups = _Groups.of(reward, ids, valid, blur)
    if groups.samples.numel() and int(groups.samples.min()) < 2:
        lone = int(groups.samples.argmin())
        name = ids[groups.inverse == lone][0].tolist()
        raise ValueError(
            f"group {name} has a single sample, whose advantage is always 0. "
            "Set the group size to 2 or more, and keep the samples of a group in one batch."
        )
    if mode == "rank":
        ranks = _ranks(reward, ids, valid, blur, groups)
        groups = _Groups.of(ranks, ids, valid, rounding(ranks))
    centred = groups.centred
    if mode == "leave_one_out":
        count = groups.count[groups.inverse]
        centred = centred * count / (count - 1).clamp(min=1)
    blur = torch.where(groups.tied, 0.0, groups.blur)[groups.inverse]  # ties are 0 exactly
    if std == "none":
        return centred, blur
    spread = _population_std(groups.clean[valid]) if std == "global" else groups.std[groups.inverse]
    return _divide(centred, spread + eps), _divide(blur, spread + eps)


def per_reward_advantage(
    rewards: Tensor,
    weights: Tensor,
    ids: Tensor,
    valid: Tensor,
    *,
    std: Std = "group",
    eps: float = 1e-4,
    blur: Tensor | None = None,
) -> Tensor:
    """Weighted sum of each reward's advantage, over the sum's own standard deviation (GDPO).

    Args:
        rewards: ``[n, K]``.
        weights: ``[K]``.
        ids: As in `group_advantage`.
        valid: bool ``[n]``.
        std: By what each reward is divided, ``"group"`` or ``"global"``.
        eps: Added to every standard deviation.
        blur: What in each reward may be rounding, ``[n, K]``; None: what its precision says.

    Returns:
        Advantages ``[n]`` in float64, 0 where not valid.
    """
    blurs = (rounding(rewards) if blur is None else blur).unbind(1)
    each = [
        _advantage(column, ids, valid, theirs, std=std, mode="reward", eps=eps)
        for column, theirs in zip(rewards.unbind(1), blurs, strict=True)
    ]
    total = torch.stack([advantage for advantage, _ in each], dim=1) @ weights.double()
    # Rewards that cancel leave the rounding of each, which the division would make a signal.
    left = torch.stack([theirs for _, theirs in each], dim=1) @ weights.double().abs()
    groups = _Groups.of(total, ids, valid, left)
    total = torch.where(groups.tied[groups.inverse], 0.0, total)
    return _divide(total, _population_std(total[valid]) + eps)


def group_statistics(
    tensordict: TensorDictBase,
    *,
    reward_key: NestedKey = REWARD,
    group_key: NestedKey = GROUP,
    index_key: NestedKey = INDEX,
    valid_key: NestedKey = VALID,
) -> dict[str, float]:
    """Describe the groups of a batch (this rank's) for the log.

    Returns:
        ``advantage/zero_std_fraction``: share of the groups that teach nothing, as their valid
        rewards are equal but for rounding, or fewer than two; ``advantage/group_std``: mean
        standard deviation inside a group of two valid samples or more, in units of the reward, NaN
        without any; ``advantage/valid_fraction``: share of samples that count.
    """
    reader = "group_statistics"
    reward = read_numbers(tensordict, reward_key, reader)
    valid = countable(tensordict, valid_key, reward[:, None], reader)
    ids = group_ids(tensordict, group_key, index_key, reader, like=reward)
    groups = _Groups.of(reward, ids, valid, rounding_of(tensordict, reward_key, reader))
    several = torch.zeros_like(groups.std).index_add(0, groups.inverse, valid.double()) > 1
    return {
        "advantage/zero_std_fraction": float((groups.std == 0).double().mean()),
        "advantage/group_std": float(groups.std[several].mean()),
        "advantage/valid_fraction": float(valid.double().mean()),
    }


@dataclass(frozen=True)
class _Groups:
    """Moments of every group; ``g`` groups, ``n`` samples."""

    inverse: Tensor  # int64 [n], group of each sample
    samples: Tensor  # int64 [g], members, valid or not
    count: Tensor  # [g], valid members, at least 1
    clean: Tensor  # [n], reward with 0 where not valid
    centred: Tensor  # [n], reward minus the mean of its group, 0 where not valid or tied
    blur: Tensor  # [g], difference of rewards that may be rounding
    tied: Tensor  # bool [g], no two valid samples differ by more than that
    std: Tensor  # [g], of the population; 0 for fewer than two valid samples

    @classmethod
    def of(cls, reward: Tensor, ids: Tensor, valid: Tensor, blur: Tensor) -> Self:
        _, inverse, samples = torch.unique(ids, dim=0, return_inverse=True, return_counts=True)
        # `where`, not a product: NaN times 0 is NaN.
        clean = torch.where(valid, reward.double(), 0.0)
        zeros = clean.new_zeros(samples.shape)
        members, values = inverse[valid], clean[valid]
        highest = zeros.scatter_reduce(0, members, values, "amax", include_self=False)
        lowest = zeros.scatter_reduce(0, members, values, "amin", include_self=False)
        widest = zeros.scatter_reduce(0, members, blur[valid], "amax", include_self=False)
        count = zeros.index_add(0, members, torch.ones_like(values)).clamp(min=1)
        mean = zeros.index_add(0, members, values) / count
        tied = highest - lowest <= widest
        centred = torch.where(valid & ~tied[inverse], clean - mean[inverse], 0.0)
        std = (zeros.index_add(0, inverse, centred.square()) / count).sqrt()
        return cls(inverse, samples, count, clean, centred, widest, tied, std)


def _divide(centred: Tensor, std: Tensor) -> Tensor:
    """Divide, but leave 0 where it is: a group of tied rewards has a ``std`` of 0."""
    return torch.where(centred == 0, centred, centred / std)


def _population_std(values: Tensor) -> Tensor:
    return values.std(correction=0) if values.numel() else values.new_zeros(())


def _ranks(reward: Tensor, ids: Tensor, valid: Tensor, blur: Tensor, groups: _Groups) -> Tensor:
    """Rank inside the group, from -1 for the worst valid sample to 1 for the best, ``[n]``."""
    ranks = torch.zeros_like(groups.clean)
    alone = (reward[valid, None], ids[valid], blur[valid, None])
    ranks[valid] = average_ranks(*alone).squeeze(1)
    count = groups.count[groups.inverse]
    return (2 * ranks - count - 1) / (count - 1).clamp(min=1)
