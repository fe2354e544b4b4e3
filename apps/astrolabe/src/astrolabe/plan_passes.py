"""What sampling, decoding and learning take: the run's own code, traced on a model without weights.

The blocks of a transformer are alike, so all that is counted grows evenly with their number: two
small networks tell what a large one takes.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from tensordict import NonTensorStack, TensorDict
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from astrolabe.compose import (
    STEPS,
    Objective,
    build_policy,
    build_snapshots,
    noise_levels,
    objective_options,
)
from astrolabe.config import Run
from astrolabe.gradients import Gradients
from astrolabe.plan_model import Blueprint
from astrolabe.plan_trace import Trace, recompute, traced
from astrolabe.registry import build
from astrolabe.world import World
from astrolabe_rollout import rope
from astrolabe_rollout.denoiser import Denoiser
from astrolabe_rollout.lora import add_lora, trainable_parameters
from astrolabe_rollout.model import VideoModel

#: Networks of so many blocks are traced.
FEW, MORE = 2, 3


@dataclass(frozen=True)
class Figures:
    """What was counted. Bytes are those beyond weights, adapter, snapshots and optimiser.

    Attributes:
        peak: Most bytes at a time.
        held: Bytes that stay when it is done: what a policy, a decoder or a network remembers.
        saved: Bytes that wait for the backward pass, beyond those held.
        flops: Floating-point operations.
        flops_fp32: Those of them on float32.
    """

    peak: float
    held: float = 0.0
    saved: float = 0.0
    flops: float = 0.0
    flops_fp32: float = 0.0

    def __add__(self, other: "Figures") -> "Figures":
        """Sum of each figure."""
        return Figures(
            *(getattr(self, one.name) + getattr(other, one.name) for one in fields(self))
        )

    def __mul__(self, factor: float) -> "Figures":
        """Each figure times a number."""
        return Figures(*(factor * getattr(self, one.name) for one in fields(self)))


def along(low: Figures, high: Figures, steps: float) -> Figures:
    """Go on along the straight line through two counts, so many steps from the first."""
    return low + (high + low * -1) * steps


def of_all_layers(plan: Blueprint, count: Callable[[VideoModel], Figures]) -> Figures:
    """Count with two small networks and return what the whole one takes."""

    def of(layers: int | None) -> Figures:
        # Rotations that an earlier count left would be missing here, and the difference between
        # two networks is multiplied by the number of blocks.
        rope._rotations.cache_clear()
        return count(plan.build(layers))

    if plan.layers <= 2 * MORE:
        return of(None)
    return along(of(FEW), of(MORE), (plan.layers - FEW) / (MORE - FEW))


def sampling(run: Run, plan: Blueprint, videos: int, window: int = 0) -> Figures:
    """Sample a window of a batch of videos, and what they share of a history before it.

    Args:
        run: The settings.
        plan: The model.
        videos: In the batch, all of one group.
        window: Its number; memory is the same for all after the first.
    """

    def count(model: VideoModel) -> Figures:
        _adapt(run, model)
        loss = _loss(run, model)
        # The judge of "best" reads pixels, which the meta device has not; memory is the same.
        settings = run
        if run.rollout.commit == "best":
            settings = replace(run, rollout=replace(run.rollout, commit="random"))
        record = STEPS in loss.in_keys
        model, times = (model, 1.0) if record else _one_step(model)
        policy = build_policy(settings, model, cast(Any, None), record=record)
        policy.decode = False  # see `decoding`
        with torch.no_grad(), traced(plan.kind) as trace:
            batch = _prompts(model, videos, window)
            policy(batch)
            del batch
            found = _counted(trace)
        return replace(found, flops=times * found.flops, flops_fp32=times * found.flops_fp32)

    return of_all_layers(plan, count)


def decoding(plan: Blueprint) -> tuple[Figures, Figures]:
    """Decode the second chunk of one video, and of two; what is held are the decoder's features."""
    model = plan.build(1)
    geometry = model.geometry
    shape = (geometry.chunk, geometry.channels, *geometry.latent_size)

    def count(videos: int) -> Figures:
        with torch.no_grad(), traced(plan.kind) as trace:
            latents = torch.empty(videos, *shape, device="meta")
            stream = model.codec.stream()
            stream(latents)
            trace.mark()
            before = trace.flops, trace.flops_fp32
            stream(latents)
            del latents
            return Figures(
                trace.peak,
                trace.live,
                flops=trace.flops - before[0],
                flops_fp32=trace.flops_fp32 - before[1],
            )

    return count(1), count(2)


