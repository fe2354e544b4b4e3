"""The loop: sample, score, learn, and let the snapshots follow.

Written to be read beside the paper's algorithm 1. Every process runs it on its share of the videos;
what must be equal for all is computed by each from the gathered scores. Left out on purpose:
everything that is not the algorithm (files, the screen, signals) is in `astrolabe.session`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_

from astrolabe.clock import Clock
from astrolabe.collect import collected, received
from astrolabe.compose import Parts
from astrolabe.config import Run
from astrolabe.invariants import check_batch, check_first_update, check_gradients
from astrolabe.memory_retry import is_out_of_memory
from astrolabe.monitors import monitor_metrics
from astrolabe.stragglers import compared
from astrolabe_objectives import group_statistics
from astrolabe_objectives.keys import NOISE_SEED, VALID
from astrolabe_rollout.seeds import noise_seed

SELECTED = ("kl", "selected")
#: Metric: share of the windows whose advantage is known.
SCORED = "advantage/valid_fraction"

#: A few numbers a window: what all processes know of each other's videos.
JUDGED = (
    "score",
    "rounding",
    "monitor",
    ("prompt", "text"),
    ("prompt", "group"),
    ("prompt", "seed"),
    ("window", "index"),
)

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
    """What this process sampled, ``[n, T]`` windows with scores, without pixels."""
    judged: TensorDictBase
    """Scores, rewards and advantages of the ``[N, T]`` windows of all processes."""
    shown: TensorDictBase
    """The best and the worst of some groups of this process, with pixels."""
    alarm: str
    """What the alarm says; empty: nothing."""
    skipped: list[TensorDictBase]
    """Batches of updates that were not made, as a loss or gradient was not finite."""
    unscored: bool = False
    """Whether no window could be judged, so that nothing was learned."""


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
    # Sampled by "old" here, or by processes that do nothing else.
    source = collected if parts.handover is None else received
    videos = source(run, parts, clock, first)
    for step in range(first, run.train.steps):
        reseed(parts, run.train.seed, step)
        # This process's [n, T] windows, scored: + ("score", *)
        batch, shown = next(videos)
        with clock("wait"):  # for the slowest process
            judged = parts.world.gather(batch.select(*JUDGED))  # [N, T]
        with clock("score"):
            parts.reward.combine(judged)  # + ("next", "reward")
            parts.advantage(judged)  # + "advantage"
            parts.disagreement(judged)  # + ("kl", "selected")
            told = parts.alarm.watch(judged)
            watched = monitor_metrics(judged, run.rewards) | parts.alarm.metrics()
        figures = summarise(run, parts, judged)
        unscored = figures[SCORED] == 0.0
        if step == first:
            check_batch(run, parts, batch)
        with clock("update"):
            shuffle(batch, judged, parts, run, step)
            updates: list[Metrics] = []
            skipped: list[TensorDictBase] = []
            for minibatch in () if unscored else parts.buffer:
                measured = update(minibatch, parts, run, clock)
                if not measured:
                    continue
                if not usable(measured):
                    skipped.append(minibatch)
                    continue
                updates.append(measured)
                if step == 0 and len(updates) == 1:
                    check_first_update(measured)
            losses = mean(updates, [*parts.loss.out_keys, "gradient_norm"])
            followed = parts.snapshots.advance(step, losses.get("kl", 0.0) if updates else None)
        watched["guard/skipped"] = float(run.train.updates - len(updates))
        learned = {NAMES.get(name, name): value for name, value in losses.items()}
        metrics = figures | learned | watched | followed
        metrics |= compared(parts.world, clock.take(), len(judged))
        yield Step(step + 1, metrics, batch, judged, shown, told, skipped, unscored)


def shuffle(
    batch: TensorDictBase, judged: TensorDictBase, parts: Parts, run: Run, step: int
) -> None:
    """Fill the buffer with this process's part of each minibatch, in their order.

    Minibatches are drawn from the windows of all processes. What a window is noised with follows
    from a seed that goes with it, so that it learns the same wherever it goes.
    """
    windows, own = judged.numel(), len(batch)
    numbers = range(step * windows, (step + 1) * windows)
    # Of another run's seed, so that no window is trained with the noise that it was made from.
    seeds = torch.tensor([noise_seed(run.train.seed + 2, number) for number in numbers])
    judged[NOISE_SEED] = seeds.view(judged.batch_size)
    start = parts.world.rank * own
    batch.update(judged[start : start + own])
    needed = [*parts.loss.in_keys, *parts.loss.optional_keys, SELECTED, VALID]
    order = torch.randperm(windows, generator=parts.shuffle)
    parts.buffer.empty()
    parts.buffer.extend(
        parts.world.exchange(
            batch.select(*needed).contiguous().reshape(-1),
            order,
            run.train.updates,
        )
    )


def update(minibatch: TensorDictBase, parts: Parts, run: Run, clock: Clock) -> Metrics:
    """Take one optimiser step, unless a number is not `usable`; return losses and metrics.

    Nothing is done, and nothing returned, for a minibatch of which nothing could be scored.

    Micro-batches, and the parts of the processes, add up to the gradient of the whole: each loss
    weighs by its share of the samples of all.
    """
    world = parts.world
    if parts.loss.whole:
        minibatch = world.gather(minibatch)
    noised = parts.loss.noise(minibatch)
    scored = minibatch.get(VALID, torch.ones(1))
    counts = len(noised), float(noised[SELECTED].sum()), float(scored.sum())
    whole = torch.tensor(counts, dtype=torch.float64)
    if not parts.loss.whole:
        world.sum(whole)
    if not whole[2]:
        return {}
    while True:
        micros = noised.split(parts.micro_batch.size)
        if parts.loss.whole:
            micros = micros[world.rank :: world.size]
        try:
            summed = learn(micros, whole, parts, clock)
        except (RuntimeError, MemoryError) as error:
            # Where all must run the same passes, one cannot go on by itself.
            if parts.snapshots.sharded or not is_out_of_memory(error):
                raise
            parts.micro_batch.halve(error)
        else:
            break
    parts.gradients.reduce()
    measured = dict(zip(parts.loss.out_keys, world.sum(summed).tolist(), strict=True))
    norm = clip_grad_norm_(parts.parameters.values(), run.train.max_grad_norm)
    measured["gradient_norm"] = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    if usable(measured):
        parts.optimizer.step()
    parts.optimizer.zero_grad()
    return measured


def learn(micros: Sequence[TensorDictBase], whole: Tensor, parts: Parts, clock: Clock) -> Tensor:
    """Add up the gradients of micro-batches, and return their share of each loss and metric.

    Args:
        micros: This process's part of a minibatch.
        whole: Samples of the minibatch, then those of them on which the KL penalty acts.
        parts: Of the run.
        clock: Is told how far it is.
    """
    device = next(iter(parts.parameters.values())).device
    # On the device: a number is read only when all of them are added, as reading one waits for it.
    summed = torch.zeros(len(parts.loss.out_keys), dtype=torch.float64, device=device)
    parts.gradients.clear()
    for done, micro in enumerate(micros, start=1):
        losses = parts.loss(on_device(micro, device))
        shares = {name: share(name, micro, whole) for name in parts.loss.out_keys}
        total = sum(losses[name] * shares[name] for name in shares if name.startswith("loss_"))
        total.backward()
        check_gradients(parts)
        parts.gradients.add()
        summed += torch.stack([losses[name].detach().double() * shares[name] for name in shares])
        clock.progress(done / len(micros))
    return summed.cpu()


def on_device(batch: TensorDictBase, device: torch.device) -> TensorDictBase:
    """Copy a batch to a device; to a GPU from pinned memory, so that the copy waits for nothing."""
    if device.type == "cuda":
        return batch.pin_memory().to(device, non_blocking=True)
    return batch.to(device)


def usable(measured: Metrics) -> bool:
    """Whether the losses and the gradient of an update are finite."""
    return all(
        math.isfinite(value)
        for name, value in measured.items()
        if name.startswith("loss_") or name == "gradient_norm"
    )


def share(name: str, micro: TensorDictBase, whole: Tensor) -> float:
    """Share of a micro-batch in a loss or metric, which is a mean over what it is about."""
    samples, selected = float(whole[0]), float(whole[1])
    if name not in ("loss_kl", "kl"):
        return len(micro) / samples
    # The KL term is a mean over the selected samples alone.
    return float(micro[SELECTED].sum()) / max(selected, 1.0)


def reseed(parts: Parts, seed: int, step: int) -> None:
    """Start all random numbers of a step anew; those of the videos are seeds in the batch."""
    mixed = noise_seed(seed, step)
    torch.manual_seed(mixed)
    parts.shuffle.manual_seed(mixed)
    parts.loss.seed(mixed)


def summarise(run: Run, parts: Parts, judged: TensorDictBase) -> Metrics:
    """Name what the scores of a step say, in the order in which it is shown.

    What could not be scored is left out of each mean, and counted; without any score it is NaN.
    """
    means = {"reward/total": judged["next", "reward"]}
    means |= {f"reward/{name}": judged["score", name] for name in run.rewards}
    fractions = {f"valid_fraction/{name}": judged["score", name].isfinite() for name in run.rewards}
    return {
        **{name: finite_mean(values) for name, values in means.items()},
        **group_statistics(judged, reward_key=parts.advantage.reward_key),
        **{name: float(known.double().mean()) for name, known in fractions.items()},
        "kl/selected_fraction": float(judged[SELECTED][judged[VALID]].float().mean()),
    }


def mean(metrics: list[Metrics], names: Sequence[str]) -> Metrics:
    """Mean of each metric over the updates of a step that measured it; NaN without any."""
    found = {}
    for name in names:
        values = [one[name] for one in metrics]
        if not name.startswith("loss_"):  # a loss that is not finite shows
            values = [value for value in values if math.isfinite(value)]
        found[name] = sum(values) / len(values) if values else math.nan
    return found


def finite_mean(values: Tensor) -> float:
    """Mean of what is finite; NaN if nothing is."""
    return float(values.where(values.isfinite(), math.nan).nanmean())
