"""A run's settings to its parts: the only module where the four packages meet."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import Tensor, nn
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer

from astrolabe.alarm import HackingAlarm
from astrolabe.config import Part, RewardTerm, Run
from astrolabe.errors import ConfigError
from astrolabe.prompts import prompt_list
from astrolabe.registry import build
from astrolabe_objectives import (
    AdaptiveReferenceReset,
    GroupAdvantage,
    OldDecay,
    RankDisagreement,
    ReferenceReset,
    Snapshots,
)
from astrolabe_rewards import CompositeReward, Monitors
from astrolabe_rewards.whole_video import WholeVideo
from astrolabe_rollout.denoiser import Denoiser
from astrolabe_rollout.env import PromptEnv
from astrolabe_rollout.group_streaming import GroupStreamingPolicy
from astrolabe_rollout.hub import locate
from astrolabe_rollout.lora import add_lora, load_lora, trainable_parameters
from astrolabe_rollout.model import VideoModel
from astrolabe_rollout.prompts import GroupSampler
from astrolabe_rollout.streaming import StreamingPolicy
from astrolabe_rollout.windows import WindowSchedule

STEPS = ("steps", "latents")
REWARD = ("next", "reward")
SCORE = "score"
TOTAL = "total"

Policy: TypeAlias = StreamingPolicy | GroupStreamingPolicy

#: Writes ``("score", name)`` into a batch.
Scorer: TypeAlias = Callable[[TensorDictBase], TensorDictBase]


class Objective(Protocol):
    """What the training loop needs of a loss."""

    in_keys: list[NestedKey]
    """Entries of the batch that it reads; all others stay out of the buffer."""
    sigmas: tuple[float, ...]
    """Noise levels at which it trains."""

    def seed(self, seed: int) -> None:
        """Restart its random numbers."""

    def noise(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Flatten a batch and draw all random numbers that its loss needs."""

    def __call__(self, tensordict: TensorDictBase) -> TensorDict:
        """Return ``loss_*`` (summed and minimised) and metrics; uses the noise if it is there."""


@dataclass(frozen=True)
class Parts:
    """Everything that takes part in a run."""

    model: VideoModel
    env: PromptEnv
    policy: Policy
    behaviour: TensorDictModuleBase
    """The policy with the averaged weights: what samples the data, and what a run is judged by."""
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
    optimizer: torch.optim.Optimizer


def compose(run: Run) -> Parts:
    """Build the parts of a run; nothing is sampled yet.

    Raises:
        ConfigError: If a part refuses its options, or the frames are no whole number of chunks.
        LookupError: If a part is not installed.
        PromptFileError: If the prompt file is missing, empty or not UTF-8.
    """
    # Prompts first: of all that can be wrong they are the cheapest to check.
    prompts = prompt_list(run.rollout.prompts, "rollout.prompts")
    reward = build_reward(run)
    model = build_model(run.model)
    check_frames(model, run.rollout.num_frames, "rollout.num_frames")
    network = model.transformer.network
    add_lora(network, rank=run.lora.rank, alpha=run.lora.alpha, seed=run.train.seed)
    if run.lora.start:
        load_lora(network, locate(run.lora.start, "LoRA", "lora.start"))
    if run.train.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    parameters = trainable_parameters(network)
    snapshots = build_snapshots(run, parameters)
    denoiser = Denoiser(
        model,
        num_frames=run.rollout.num_frames,
        context=run.train.context,
        mask=run.train.mask,
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
    schedule = window_schedule(run)
    policy = build_policy(run, model, reward, record=STEPS in loss.in_keys)
    shuffle = torch.Generator()
    windows = run.rollout.num_prompts * run.rollout.group_size * run.rollout.windows
    return Parts(
        model=model,
        env=PromptEnv(
            GroupSampler(
                prompts,
                num_prompts=run.rollout.num_prompts,
                group_size=run.rollout.group_size,
                seed=run.train.seed,
                batch_size=run.rollout.batch_size or None,
            ),
            model,
            schedule=schedule,
            scene_windows=run.rollout.scene_windows,
        ),
        policy=policy,
        behaviour=snapshots.bind("old", policy),
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
            storage=LazyTensorStorage(windows),
            sampler=SamplerWithoutReplacement(),
            batch_size=windows // run.train.updates,
            generator=shuffle,
        ),
        shuffle=shuffle,
        loss=loss,
        snapshots=snapshots,
        parameters=parameters,
        optimizer=torch.optim.AdamW(
            parameters.values(),
            lr=run.train.lr,
            betas=run.train.betas,
            eps=run.train.eps,
            weight_decay=run.train.weight_decay,
        ),
    )


def window_schedule(run: Run) -> WindowSchedule:
    """Make the schedule of trained windows.

    Raises:
        ConfigError: If the windows do not fit into the video, or the curriculum shrinks.
    """
    rollout = run.rollout
    try:
        return WindowSchedule(
            windows=rollout.windows,
            length=rollout.length or rollout.windows,
            start=rollout.start,
            starts=rollout.starts,
            curriculum=rollout.curriculum,
            seed=run.train.seed,
        )
    except ValueError as error:
        raise ConfigError(f"rollout: {error}") from error


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


def judge(reward: CompositeReward, batch: TensorDictBase) -> Tensor:
    """Score the candidates of a window, to commit the best of each group."""
    reward.eval()  # running statistics count each video once, when its batch is combined
    total: Tensor = reward(batch.copy())[REWARD].flatten()
    reward.train()
    return total


def build_model(part: Part) -> VideoModel:
    """Make the model that a run names."""
    model: VideoModel = build("models", part.name, part.options, where="model")
    return model


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
    scorer: Scorer = build("rewards", term.name or name, term.options, where=f"{table}.{name}")
    return WholeVideo(scorer, name) if term.scope == "video" else scorer


def build_snapshots(run: Run, parameters: Mapping[str, nn.Parameter]) -> Snapshots:
    """Make the copies "old" and "reference" of what is trained."""
    settings = run.snapshots
    # TOML has no null, so 0 stands for "never".
    limits = (settings.reference_max_kl or None, settings.reference_max_epochs or None)
    reset: Callable[[float, int], bool] = ReferenceReset(*limits)
    if settings.reference_adaptive:
        reset = AdaptiveReferenceReset(settings.reference_max_kl, settings.reference_max_epochs)
    return Snapshots(
        parameters,
        "old",
        "reference",
        old_decay=OldDecay(
            start=settings.old_decay,
            slope=settings.old_slope,
            delay=settings.old_delay,
            cap=settings.old_cap,
            every=settings.old_every,
        ),
        reference_reset=reset,
    )


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
    total = TensorDictModule(Tensor.clone, in_keys=[REWARD], out_keys=[(SCORE, TOTAL)])
    return TensorDictSequential(total, select)


def build_alarm(run: Run, loss: Objective) -> HackingAlarm:
    """Make the alarm that compares what is trained with what is only watched."""
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


def check_frames(model: VideoModel, latent_frames: int, setting: str) -> None:
    """Refuse a number of latent frames that is no whole number of chunks.

    Raises:
        ConfigError: Names the setting and the nearest numbers that are.
    """
    try:
        model.geometry.chunks(latent_frames)
    except ValueError as error:
        raise ConfigError(f"{setting}: {error}") from error
