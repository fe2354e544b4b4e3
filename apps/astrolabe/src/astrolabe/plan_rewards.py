"""What reward models take: their weights as their classes say, their activations by trace."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final, cast

import torch

from astrolabe.config import Run
from astrolabe.plan_passes import FEW, MORE, Figures, along
from astrolabe.plan_trace import traced
from astrolabe.registry import find, options_of
from astrolabe_rewards import Reward
from astrolabe_rewards.hpsv3 import HPSv3
from astrolabe_rewards.raft import RaftDynamics
from astrolabe_rewards.videoalign import VideoAlign, VideoAlignMQ

GIB: Final = 2**30

#: Layers, width, heads, key-value heads and feed-forward width of the language models (Qwen2-VL-7B
#: and 2B), and tokens of a sequence with an average prompt.
QWEN: Final = {"hpsv3": (28, 3584, 28, 4, 18944, 850), "videoalign": (28, 1536, 12, 2, 8960, 2100)}
#: Qwen2-VL's vision tower: layers, width, patches of a visual token; and tokens of a picture or
#: of a clip of ten frames at 336 x 588.
VISION: Final = {"layers": 32, "width": 1280, "patches": 4, "hpsv3": 252, "videoalign": 1260}
#: A forward of the smaller networks on some tens of pictures, as an estimate.
SMALL_ACTIVATIONS: Final = GIB // 2
#: The large rewards, by what their weights are called.
FAMILIES: Final = {"hpsv3": HPSv3, "videoalign": VideoAlign}
OWN: Final = "astrolabe_rewards."
#: Modules whose rewards hold one copy of the same weights in a process.
SHARING: Final = tuple(
    f"astrolabe_rewards.{name}"
    for name in ("hpsv3", "videoalign", "hpsv2", "image_reward", "clip", "pickscore", "aesthetic")
)
#: RAFT on a pair of frames of 480 x 832, as its class says.
RAFT_PAIR: Final = GIB // 2


@dataclass(frozen=True)
class RewardNeeds:
    """What a reward takes on the GPU of the process that scores.

    Attributes:
        name: Of its weights. Rewards of one name share one copy of them.
        weights: Bytes.
        activations: Most bytes while it scores.
        flops: Floating-point operations for a video.
        question: Rewards that share weights and ask the same compute it once; empty: none here.
        known: Whether anything is known of it.
    """

    name: str
    weights: int = 0
    activations: int = 0
    flops: float = 0.0
    question: str = ""
    known: bool = True


def reward_needs(run: Run, frames: int) -> list[RewardNeeds]:
    """Describe the rewards of a run, one after the other.

    Args:
        run: The settings.
        frames: Pixel frames of a window.

    Raises:
        LookupError: If there is no such reward.
    """
    found: list[RewardNeeds] = []
    copies: dict[tuple[str, ...], str] = {}  # what is shared, to its name
    for key, term in run.rewards.items():
        name, options = term.name or key, term.options
        apart = name == "worker"  # its process has a copy of its own
        if apart:
            moved = {"device": options["device"]} if options.get("device") else {}
            name, options = str(options.get("target", "")), (options.get("options") or {}) | moved
        seen = run.rollout.overview if term.scope == "video" else frames
        size = run.model.options.get("height", 480), run.model.options.get("width", 832)
        one, copy = _needs(name, options, f"rewards.{key}", seen, size)
        if apart or not copy:
            copy = (key,)
        # A second copy of the same model has the name of its setting too.
        label = one.name if one.name not in copies.values() else f"{one.name} ({key})"
        found.append(replace(one, name=copies.setdefault(copy, label)))
    return found


def _needs(
    name: str,
    options: Mapping[str, Any],  # Any: each reward has its own
    where: str,
    frames: int,
    size: tuple[int, int],
) -> tuple[RewardNeeds, tuple[str, ...]]:
    """What a reward takes, and what all that share its weights have in common, if any can."""
    maker = find("rewards", name, where)
    given = {key: value.default for key, value in options_of(maker).items()} | dict(options)
    memory = _memory_of(maker)
    if str(given.get("device")).startswith("cpu") or memory in ("none", "none here"):
        return RewardNeeds(name), ()
    if memory is None:
        return RewardNeeds(name, known=False), ()
    if _is(maker, RaftDynamics):
        pixels = size[0] * size[1] / (480 * 832)
        return RewardNeeds(name, 0, int(RAFT_PAIR * pixels * given["micro_batch"])), ()
    held = str(given.get("quantization") or given.get("dtype") or "")
    weights = weights_from(memory, held)
    if weights is None:
        # Of this project's own, it is in MiB: next to nothing.
        return RewardNeeds(name, known=maker.__module__.startswith(OWN)), ()
    family = next((name for name, kind in FAMILIES.items() if _is(maker, kind)), "")
    place = [str(given.get(option)) for option in ("weights", "base", "dtype", "device")]
    shared = (family or name, *place, held) if maker.__module__ in SHARING else ()
    if not family:
        small = SMALL_ACTIVATIONS if weights > GIB // 4 else 0
        return RewardNeeds(name, weights, small), shared
    sequences = -(-frames // given["frame_stride"]) if family == "hpsv3" else 1
    figures = qwen(family, given["max_tokens"], held == "float32")
    needs = RewardNeeds(
        family,
        weights,
        int(figures.peak),
        figures.flops * sequences,
        "grey" if _is(maker, VideoAlignMQ) and given["grayscale"] else "colour",
    )
    return needs, shared


def _is(maker: object, kind: type) -> bool:
    return isinstance(maker, type) and issubclass(maker, kind)


def _memory_of(maker: object) -> str | None:
    """What a reward says of its memory; None if it inherits that a reward takes none."""
    if _is(maker, Reward) and not any(
        "memory" in vars(kind) for kind in cast(type, maker).__mro__ if kind is not Reward
    ):
        return Reward.memory if cast(type, maker).__module__.startswith(OWN) else None
    found: str | None = getattr(maker, "memory", None)
    return found


def weights_from(memory: str, held: str) -> int | None:
    """Read bytes of weights off what a reward says of its memory.

    Args:
        memory: Such as "14.4 GiB bf16, 28.9 fp32, 8.3 at 8 bit, 5.7 at 4 bit".
        held: "bfloat16", "float32", "8bit" or "4bit".

    Returns:
        None if it does not say.

    Example:
        >>> weights_from("1.5 GiB fp32, 0.75 bf16", "bfloat16") / 2**30
        0.75
    """
    label = {"bfloat16": "bf16", "float32": "fp32", "8bit": "at 8 bit", "4bit": "at 4 bit"}
    found = re.search(rf"([\d.]+)(?: GiB)? {label.get(held, 'bf16')}", memory)
    return int(float(found[1]) * GIB) if found else None


@cache
def qwen(family: str, max_tokens: int, full: bool) -> Figures:
    """Read a full micro-batch; operations are of one sequence."""
    layers, *_, tokens = QWEN[family]
    sequences = max(max_tokens // tokens, 1)
    few, more = (_language(family, sequences, count, full) for count in (FEW, MORE))
    language = along(few, more, (layers - FEW) / (MORE - FEW))
    item = 4 if full else 2
    seen = VISION[family] * VISION["patches"]
    deep, wide = VISION["layers"], VISION["width"]
    # A layer of width w has 12 w² weights; beside input, queries, keys and values it holds 2 · 4 w.
    vision = sequences * seen * wide * 14 * item
    weights = 12 * wide**2 * deep
    flops = 2 * weights * seen + 4 * seen**2 * wide * deep
    return Figures(max(language.peak, vision), flops=language.flops / sequences + flops)


def _language(family: str, sequences: int, layers: int, full: bool) -> Figures:
    from transformers import AutoModel, Qwen2VLConfig

    models: Any = AutoModel  # its constructors are untyped

    _, width, heads, groups, inner, tokens = QWEN[family]
    config = Qwen2VLConfig(
        text_config={
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": groups,
            "intermediate_size": inner,
            "vocab_size": 8,
            **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
        },
        vision_config={"depth": 0, "hidden_size": width},
    )
    dtype = torch.float32 if full else torch.bfloat16
    with torch.device("meta"):
        made = models.from_config(config, attn_implementation="sdpa", dtype=dtype)
    with torch.no_grad(), traced("cuda") as trace:
        hidden = torch.empty(sequences, tokens, width, device="meta", dtype=dtype)
        positions = torch.arange(tokens, device="meta").expand(3, sequences, tokens)
        made.language_model(inputs_embeds=hidden, position_ids=positions, use_cache=False)
        return Figures(trace.peak, flops=trace.flops)
