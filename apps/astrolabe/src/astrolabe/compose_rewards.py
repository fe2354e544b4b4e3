"""A run's settings to what judges its videos: rewards, disagreement, alarm."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import Tensor

from astrolabe.alarm import HackingAlarm
from astrolabe.config import RewardTerm, Run
from astrolabe.contract import check_reward
from astrolabe.registry import build
from astrolabe_objectives import RankDisagreement
from astrolabe_rewards import CompositeReward
from astrolabe_rewards.rounding import rounding_key
from astrolabe_rewards.whole_video import WholeVideo

REWARD = ("next", "reward")
SCORE = "score"
TOTAL = "total"

#: Writes ``("score", name)`` into a batch.
Scorer: TypeAlias = Callable[[TensorDictBase], TensorDictBase]


def judge(reward: CompositeReward, batch: TensorDictBase) -> Tensor:
    """Score the candidates of a window, to commit the best of each group."""
    reward.eval()  # running statistics count each video once, when its batch is combined
    total: Tensor = reward(batch.copy())[REWARD].flatten()
    reward.train()
    return total


def build_reward(run: Run, *, grouped: bool = True) -> CompositeReward:
    """Make the weighted sum of the rewards; terms of weight 0 are scored and not summed.

    If batches are not ``grouped``, as in a report, fixed units stand in for normalised groups.
    """
    normalise = run.composite.normalise
    if normalise == "group" and not grouped:
        normalise = "fixed"
    fixed = {name: (term.mean, term.std) for name, term in run.rewards.items()}
    return CompositeReward(
        {name: (build_term(name, term), term.weight) for name, term in run.rewards.items()},
        normalise=normalise,
        statistics=fixed if normalise == "fixed" else None,
        on_error=run.composite.on_error,
    )


def build_term(name: str, term: RewardTerm, table: str = "rewards") -> Scorer:
    """Make one reward of a table of settings."""
    where, part = f"{table}.{name}", term.name or name
    scorer: Scorer = build("rewards", part, term.options, where=where)
    check_reward(scorer, part, where)
    return WholeVideo(scorer, name) if term.scope == "video" else scorer


def build_judge(
    name: str, term: RewardTerm, table: str, on_error: Literal["raise", "invalid"]
) -> Scorer:
    """Make one scorer that has a part in no sum; what it cannot score is NaN, or stops.

    Args:
        name: Under which it writes its score.
        term: What it is.
        table: Of the settings that it stands in.
        on_error: As in `CompositeReward`.
    """
    alone = CompositeReward({name: (build_term(name, term, table), 1.0)}, on_error=on_error)
    alone.eval()
    return alone.score


def build_disagreement(run: Run) -> TensorDictModuleBase:
    """Make the selector of the samples on which the KL penalty acts."""
    settings = run.disagreement
    others = [
        name for name, term in run.rewards.items() if term.weight and name != settings.primary
    ]
    select = RankDisagreement(
        settings.primary,
        others,
        mode=settings.mode,
        rank_scope=settings.rank_scope,
        sign=settings.sign,
    )
    if settings.primary != TOTAL:
        return select
    # The selector compares scores; the weighted sum joins them under its own name.
    total = TensorDictModule(
        lambda reward, blur: (reward.clone(), blur.clone()),
        in_keys=[REWARD, rounding_key(REWARD)],
        out_keys=[(SCORE, TOTAL), rounding_key((SCORE, TOTAL))],
    )
    return TensorDictSequential(total, select)


def build_alarm(run: Run, loss: Any) -> HackingAlarm:
    """Make the alarm that compares what is trained with what is only watched.

    Args:
        run: The settings.
        loss: Any objective; the alarm may raise its KL coefficient.
    """
    alone, primary = run.advantage.reward, run.disagreement.primary
    fixed = {name: term.std for name, term in run.rewards.items()}
    units = {"none": dict.fromkeys(fixed, 1.0), "fixed": fixed, "running": {}, "group": {}}
    return HackingAlarm(
        run.guard,
        trained=weights(run) if alone == TOTAL else {alone: 1.0},
        held_out=[
            name
            for name, term in run.rewards.items()
            if not term.weight and name not in (alone, primary)
        ],
        units=units[run.composite.normalise],
        loss=loss,
    )


def weights(run: Run) -> dict[str, float]:
    """Weights of the rewards that count."""
    return {name: term.weight for name, term in run.rewards.items() if term.weight}
