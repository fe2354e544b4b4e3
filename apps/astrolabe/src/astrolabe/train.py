"""The loop: sample, score, learn, and let the snapshots follow.

Written to be read beside the paper's algorithm 1. Left out on purpose: everything that is not the
algorithm (files, the screen, signals) is in `astrolabe.session`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from astrolabe.clock import Clock
from astrolabe.collect import collect
from astrolabe.compose import Parts
from astrolabe.config import Run
from astrolabe.invariants import check_batch, check_first_update, check_gradients
from astrolabe.monitors import monitor_metrics
from astrolabe_objectives import group_statistics
from astrolabe_rollout.collector import make_collector
from astrolabe_rollout.prompts import noise_seed

SELECTED = ("kl", "selected")

#: Names and values of what is logged for a step.
Metrics = dict[str, float]

#: Metrics of a loss under the names that all objectives share; others keep theirs.
NAMES = {
    "loss_policy": "loss/policy",
    "loss_kl": "loss/kl",
    "kl": "policy/kl",
    "old_deviation": "policy/old_deviation",
    "policy_positive": "policy/positive",
    "policy_negative": "policy/negative",
    "gradient_norm": "policy/gradient_norm",
}


@dataclass(frozen=True)
class Step:
    """What one step leaves behind."""

    number: int
    """Steps that are finished, from 1."""
    metrics: Metrics
    batch: TensorDictBase
    """What was sampled, ``[N, T]`` windows with scores, without pixels."""
    shown: TensorDictBase
    """The best and the worst of some groups, with pixels."""
    alarm: str
    """What the alarm says; empty: nothing."""
    skipped: list[TensorDictBase]
    """Batches of updates that were not made, as a loss or gradient was not finite."""


def train(run: Run, parts: Parts, clock: Clock, first: int = 0) -> Iterator[Step]:
    """Train, and yield what each step leaves behind.

    Every random number of a step follows from the run's seed and the step's number, so that a run
    which goes on at step ``first`` with restored parts repeats what an uninterrupted one does.

    Args:
        run: The settings.
        parts: From `compose`, or restored to the state after ``first`` steps.
        clock: Measures the phases and tells whoever watches.
        first: Steps that are finished already.
    """
    batches = iter(
        make_collector(
            parts.env, parts.behaviour, (run.train.steps - first) * parts.env.sampler.parts
        )
    )
    for step in range(first, run.train.steps):
        reseed(parts, run.train.seed, step)
        # [N, T] windows, sampled by "old" and scored: + ("score", *)
        batch, shown = collect(batches, parts, run, clock)
        with clock("score"):
            parts.reward.combine(batch)  # + ("next", "reward")
            parts.advantage(batch)  # + "advantage"
            parts.disagreement(batch)  # + ("kl", "selected")
            told = parts.alarm.watch(batch)
            watched = monitor_metrics(batch, run.rewards) | parts.alarm.metrics()
        if step == first:
            check_batch(run, parts, batch)
        with clock("update"):
            parts.buffer.empty()
            parts.buffer.extend(batch.select(*parts.loss.in_keys).contiguous().reshape(-1))
            updates: list[Metrics] = []
            skipped: list[TensorDictBase] = []
            for minibatch in parts.buffer:
                measured = update(minibatch, parts, run, clock)
                if not usable(measured):
                    skipped.append(minibatch)
                    continue
                updates.append(measured)
                if step == 0 and len(updates) == 1:
                    check_first_update(measured)
            losses = mean(updates)
            followed = parts.snapshots.advance(step, losses.get("kl", 0.0))
        watched["guard/skipped"] = float(len(skipped))
        metrics = summarise(run, batch, losses) | watched | followed | clock.take()
        yield Step(step + 1, metrics, batch, shown, told, skipped)


def update(minibatch: TensorDictBase, parts: Parts, run: Run, clock: Clock) -> Metrics:
    """Take one optimiser step, unless a number is not `usable`; return losses and metrics.

    Micro-batches add up to the gradient of the whole: random numbers are drawn before the batch is
    split, and each loss weighs by its own share of the samples.
    """
    noised = parts.loss.noise(minibatch)
    metrics: dict[str, Tensor | float] = {}
    device = next(iter(parts.parameters.values())).device
    for done, micro in enumerate(noised.split(run.train.micro_batch), start=1):
        losses = {
            name: value * share(name, micro, noised)
            for name, value in parts.loss(micro.to(device)).items()
        }
        total = sum(value for name, value in losses.items() if name.startswith("loss_"))
        total.backward()
        for name, value in losses.items():
            metrics[name] = metrics.get(name, 0.0) + value.detach()
        clock.progress(done * run.train.micro_batch / len(noised))
    check_gradients(parts)
    norm = clip_grad_norm_(parts.parameters.values(), run.train.max_grad_norm)
    measured = {name: float(value) for name, value in metrics.items()}
    measured["gradient_norm"] = float(norm)
    if usable(measured):
        parts.optimizer.step()
    parts.optimizer.zero_grad()
    return measured


def usable(measured: Metrics) -> bool:
    """Whether the losses and the gradient of an update are finite."""
    return all(
        math.isfinite(value)
        for name, value in measured.items()
        if name.startswith("loss_") or name == "gradient_norm"
    )


def share(name: str, micro: TensorDictBase, whole: TensorDictBase) -> float:
    """Share of a micro-batch in a loss or metric, which is a mean over what it is about."""
    if name not in ("loss_kl", "kl"):
        return len(micro) / len(whole)
    # The KL term is a mean over the selected samples alone.
    return float(micro[SELECTED].sum() / whole[SELECTED].sum().clamp(min=1))


def reseed(parts: Parts, seed: int, step: int) -> None:
    """Start all random numbers of a step anew; those of the videos are seeds in the batch."""
    mixed = noise_seed(seed, step)
    torch.manual_seed(mixed)
    parts.shuffle.manual_seed(mixed)
    parts.loss.seed(mixed)


def summarise(run: Run, batch: TensorDictBase, losses: Metrics) -> Metrics:
    """Name what a step measured, in the order in which it is shown."""
    scores = {f"reward/{name}": float(batch["score", name].nanmean()) for name in run.rewards}
    return {
        "reward/total": float(batch["next", "reward"].nanmean()),
        **scores,
        **{NAMES.get(name, name): value for name, value in losses.items()},
        **group_statistics(batch),
        "kl/selected_fraction": float(batch[SELECTED].float().mean()),
    }


def mean(metrics: list[Metrics]) -> Metrics:
    """Mean of each metric over the updates of a step; without updates there are none."""
    names = metrics[0] if metrics else ()
    return {name: sum(one[name] for one in metrics) / len(metrics) for name in names}
