"""Everything with state: from the parts of a run to a checkpoint, and back bit for bit.

The folder ``lora/`` of a checkpoint holds the averaged adapter ("old"), the one that samples and
that a run is judged by; the adapter as it is trained is part of the state.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astrolabe.compose import Parts
from astrolabe.run_folder import RunFolder, read_state
from astrolabe_objectives import SnapshotError
from astrolabe_rewards import CompositeReward
from astrolabe_rollout.errors import CheckpointError
from astrolabe_rollout.lora import save_lora

#: Nested dicts of tensors, numbers and texts. Any: they nest.
State = dict[str, Any]


def save(folder: RunFolder, parts: Parts, step: int, keep: int) -> Path:
    """Write the checkpoint of a finished step and return its folder."""

    def write_lora(path: Path) -> None:
        with parts.snapshots.use("old"):
            save_lora(parts.model.transformer.network, path)

    return folder.save(step, capture(parts, step), write_lora, keep)


def restore(folder: RunFolder, parts: Parts) -> int:
    """Bring the parts to the newest checkpoint.

    Returns:
        Steps that are finished; 0 without a checkpoint.

    Raises:
        CheckpointError: If the checkpoint is damaged, or was made with other settings.
    """
    checkpoint = folder.newest()
    if checkpoint is None:
        return 0
    state = read_state(checkpoint)
    try:
        return apply(parts, state)
    except (KeyError, ValueError, TypeError, RuntimeError, SnapshotError) as error:
        reason = error.args[0] if error.args else type(error).__name__
        raise CheckpointError(
            f"the checkpoint {str(checkpoint)!r} does not fit this run ({reason}). "
            f"Was {folder.config.name} changed, or another version installed? "
            "Put back what the run was started with."
        ) from error


def capture(parts: Parts, step: int) -> State:
    """Return the state of all parts after ``step`` finished steps.

    Random numbers have no state: each step seeds them anew from its number (`train.reseed`).
    """
    return {
        "step": step,
        "adapter": {name: value.detach() for name, value in parts.parameters.items()},
        "optimizer": parts.optimizer.state_dict(),
        "snapshots": parts.snapshots.state_dict(),
        "disagreement": dict(parts.disagreement.state_dict()),
        "reward": reward_state(parts.reward),
        "alarm": parts.alarm.state_dict(),
        "sampler": parts.env.sampler.state_dict(),
    }


@torch.no_grad()
def apply(parts: Parts, state: State) -> int:
    """Give all parts the state that `capture` returned; return its step."""
    adapter: Mapping[str, Tensor] = state["adapter"]
    if adapter.keys() != parts.parameters.keys():
        raise ValueError("its adapter has other layers")
    for name, parameter in parts.parameters.items():
        if adapter[name].shape != parameter.shape:
            raise ValueError(f"its adapter has another shape at {name!r}")
    for name, parameter in parts.parameters.items():
        parameter.copy_(adapter[name])
    parts.optimizer.load_state_dict(state["optimizer"])
    parts.snapshots.load_state_dict(state["snapshots"])
    parts.disagreement.load_state_dict(state["disagreement"])
    load_reward(parts.reward, state["reward"])
    parts.alarm.load_state_dict(state["alarm"])
    parts.env.sampler.load_state_dict(state["sampler"])
    return int(state["step"])


def restore_reward(folder: RunFolder, reward: CompositeReward) -> None:
    """Give a composite reward the running statistics of a run's newest checkpoint, if any.

    Raises:
        CheckpointError: If the checkpoint is damaged.
    """
    checkpoint = folder.newest()
    if checkpoint is not None:
        load_reward(reward, read_state(checkpoint)["reward"])


def load_reward(reward: CompositeReward, state: State) -> None:
    """Give a composite reward what `reward_state` returned; its models keep their weights.

    Raises:
        CheckpointError: If the state is that of another composite reward.
    """
    if state.keys() != reward_state(reward).keys():
        raise CheckpointError(
            f"the checkpoint holds {sorted(state)} of the composite reward, which has "
            f"{sorted(reward_state(reward))}. Put back the rewards that the run was started with."
        )
    reward.load_state_dict({**reward.state_dict(), **state})


def reward_state(reward: CompositeReward) -> State:
    """State of the composite reward itself, without the weights of the reward models."""
    models = {
        f"{prefix}.{name}"
        for prefix, module in reward.named_children()
        for name in module.state_dict()
    }
    return {name: value for name, value in reward.state_dict().items() if name not in models}
