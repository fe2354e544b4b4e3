"""Which sizes of batches fit into a memory, and what to set if none does."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from astrolabe.config import Run
from astrolabe.plan_memory import phases
from astrolabe.plan_needs import Needs

#: A rank below which an adapter is no longer made smaller.
LEAST_RANK = 32

#: Tokens that large rewards read at a time, where memory is short; it changes no score.
FEW_TOKENS = 4096
#: Stands for a machine that scores.
SERVER = "http://HOST:8000"

Base = Literal["replicated", "sharded"]
BASES: Final[tuple[Base, ...]] = ("replicated", "sharded")

#: Values for ``--set`` that belong together.
Change = tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """The largest batches that fit, with or without checkpointing and sharding; 0: none does."""

    gradient_checkpointing: bool
    base: Base
    batch_size: int
    micro_batch: int


def fits(needs: Needs, usable: int) -> bool:
    """Whether every phase fits into so many bytes."""
    return all(phase.total <= usable for phase in phases(needs))


def choices(needs: Needs, usable: int) -> list[Choice]:
    """Find the largest batches with and without checkpointing, and sharding where there are GPUs.

    First as many videos at a time as go, then as many windows beside them.
    """
    found = []
    for checkpointing in (False, True):
        for base in BASES[: 1 + (needs.gpus > 1)]:
            run = _variant(needs.run, checkpointing, base)
            found.append(Choice(checkpointing, base, *largest(needs.of(run), usable)))
    return found


def largest(needs: Needs, usable: int) -> tuple[int, int]:
    """Find the largest ``rollout.batch_size`` that fits, and ``train.micro_batch`` beside it."""
    share, group = needs.share, needs.run.rollout.group_size
    batches = [n for n in range(1, share.videos + 1) if share.videos % n == 0]
    if needs.run.rollout.shared:
        parted = () if needs.run.rollout.commits else [n for n in batches if group % n == 0]
        batches = [n for n in batches if n % group == 0 or n in parted]
    batch = _last(batches, lambda n: fits(needs.of(sized(needs.run, n, 1)), usable))
    if not batch:
        return 0, 0
    sizes = range(1, share.windows // share.updates + 1)
    return batch, _last(sizes, lambda n: fits(needs.of(sized(needs.run, batch, n)), usable))


def sized(run: Run, batch: int, micro_batch: int) -> Run:
    """The run with other batches."""
    return replace(
        run,
        rollout=replace(run.rollout, batch_size=batch),
        train=replace(run.train, micro_batch=micro_batch),
    )


def way_out(
    needs: Needs, usable: int, changed: Callable[[Sequence[str]], Run]
) -> tuple[list[str], bool]:
    """Find what to set so that a run fits, the cheapest first.

    Args:
        needs: Of the run, which does not fit.
        usable: Bytes.
        changed: Returns the run with values set.

    Returns:
        Values for ``--set``, and whether they are enough.
    """

    def enough(taken: Sequence[Change]) -> bool:
        return fits(needs.of(changed(_flat(taken))), usable)

    taken: list[Change] = []
    seen: list[Change] = []
    for change in _changes(needs):
        seen.append(change)
        taken = [*(one for one in taken if not _replaces(change, one)), change]
        if enough(taken):
            break
    else:
        return _flat(taken), False
    for change in reversed(taken):  # a later one may have made it needless, or too strong
        rest = [one for one in taken if one is not change]
        milder = [one for one in seen if one != change and _replaces(change, one)]
        for less in (rest, *([*rest, one] for one in milder)):
            if enough(less):
                taken = less
                break
    return _enlarged(_flat(taken), needs.of(changed(_flat(taken))), usable), True


def _enlarged(values: list[str], needs: Needs, usable: int) -> list[str]:
    """Batches that were made as small as can be, as large as they fit."""
    batch, micro_batch = largest(needs, usable)
    sizes = {"rollout.batch_size": batch, "train.micro_batch": micro_batch}
    return [
        f"{name}={sizes.get(name, value)}" for name, value in (one.split("=", 1) for one in values)
    ]


def _changes(needs: Needs) -> Iterator[Change]:
    """What saves memory, in the order in which it costs more."""
    run, share = needs.run, needs.share
    if not run.train.gradient_checkpointing:
        yield ("train.gradient_checkpointing=true",)
    if share.micro_batch > 1:
        yield ("train.micro_batch=1",)
    least = run.rollout.group_size if run.rollout.commits else 1
    if share.batch > least:
        yield (f"rollout.batch_size={least}",)
    if needs.model.kind == needs.model.text_kind == "cuda":
        yield ("model.options.text_device=cpu",)
    large: dict[str, list[str]] = {}  # rewards that share their weights change together
    for key, one in zip(run.rewards, needs.rewards, strict=True):
        if one.question:
            large.setdefault(one.name, []).append(key)
    for keys in large.values():
        if _options(run, keys[0])[1].get("max_tokens", FEW_TOKENS + 1) > FEW_TOKENS:
            yield _set(run, keys, "max_tokens", FEW_TOKENS)
    if run.rollout.overlap and run.rollout.commit != "best" and share.videos > 1:
        yield ("rollout.overlap=false",)
    if needs.gpus > 1 and run.distributed.base == "replicated":
        yield ("distributed.base=sharded",)
    if needs.gpus > 1 and run.distributed.lora == "replicated":
        yield "distributed.base=sharded", "distributed.lora=sharded"
    for keys in large.values():
        held = _options(run, keys[0])[1].get("quantization")
        for bits in {None: ("8bit", "4bit"), "8bit": ("4bit",)}.get(held, ()):
            yield _set(run, keys, "quantization", bits)
    rank, alpha = run.lora.rank, run.lora.alpha
    while rank // 2 >= LEAST_RANK and not run.lora.start:  # a given adapter has its own rank
        rank, alpha = rank // 2, max(alpha // 2, 1)
        yield f"lora.rank={rank}", f"lora.alpha={alpha}"
    for keys in large.values():
        yield tuple(
            value
            for key in keys
            for value in (
                f"rewards.{key}.name=remote",
                f"rewards.{key}.options.url={SERVER}",
                f"rewards.{key}.options.reward={run.rewards[key].name or key}",
            )
        )


def _options(run: Run, key: str) -> tuple[str, Mapping[str, Any]]:
    """Where the options of a reward are, and what is given of them; a worker passes them on."""
    term = run.rewards[key]
    if term.name == "worker":
        return f"rewards.{key}.options.options", term.options.get("options") or {}
    return f"rewards.{key}.options", term.options


def _set(run: Run, keys: Sequence[str], option: str, value: object) -> Change:
    return tuple(f"{_options(run, key)[0]}.{option}={value}" for key in keys)


def _variant(run: Run, checkpointing: bool, base: Base) -> Run:
    lora = run.distributed.lora if base == "sharded" else "replicated"
    return replace(
        run,
        train=replace(run.train, gradient_checkpointing=checkpointing),
        distributed=replace(run.distributed, base=base, lora=lora),
    )


def _last(rising: Sequence[int], good: Callable[[int], bool]) -> int:
    """The last of rising numbers that is good, 0 if none is; what is good is so with less."""
    low, high = 0, len(rising)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if good(rising[middle]) else (low, middle)
    return rising[low - 1] if low else 0


def _keys(change: Change) -> list[str]:
    return [value.partition("=")[0] for value in change]


def _replaces(change: Change, earlier: Change) -> bool:
    """Whether a change makes an earlier one void: the same settings, or a reward that moves."""
    moved = tuple(key.removesuffix("name") for key in _keys(change) if key.endswith(".name"))
    return set(_keys(earlier)) <= set(_keys(change)) or bool(moved and earlier[0].startswith(moved))


def _flat(taken: Sequence[Change]) -> list[str]:
    return [value for change in taken for value in change]
