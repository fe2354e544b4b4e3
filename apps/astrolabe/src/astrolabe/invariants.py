"""What must hold at the first step of every run, or its numbers mean nothing.

Each check has caught a published bug somewhere: a sampler that cached other keys than the loss saw,
noise levels that the distilled model never met, an adapter that was not the only thing trained,
rewards that judged a video by another one's prompt.
"""

import math

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from astrolabe.compose import Parts
from astrolabe.config import Run
from astrolabe.errors import InvariantError
from astrolabe_rollout.sampler import prefill
from astrolabe_rollout.schedule import add_noise, to_x0

LATENTS = ("video", "latents")
EMBEDS = ("prompt", "embeds")

#: Largest relative error between two ways to the same number, by precision of the network.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
#: A video sampled alone differs by rounding that four steps amplify; another video, by more than 1.
SAME_VIDEO = 0.25


def check_batch(run: Run, parts: Parts, batch: TensorDictBase) -> None:
    """Check the first batch of a run, ``[N, T]``, before anything is learned from it.

    Raises:
        InvariantError: Says what does not hold and what to look at.
    """
    check_noise_levels(run, parts)
    if parts.handover is None:  # else groups may lie on several processes
        check_pairs(parts, batch)
        check_context(parts, batch)
    if (run.train.context, run.train.mask) == ("clean", "chunk"):
        check_cache(parts, batch)


def check_noise_levels(run: Run, parts: Parts) -> None:
    """Training may only use noise levels of sampling, unless the run asks otherwise."""
    known = parts.policy.sigmas
    foreign = [s for s in parts.loss.sigmas if not any(math.isclose(s, k) for k in known)]
    if foreign and run.train.noise_levels == "warped":
        raise InvariantError(
            f"training uses the noise levels {foreign}, at which the model never samples; it does "
            f"at {list(known)}. Remove them from the objective, or set train.noise_levels to "
            "'unwarped' if this is meant."
        )


def check_pairs(parts: Parts, batch: TensorDictBase) -> None:
    """Every video must show what its own prompt and seed give, and be in that prompt's group."""
    rows = batch[:, 0]
    texts, groups = list(rows["prompt", "text"]), rows["prompt", "group"].tolist()
    by_group: dict[int, str] = {}
    for text, group in zip(texts, groups, strict=True):
        if by_group.setdefault(group, text) != text:
            raise InvariantError(
                f"group {group} holds the prompts {by_group[group]!r} and {text!r}. "
                "Videos of a group must share the prompt: look at the environment."
            )
    expected = parts.model.text(texts)
    if relative_error(rows[EMBEDS], expected) > TOLERANCES[torch.float32]:
        raise InvariantError(
            "the text embeddings of the batch are not those of its prompts. "
            "Look at what the environment does with their order."
        )
    # With the whole group: its candidates share a history.
    size = int((rows["prompt", "group"] == rows["prompt", "group"][-1]).sum())
    last = rows[-size:].select("prompt", ("video", "fps"), ("window", "index")).clone()
    alone = parts.behaviour(last)[LATENTS][-1:]
    parts.policy.release()
    if relative_error(rows[-1:][LATENTS], alone) > SAME_VIDEO:
        raise InvariantError(
            f"the last video of the batch is not the one that its prompt {texts[-1]!r} and seed "
            "give when it is sampled alone. Look at the order of videos in the policy."
        )


def check_context(parts: Parts, batch: TensorDictBase) -> None:
    """What a later window sees must be frames of its own video, each in its place.

    Told from the window before: by its context, and by the frames that it, or another candidate of
    its group, added.
    """
    geometry, length = parts.model.geometry, parts.policy.num_frames
    for column in range(1, batch.shape[1]):
        row, earlier = batch[0, column], batch[:, column - 1]
        group = (earlier["prompt", "group"] == row["prompt", "group"]).nonzero()[:, 0].tolist()
        before = int(earlier["window", "index"][0]) * length
        old = earlier["window", "context"][0]
        known = dict(zip(geometry.held(before), old, strict=False))
        seen, numbers = row["window", "context"], geometry.held(before + length)
        if not any(
            all(
                torch.equal(seen[slot], frames[number])
                for slot, number in enumerate(numbers)
                if number in frames
            )
            for frames in (
                known | dict(enumerate(earlier[member][LATENTS], before)) for member in group
            )
        ):
            raise InvariantError(
                f"window {column} of the first video does not begin after frames of that video. "
                "Look at ('window', 'context') and at what the policy goes on from."
            )


