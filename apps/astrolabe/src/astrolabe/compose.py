"""A run's settings to its parts: where the four packages meet."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer

from astrolabe.alarm import HackingAlarm
from astrolabe.compose_rewards import (
    REWARD,
    SCORE,
    TOTAL,
    build_alarm,
    build_disagreement,
    build_reward,
    judge,
    weights,
)
from astrolabe.config import Part, Run
from astrolabe.contract import OURS, check_model, check_objective, try_objective, try_scorer
from astrolabe.fit import check_fit, check_scenes, check_whole, window_schedule
from astrolabe.gradients import Gradients
from astrolabe.handover import Handover
from astrolabe.memory_retry import MicroBatch
from astrolabe.parallel import shard_mesh, union_of_windows
from astrolabe.prompts import prompt_list
from astrolabe.registry import build
from astrolabe.world import ALONE, World
from astrolabe_objectives import (
    AdaptiveReferenceReset,
    GroupAdvantage,
    OldDecay,
    ReferenceReset,
    Snapshots,
)
from astrolabe_objectives.snapshots import BEHIND, OLD, REFERENCE
from astrolabe_rewards import CompositeReward, Monitors
from astrolabe_rollout.denoiser import Denoiser
from astrolabe_rollout.env import PromptEnv
from astrolabe_rollout.group_streaming import GroupStreamingPolicy
from astrolabe_rollout.lora import add_lora, load_lora, trainable_parameters
from astrolabe_rollout.lora_files import locate_lora
from astrolabe_rollout.model import VideoModel
from astrolabe_rollout.prompts import GroupSampler
from astrolabe_rollout.sharding import shard
from astrolabe_rollout.streaming import StreamingPolicy

STEPS = ("steps", "latents")

Policy: TypeAlias = StreamingPolicy | GroupStreamingPolicy


class Objective(Protocol):
    """What the training loop needs of a loss."""

    in_keys: list[NestedKey]
    """Entries of the batch that it reads; all others stay out of the buffer."""
    optional_keys: list[NestedKey]
    """Entries that it reads where they are: the seeds of the noise."""
    out_keys: list[str]
    """Losses and metrics, means over the batch or over what of it they are about."""
    sigmas: tuple[float, ...]
    """Noise levels at which it trains."""
    whole: bool
    """Whether `noise` must see a whole minibatch; else each process noises its own part."""

    def seed(self, seed: int) -> None:
        """Restart its random numbers."""

    def noise(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Flatten a batch and draw all random numbers that its loss needs."""

    def __call__(self, tensordict: TensorDictBase) -> TensorDict:
        """Return ``loss_*`` (summed and minimised) and metrics; uses the noise if it is there."""


@dataclass(frozen=True)
class Parts:
    """Everything that takes part in a run."""

    world: World
    """The processes that do the same as this one: all of them, or those that learn, or sample."""
    handover: Handover | None
    """Between those that sample and those that learn; None: all do both."""
    model: VideoModel
    env: PromptEnv
    policy: Policy
    behaviour: TensorDictModuleBase
    """The policy with the averaged weights ("old"), or those it is to sample with ("behind")."""
    denoiser: Denoiser
    reward: CompositeReward
    monitors: Monitors
    alarm: HackingAlarm
    advantage: GroupAdvantage
    disagreement: TensorDictModuleBase
    buffer: TensorDictReplayBuffer
    shuffle: torch.Generator
    loss: Objective
    snapshots: Snapshots
    parameters: dict[str, nn.Parameter]
    """What is trained, by name: the adapter."""
    gradients: Gradients
    micro_batch: MicroBatch
    optimizer: torch.optim.Optimizer

    @property
    def everyone(self) -> World:
        """All processes."""
        return self.world if self.handover is None else self.handover.world


