"""Everything with state: from the parts of a run to a checkpoint, and back bit for bit.

The folder ``lora/`` of a checkpoint holds the averaged adapter ("old"), the one that samples and
that a run is judged by; the adapter as it is trained is part of the state.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from astrolabe.checkpoint_files import damage, step_of
from astrolabe.compose import Parts
from astrolabe.run_folder import RunFolder
from astrolabe.state_files import State, read_state, refuse_earlier
from astrolabe_objectives import SnapshotError
from astrolabe_rewards import CompositeReward
from astrolabe_rollout.errors import CheckpointError


def restore(folder: RunFolder, parts: Parts) -> tuple[int, list[str]]:
    """Bring the parts to the newest checkpoint that is whole; the same one on every process.

    Damaged ones that are newer are put aside, once an older one is restored.

    Returns:
        Steps that are finished, 0 without a checkpoint, and what to tell about damaged ones.

    Raises:
        CheckpointError: If none is whole, or the newest whole one was made with other settings.
        SystemExit: On other processes than the main one, which says why.
    """
    world = parts.everyone
    damaged: dict[str, str] = {}
    while True:
        found = world.lead(lambda: _newest_whole(folder, damaged))
        name = world.gather_text(found or "")[0]
        if not name:
            return 0, []
        checkpoint = folder.checkpoints / name
        state, problem = None, ""
        try:
            state = read_state(checkpoint, parts.parameters)
        except CheckpointError as error:
            problem = str(error)
        problem = next(filter(None, world.gather_text(problem)), "")
        if state is not None and not problem:
            break
        damaged[name] = problem
    _apply(folder, checkpoint, parts, state)
    told = world.lead(lambda: [_put_aside(folder, *one, name) for one in damaged.items()])
    return step_of(checkpoint), json.loads(world.gather_text(json.dumps(told))[0])


def capture(parts: Parts, step: int) -> State:
    """Return the state of all parts after ``step`` finished steps: themselves, not copies.

    Random numbers have no state: each step seeds them anew from its number (`train.reseed`).
    """
    return {
        "step": step,
        "adapter": {name: value.detach() for name, value in parts.parameters.items()},
        "optimizer": optimizer_state(parts.optimizer, parts.parameters),
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
    load_optimizer(parts.optimizer, parts.parameters, state["optimizer"])
    parts.snapshots.load_state_dict(state["snapshots"])
    parts.disagreement.load_state_dict(state["disagreement"])
    load_reward(parts.reward, state["reward"])
    parts.alarm.load_state_dict(state["alarm"])
    parts.env.sampler.load_state_dict(state["sampler"])
    return int(state["step"])


def optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> State:
    """What an optimiser has learned, by name of the parameter; its settings are those of the run.

    `torch.distributed.checkpoint.state_dict` does the same, but if there is no state yet it takes
    a step to have one, and a run that is saved must go on as one that is not.
    """
    learned = optimizer.state_dict()["state"]
    names = _names(optimizer, parameters)
    return {name: learned[number] for number, name in enumerate(names) if number in learned}


def load_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], state: State
) -> None:
    """Give an optimiser what `optimizer_state` returned."""
    names = _names(optimizer, parameters)
    learned = {number: state[name] for number, name in enumerate(names) if name in state}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": learned, "param_groups": groups})


def restore_reward(folder: RunFolder, reward: CompositeReward) -> None:
    """Give a composite reward the running statistics of a run's newest checkpoint, if any.

    Raises:
        CheckpointError: If the checkpoint is damaged.
    """
    checkpoint = folder.newest()
    if checkpoint is not None:
        load_reward(reward, read_state(checkpoint, under="reward/")["reward"])


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


def _names(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Names of the parameters in the order in which an optimiser numbers them."""
    names = {parameter: name for name, parameter in parameters.items()}
    return [names[value] for group in optimizer.param_groups for value in group["params"]]


def _newest_whole(folder: RunFolder, damaged: dict[str, str]) -> str | None:
    """Name of the newest whole checkpoint; adds newer ones to the damaged, with what they have."""
    for checkpoint in reversed(folder.all_checkpoints()):
        if checkpoint.name in damaged:
            continue
        problem = damage(checkpoint)
        if problem is None:
            refuse_earlier(checkpoint)
            return checkpoint.name
        damaged[checkpoint.name] = problem
    if not damaged:
        return None
    found = "; ".join(f"{name}: {problem}" for name, problem in damaged.items())
    raise CheckpointError(
        f"no checkpoint of {str(folder.path)!r} is whole ({found}). Put back a copy of one of "
        f"them, or remove {folder.checkpoints} to begin anew with: "
        f"astrolabe train --resume {folder.path}"
    )


def _apply(folder: RunFolder, checkpoint: Path, parts: Parts, state: State) -> None:
    try:
        apply(parts, state)
    except (KeyError, ValueError, TypeError, RuntimeError, SnapshotError) as error:
        reason = error.args[0] if error.args else type(error).__name__
        raise CheckpointError(
            f"the checkpoint {str(checkpoint)!r} does not fit this run ({reason}). "
            f"Was {folder.config.name} changed, or another version installed? "
            "Put back what the run was started with."
        ) from error


def _put_aside(folder: RunFolder, name: str, problem: str, used: str) -> str:
    place = folder.put_aside(folder.checkpoints / name)
    return f"{name} is damaged: {problem}. It is kept as {place}; the run goes on from {used}."