def check_cache(parts: Parts, batch: TensorDictBase) -> None:
    """The loss must predict what the sampler's cache would: same context, same weights.

    The last chunk of a window is noised and denoised twice: through the rolling cache, after the
    clean chunks before it, and by the denoiser in one pass over the window. Once as if nothing lay
    before the window, and for the last window of a batch after what did.
    """
    keys = (LATENTS, EMBEDS, ("window", "index"), ("window", "context"))
    first, last = (batch[:1, column].select(*keys).clone() for column in (0, -1))
    first["window", "index"] = torch.zeros_like(first["window", "index"])
    _compare(parts, first)
    if int(last["window", "index"]):
        _compare(parts, last)


@torch.no_grad()
def _compare(parts: Parts, row: TensorDictBase) -> None:
    model, transformer = parts.model, parts.model.transformer
    row = row.to(next(transformer.parameters()).device)
    latents, embeds = row[LATENTS], row[EMBEDS]
    chunk, sigma = model.geometry.chunk, parts.policy.sigmas[-1]
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(latents)
    noisy = add_noise(latents, noise, sigma)

    cache = transformer.new_cache(parts.policy.capacity)
    before = int(row["window", "index"]) * latents.shape[1]
    context = row["window", "context"][:, : min(before, model.geometry.context)]
    past = latents[:, :-chunk]
    if model.rebuild:  # as if these were the first of the video
        past = torch.cat([context, past], 1)[:, -model.rebuild :]
    elif context.shape[1]:
        sink = min(model.geometry.sink, context.shape[1])
        if sink:
            prefill(transformer, context[:, :sink], embeds, cache, chunk)
        cache.skip(before - context.shape[1])  # frames that are gone
        if context.shape[1] > sink:
            prefill(transformer, context[:, sink:], embeds, cache, chunk)
    if past.shape[1]:
        prefill(transformer, past, embeds, cache, chunk)
    cache.open(chunk)
    last = noisy[:, -chunk:]
    timestep = last.new_full(last.shape[:2], 1000 * sigma)
    cached = to_x0(last, transformer.forward_chunk(last, timestep, embeds, cache), sigma)

    row["noisy"] = TensorDict(
        {"latents": noisy, "sigma": noisy.new_full(noisy.shape[:2], sigma)}, batch_size=[1]
    )
    full = parts.denoiser(row)["denoised", "latents"][:, -chunk:]
    error = relative_error(full, cached)
    precision = next(transformer.parameters()).dtype
    if error > TOLERANCES[precision]:
        raise InvariantError(
            f"the loss predicts another video than the sampler: relative error {error:.2g} between "
            f"one pass over the window and the rolling cache, {TOLERANCES[precision]} allowed in "
            f"{precision}. Look at the masks and positions of the model."
        )


def check_first_update(metrics: dict[str, float]) -> None:
    """While the policy equals "old" both implicit policies err equally and no KL has grown."""
    positive, negative = metrics.get("policy_positive"), metrics.get("policy_negative")
    if positive and negative and not math.isclose(positive, negative, rel_tol=1e-4):
        raise InvariantError(
            f"at the first update the positive policy errs by {positive:.6g}, the negative by "
            f"{negative:.6g}. They are one network then: look at the snapshots, and at layers "
            "that are random in training (dropout)."
        )
    for name in ("kl", "old_deviation"):
        if abs(metrics.get(name, 0.0)) > 1e-6:
            raise InvariantError(
                f"at the first update {name} is {metrics[name]:.6g} and not 0, though policy, old "
                "and reference are equal. Look at the snapshots and at dropout."
            )


def check_gradients(parts: Parts) -> None:
    """Gradients reach the adapter, all of it, and nothing else."""
    for name, parameter in parts.model.transformer.network.named_parameters():
        trained, gradient = name in parts.parameters, parameter.grad
        if trained and gradient is None:
            raise InvariantError(
                f"no gradient reaches {name!r} of the adapter. Look for a detach in the model."
            )
        if not trained and gradient is not None:
            raise InvariantError(
                f"a gradient reaches {name!r}, which is frozen. Only the adapter may be trained: "
                "call requires_grad_(False) on it."
            )


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Root mean square difference over the root mean square of what is expected."""
    found, expected = found.cpu().double(), expected.cpu().double()
    difference = (found - expected).square().mean().sqrt()
    return float(difference / expected.square().mean().sqrt().clamp(min=1e-12))