def compose(run: Run, world: World = ALONE) -> Parts:
    """Build the parts of a run; nothing is sampled yet.

    Args:
        run: The settings.
        world: The processes that share it.

    Raises:
        ConfigError: If a part refuses its options, or the frames are no whole number of chunks.
        LookupError: If a part is not installed.
        PromptFileError: If the prompt file is missing, empty or not UTF-8.
    """
    # Prompts first: of all that can be wrong they are the cheapest to check.
    prompts = prompt_list(run.rollout.prompts, "rollout.prompts")
    reward = build_reward(run)
    for name, scorer in reward.rewards.items():
        try_scorer(scorer, name, "rewards")
    model = build_model(run.model)
    check_fit(run, model, world.size)
    check_scenes(run, model, prompts)
    network = model.transformer.network
    add_lora(
        network,
        rank=run.lora.rank,
        alpha=run.lora.alpha,
        seed=run.train.seed,
        precision=run.lora.precision,
    )
    if run.lora.start:
        load_lora(network, locate_lora(run.lora.start, "lora.start"))
    if run.train.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    sharded = world.size > 1 and run.distributed.base == "sharded"
    if sharded:
        mesh = shard_mesh(run.distributed, world)
        shard(model, mesh, lora=run.distributed.lora == "sharded")
    parameters = trainable_parameters(network)
    snapshots = build_snapshots(run, network)
    denoiser = Denoiser(
        model,
        num_frames=run.rollout.num_frames,
        context=run.train.context,
        mask=run.train.mask,
        agree=union_of_windows(world) if sharded else None,
    )
    loss: Objective = build(
        "objectives",
        run.objective.name,
        objective_options(run),
        denoiser,
        snapshots,
        noise_levels(run, model),
        where="objective",
    )
    check_objective(loss, run.objective.name)
    check_whole(run, loss.whole, world.size)
    if not (sharded or type(loss).__module__.startswith(OURS)):
        try_objective(loss, run.objective.name, run, model)
    schedule = window_schedule(run)
    policy = build_policy(run, model, reward, record=STEPS in loss.in_keys)
    shuffle = torch.Generator()
    handover, samplers = None, world
    if run.distributed.rollout_ranks and world.size > 1:
        handover = Handover(run, world)
        world, samplers = handover.own, handover.samplers
    windows = run.rollout.num_prompts * run.rollout.group_size * run.rollout.windows
    share = windows // world.size
    return Parts(
        world=world,
        handover=handover,
        model=model,
        env=PromptEnv(
            GroupSampler(
                prompts,
                num_prompts=run.rollout.num_prompts,
                group_size=run.rollout.group_size,
                seed=run.train.seed,
                rank=samplers.rank,
                world_size=samplers.size,
                batch_size=run.rollout.batch_size or None,
            ),
            model,
            schedule=schedule,
            scene_windows=run.rollout.scene_windows,
        ),
        policy=policy,
        behaviour=snapshots.bind(sampling_copy(run), policy),
        denoiser=denoiser,
        reward=reward,
        monitors=Monitors(),
        alarm=build_alarm(run, loss),
        advantage=GroupAdvantage(
            std=run.advantage.std,
            mode=run.advantage.mode,
            rewards=weights(run) if run.advantage.mode == "per_reward" else None,
            reward_key=REWARD if run.advantage.reward == TOTAL else (SCORE, run.advantage.reward),
        ),
        disagreement=build_disagreement(run),
        buffer=TensorDictReplayBuffer(
            storage=LazyTensorStorage(share),
            sampler=SamplerWithoutReplacement(shuffle=False),  # `train.shuffle` did it
            batch_size=share // run.train.updates,
        ),
        shuffle=shuffle,
        loss=loss,
        snapshots=snapshots,
        parameters=parameters,
        gradients=Gradients(parameters, world),
        micro_batch=MicroBatch(run.train.micro_batch),
        optimizer=torch.optim.AdamW(
            parameters.values(),
            lr=run.train.lr,
            betas=run.train.betas,
            eps=run.train.eps,
            weight_decay=run.train.weight_decay,
        ),
    )


def build_policy(run: Run, model: VideoModel, reward: CompositeReward, *, record: bool) -> Policy:
    """Make what samples windows: alone, or the candidates of a group from one history."""
    rollout = run.rollout
    stackable = rollout.windows > 1
    if not rollout.shared:
        return StreamingPolicy(
            model,
            rollout.num_frames,
            stackable=stackable,
            record=record,
            overview=run.overview,
        )
    lengths = [rollout.length, rollout.windows, *(length for _, length in rollout.curriculum)]
    return GroupStreamingPolicy(
        model,
        rollout.num_frames,
        stackable=stackable,
        commit=rollout.commit,
        judge=partial(judge, reward) if rollout.commit == "best" else None,
        windows=rollout.windows,
        scene_windows=rollout.scene_windows,
        capacity=max(lengths) * rollout.num_frames,
        record=record,
        overview=run.overview,
    )


def build_model(part: Part) -> VideoModel:
    """Make the model that a run names."""
    return check_model(build("models", part.name, part.options, where="model"), part.name)


def build_snapshots(run: Run, network: nn.Module) -> Snapshots:
    """Make the copies "old" and "reference" of what is trained."""
    settings = run.snapshots
    # TOML has no null, so 0 stands for "never".
    limits = (settings.reference_max_kl or None, settings.reference_max_epochs or None)
    reset: Callable[[float, int], bool] = ReferenceReset(*limits)
    if settings.reference_adaptive:
        reset = AdaptiveReferenceReset(settings.reference_max_kl, settings.reference_max_epochs)
    return Snapshots(
        network,
        *(OLD, REFERENCE, BEHIND)[: 2 + run.rollout.lag],
        old_decay=OldDecay(
            start=settings.old_decay,
            slope=settings.old_slope,
            delay=settings.old_delay,
            cap=settings.old_cap,
            every=settings.old_every,
        ),
        reference_reset=reset,
    )


def sampling_copy(run: Run) -> str:
    """Name of the copy that samples."""
    return BEHIND if run.rollout.lag else OLD


def objective_options(run: Run) -> dict[str, Any]:
    """Options of the loss, with what follows from the noise levels of training."""
    if run.train.noise_levels != "uniform":
        return run.objective.options
    return {"draw": "uniform", **run.objective.options}


def noise_levels(run: Run, model: VideoModel) -> tuple[float, ...]:
    """Noise levels of training, those of sampling unless the run says otherwise."""
    if run.train.noise_levels == "unwarped":
        return tuple(step / 1000 for step in model.denoising_steps)
    return model.sigmas