def learning(run: Run, plan: Blueprint, windows: int) -> Figures:
    """Take an optimiser step on a micro-batch of so many windows that comes after others."""

    def count(model: VideoModel) -> Figures:
        network: Any = model.transformer.network  # diffusers types it no further
        parameters = _adapt(run, model)
        if run.train.gradient_checkpointing:
            network.enable_gradient_checkpointing(recompute(plan.kind))
        loss = _loss(run, model)
        gradients = Gradients(parameters, World())
        optimizer = torch.optim.AdamW(parameters.values(), foreach=plan.kind == "cuda")
        _fill_gradients(parameters)
        optimizer.step()  # the moments are there from the first step on
        micro = loss.noise(_windows(run, model, windows, steps=STEPS in loss.in_keys))[:windows]
        with traced(plan.kind) as trace:
            gradients.clear()
            _fill_gradients(parameters)
            gradients.add()
            before = trace.live
            losses = loss(micro.apply(_on_device))
            total = sum(value for name, value in losses.items() if name.startswith("loss_"))
            saved = trace.live - before
            del losses
            torch.autograd.backward(total)
            del total
            gradients.add()
            gradients.reduce()
            clip_grad_norm_(parameters.values(), run.train.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            found = _counted(trace)
            return replace(found, saved=saved)

    return of_all_layers(plan, count)


def _counted(trace: Trace) -> Figures:
    return Figures(trace.peak, trace.live, 0, trace.flops, trace.flops_fp32)


def _adapt(run: Run, model: VideoModel) -> dict[str, nn.Parameter]:
    """Put the run's adapter on a model, and return what is trained."""
    network = model.transformer.network
    with torch.device("meta"):
        add_lora(network, rank=run.lora.rank, alpha=run.lora.alpha, precision=run.lora.precision)
    return trainable_parameters(network)


def _fill_gradients(parameters: dict[str, nn.Parameter]) -> None:
    for parameter in parameters.values():
        parameter.grad = torch.empty_like(parameter)


def _on_device(values: Tensor) -> Tensor:
    """A copy of what a GPU computes with; Python reads whole numbers and marks."""
    if not values.is_floating_point():
        return values
    return torch.empty_like(values, device="meta", memory_format=torch.contiguous_format)


def _one_step(model: VideoModel) -> tuple[VideoModel, float]:
    """The model with one denoising step of several that are alike, and what its work is short of.

    Steps take memory one after the other, and each as much. A pass on clean latents follows them.
    """
    if model.rebuild or model.first_steps:
        return model, 1.0
    return replace(model, denoising_steps=model.denoising_steps[:1]), (len(model.sigmas) + 1) / 2


def loss_of(run: Run, model: VideoModel) -> Objective:
    """Put the run's adapter on a model without weights, and make the loss.

    Raises:
        ConfigError: If the loss refuses its options.
    """
    _adapt(run, model)
    return _loss(run, model)


def _loss(run: Run, model: VideoModel) -> Objective:
    frames, train = run.rollout.num_frames, run.train
    loss: Objective = build(
        "objectives",
        run.objective.name,
        objective_options(run),
        Denoiser(model, frames, context=train.context, mask=train.mask),
        build_snapshots(run, model.transformer.network),
        noise_levels(run, model),
        where="objective",
    )
    return loss


def _prompts(model: VideoModel, videos: int, window: int) -> TensorDict:
    """A batch as a policy sees it. Small numbers are real: Python reads them."""
    group = torch.zeros(videos, dtype=torch.int64)
    return TensorDict(
        {
            "prompt": {
                "embeds": model.text([""] * videos),
                "seed": torch.arange(videos),
                "group": group,
                "history_seed": group,
                "script": NonTensorStack(*["a prompt"] * videos),
            },
            "window": {"index": torch.full((videos,), window)},
        },
        batch_size=[videos],
    )


def _windows(run: Run, model: VideoModel, windows: int, *, steps: bool) -> TensorDict:
    """Finished windows as the buffer holds them, two of each group, one better than the other."""
    geometry, frames, count = model.geometry, run.rollout.num_frames, 2 * windows
    shape = (geometry.channels, *geometry.latent_size)
    later = run.rollout.windows > 1 or run.rollout.shared
    batch = TensorDict(
        {
            "prompt": {
                "embeds": model.text([""] * count),
                "group": torch.arange(count) // 2,
            },
            "window": {
                "index": torch.full((count,), int(later)),
                "context": torch.empty(count, geometry.context, *shape, device="meta"),
            },
            "video": {"latents": torch.empty(count, frames, *shape, device="meta")},
            "advantage": torch.arange(1.0, count + 1)[:, None],
            # All are held to the reference: the most work.
            "kl": {"selected": torch.ones(count, 1, dtype=torch.bool)},
        },
        batch_size=[count],
    )
    if steps:
        visited = len(model.sigmas)
        batch[STEPS] = torch.empty(count, visited, frames, *shape, device="meta")
    return batch
