"""How much better a video is than the others of its prompt."""

from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor
from torch.distributed import ProcessGroup

from astrolabe_objectives.batch import countable, group_ids, read
from astrolabe_objectives.gather import gather_rows
from astrolabe_objectives.keys import ADVANTAGE, GROUP, INDEX, REWARD, VALID

Std = Literal["global", "group", "none"]


class GroupAdvantage(TensorDictModuleBase):
    """Reward relative to the other videos of the same prompt.

    Reads ``("prompt","group")``, ``("next","reward")`` and, where present, ``("next","valid")`` and
    ``("window","index")``; writes ``"advantage"``.

    ``A_i = (R_i - mean of its group) / (std + ε)`` (Astrolabe, section 3.3 and table S1). Samples
    that are not valid, or whose reward is not finite, are left out of mean and std and get 0; so do
    the samples of a group whose rewards are all equal.

    Args:
        std: ``"global"``: population standard deviation of all rewards of the batch (table S1);
            ``"group"``: of the rewards of the group; ``"none"``: do not divide.
        eps: ``ε`` in units of the reward; the public code's 1e-4.
        process_group: Ranks among which a batch, and maybe a group, is spread. None: this one.
        reward_key: What is compared. ``("score", "hpsv3")`` gives the advantage of one reward
            (Astrolabe, algorithm 1, line 8) instead of the composite.
        group_key: Samples compete if these are equal, and so are those of ``index_key``.
        index_key: Windows of a video, see ``group_key``.
        valid_key: Optional marks of the samples that count.
        advantage_key: Where the result goes.

    Raises:
        ValueError: From the constructor for an unknown ``std`` or a negative ``eps``; from
            ``forward`` if a sample has no competitor.

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
        eps: float = 1e-4,
        process_group: ProcessGroup | None = None,
        reward_key: NestedKey = REWARD,
        group_key: NestedKey = GROUP,
        index_key: NestedKey = INDEX,
        valid_key: NestedKey = VALID,
        advantage_key: NestedKey = ADVANTAGE,
    ) -> None:
        super().__init__()
        if std not in get_args(Std):
            raise ValueError(f"GroupAdvantage got std={std!r}. Choose from {get_args(Std)}.")
        if eps < 0:
            raise ValueError(f"GroupAdvantage got eps={eps!r}. Give 0 or more.")
        self.std: Std = std
        self.eps = eps
        self.process_group = process_group
        self.reward_key = reward_key
        self.group_key = group_key
        self.index_key = index_key
        self.valid_key = valid_key
        self.advantage_key = advantage_key
        self.in_keys = [group_key, reward_key]
        self.out_keys = [advantage_key]

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the advantage, float32 ``[*B, 1]``, into ``tensordict`` and return it."""
        reward = read(tensordict, self.reward_key, "GroupAdvantage")
        ids = group_ids(tensordict, self.group_key, self.index_key, "GroupAdvantage")
        valid = countable(tensordict, self.valid_key, reward.reshape(-1, 1))
        everyone, own = gather_rows(self.process_group, reward.reshape(-1), ids, valid)
        advantage = group_advantage(*everyone, std=self.std, eps=self.eps)[own]
        tensordict.set(self.advantage_key, advantage.to(torch.float32).reshape(reward.shape))
        return tensordict


def group_advantage(
    reward: Tensor, ids: Tensor, valid: Tensor, *, std: Std = "global", eps: float = 1e-4
) -> Tensor:
    """Reward minus the mean of its group, over a standard deviation plus ``eps``.

    Args:
        reward: ``[n]``; entries that are not valid may hold anything, NaN too.
        ids: ``[n]`` or ``[n, K]``, equal for samples that compete.
        valid: bool ``[n]``.
        std: See `GroupAdvantage`.
        eps: See `GroupAdvantage`.

    Returns:
        Advantages ``[n]`` in float64, 0 where not valid.

    Raises:
        ValueError: If a sample has no competitor, valid or not.
    """
    groups = _Groups.of(reward, ids, valid)
    if groups.samples.numel() and int(groups.samples.min()) < 2:
        lone = int(groups.samples.argmin())
        name = ids[groups.inverse == lone][0].tolist()
        raise ValueError(
            f"group {name} has a single sample, whose advantage is always 0. "
            "Set the group size to 2 or more, and keep the samples of a group in one batch."
        )
    centred = groups.centred
    if std == "none":
        return centred
    if std == "global":
        return centred / (_population_std(groups.clean[valid]) + eps)
    return centred / (groups.std[groups.inverse] + eps)


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
        rewards are equal or fewer than two; ``advantage/group_std``: mean standard deviation inside
        a group, in units of the reward; ``advantage/valid_fraction``: share of samples that count.
    """
    reward = read(tensordict, reward_key, "group_statistics").reshape(-1)
    valid = countable(tensordict, valid_key, reward[:, None])
    ids = group_ids(tensordict, group_key, index_key, "group_statistics")
    groups = _Groups.of(reward, ids, valid)
    return {
        "advantage/zero_std_fraction": float((groups.std == 0).double().mean()),
        "advantage/group_std": float(groups.std.mean()),
        "advantage/valid_fraction": float(valid.double().mean()),
    }


@dataclass(frozen=True)
class _Groups:
    """Moments of every group; ``g`` groups, ``n`` samples."""

    inverse: Tensor  # int64 [n], group of each sample
    samples: Tensor  # int64 [g], members, valid or not
    clean: Tensor  # [n], reward with 0 where not valid
    centred: Tensor  # [n], reward minus the mean of its group, 0 where not valid
    std: Tensor  # [g], of the population; 0 for fewer than two valid samples

    @classmethod
    def of(cls, reward: Tensor, ids: Tensor, valid: Tensor) -> Self:
        _, inverse, samples = torch.unique(ids, dim=0, return_inverse=True, return_counts=True)
        # `where`, not a product: NaN times 0 is NaN.
        clean = torch.where(valid, reward.double(), 0.0)
        zeros = clean.new_zeros(samples.shape)
        members, values = inverse[valid], clean[valid]
        highest = zeros.scatter_reduce(0, members, values, "amax", include_self=False)
        lowest = zeros.scatter_reduce(0, members, values, "amin", include_self=False)
        count = zeros.index_add(0, members, torch.ones_like(values)).clamp(min=1)
        mean = zeros.index_add(0, members, values) / count
        # Equal rewards can miss their own mean by a rounding error, which ε would not hide.
        counts = valid & (highest > lowest)[inverse]
        centred = torch.where(counts, clean - mean[inverse], 0.0)
        std = (zeros.index_add(0, inverse, centred.square()) / count).sqrt()
        return cls(inverse, samples, clean, centred, std)


def _population_std(values: Tensor) -> Tensor:
    return values.std(correction=0) if values.numel() else values.new_zeros(())
