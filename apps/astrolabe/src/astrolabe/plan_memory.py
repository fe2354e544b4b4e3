"""Where the memory of a step goes: what is there all the time, and what each phase adds."""

from dataclasses import dataclass
from typing import Final

from astrolabe.plan_needs import Needs

GIB: Final = 2**30
FLOAT: Final = 4
DOUBLE: Final = 8
#: The sum over micro-batches, and the last ones, which become the gradient of the whole.
GRADIENTS: Final = DOUBLE + FLOAT
#: CUDA's own memory and the libraries' workspaces, which torch's allocator does not see, and
#: NCCL's buffers. Estimates.
CUDA_CONTEXT: Final = int(0.7 * GIB)
NCCL_BUFFERS: Final = int(0.5 * GIB)
#: Blocks that FSDP has whole at a time: the one that runs, and the next.
GATHERED_BLOCKS: Final = 2

#: The best and the worst videos of some groups, kept to be looked at.
SHOWN: Final = "videos to show"

#: Bytes, by what holds them.
Bytes = dict[str, int]


@dataclass(frozen=True)
class Phase:
    """A phase of a step on one process.

    Attributes:
        name: Of the phase.
        parts: Bytes on the device that runs the model.
    """

    name: str
    parts: Bytes

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(self.parts.values())


def phases(needs: Needs) -> list[Phase]:
    """Return what each phase takes on one process."""
    sampled, decoded, learned = needs.sampled(), needs.decoded(), needs.learned()
    scoring = {"scoring": max((one.activations for one in needs.rewards), default=0)}
    pixels = _pixels(needs)
    shown = 2 * max(needs.run.logging.samples // 2, 1) * pixels // needs.share.batch
    on_gpu = needs.model.kind == "cuda"
    # Once they are scored, windows go to main memory.
    kept = (
        standing(needs) | {SHOWN: shown} | ({} if on_gpu else _windows(needs, needs.share.videos))
    )
    made = _windows(needs, needs.share.batch * (1 + needs.overlapped)) if on_gpu else {}
    aside = {"live adapter, set aside": FLOAT * _trained(needs)}
    beside = {"pixels being scored": pixels} | scoring if needs.overlapped else {}
    streamed = {
        "keys and values": int(sampled.held),
        "features of the decoder": int(decoded.held),
    }
    making = kept | aside | beside | streamed | made | {"pixels": pixels}
    found = {
        "load": {name: size for name, size in standing(needs).items() if _at_start(name)},
        "sample": making | {"activations": int(sampled.peak - sampled.held)},
        "decode": making | {"activations": int(decoded.peak - decoded.held)},
        "score": kept | scoring | made | {"pixels": pixels},
        "update": kept
        | {
            "gradients so far": GRADIENTS * _trained(needs),
            "saved for backward": int(learned.saved),
            "gradients and activations": int(learned.peak - learned.saved - learned.held)
            - GRADIENTS * needs.sizes.trained,  # as they were traced, of the whole adapter
        },
        "save": kept,
    }
    return [Phase(name, _some(parts)) for name, parts in found.items()]


def standing(needs: Needs) -> Bytes:
    """Return what is there all the time, from the first step on."""
    sizes, model, ranks = needs.sizes, needs.model, needs.ranks
    trained = _trained(needs)
    found = {
        "base": sizes.base // ranks,
        "gathered blocks": GATHERED_BLOCKS * sizes.block if ranks > 1 else 0,
        "codec": sizes.codec,
        "text encoder": model.text_bytes if model.text_kind == model.kind else 0,
        "adapter": FLOAT * trained,
        "snapshots": (2 + needs.run.rollout.lag) * FLOAT * trained,
        "AdamW moments": 2 * FLOAT * trained,
        # Gradients, of which a process has no more than of the adapter.
        "left by the update": int(needs.learned().held) * trained // sizes.trained,
        # Rewards of one name have one copy of their weights.
        **{f"reward {one.name}": one.weights for one in needs.rewards},
    }
    if model.kind == "cuda":
        found["CUDA"] = CUDA_CONTEXT + (NCCL_BUFFERS if needs.gpus > 1 else 0)
    return _some(found)


def host(needs: Needs) -> Bytes:
    """Return main memory of one process, beside Python and its libraries."""
    sizes, model = needs.sizes, needs.model
    length, width = model.text_shape
    beside = model.kind == "cuda" and model.text_kind == "cpu"
    window = FLOAT * sizes.latent * (needs.run.rollout.num_frames + sizes.context)
    return _some(
        {
            "text encoder": model.text_bytes if beside else 0,
            "base while it is loaded": sizes.base,
            "windows to learn from": (window + 2 * length * width) * needs.share.windows,
            "checkpoint while it is written": 6 * FLOAT * _trained(needs),
        }
    )


def _trained(needs: Needs) -> int:
    """Numbers of the adapter that a process holds."""
    shared = needs.run.distributed.lora == "sharded"
    return needs.sizes.trained // (needs.ranks if shared else 1)


def _windows(needs: Needs, videos: int) -> Bytes:
    """Latents and contexts of so many videos."""
    rollout = needs.run.rollout
    frames = rollout.windows * (rollout.num_frames + needs.sizes.context)
    return {"sampled windows": FLOAT * needs.sizes.latent * frames * videos}


def _pixels(needs: Needs) -> int:
    """Pixels of a batch of videos."""
    frames = needs.sizes.window + needs.run.overview
    return needs.share.batch * needs.run.rollout.windows * frames * needs.sizes.picture


def _at_start(name: str) -> bool:
    """Whether something is there before the first step."""
    return name not in ("AdamW moments", "left by the update") and not name.startswith("reward ")


def _some(parts: Bytes) -> Bytes:
    return {name: size for name, size in parts.items() if size > 0}
