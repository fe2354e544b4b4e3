"""What a run needs and whether it fits, before it is started: no weights, no GPU, no network."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from astrolabe.checks import check_model, check_prompts, check_settings, check_terms
from astrolabe.config import Run
from astrolabe.errors import ConfigError
from astrolabe.load import Code, load
from astrolabe.plan_fit import Choice, choices, way_out
from astrolabe.plan_memory import GIB, Bytes, Phase, host, phases
from astrolabe.plan_needs import Needs
from astrolabe.plan_time import CARDS, Card, Work
from astrolabe.plan_work import disk, step_work
from astrolabe.preflight import own_lacks, told

SCHEMA = 1


@dataclass(frozen=True)
class Verdict:
    """Whether a run fits on a card, and how long a step takes there.

    Attributes:
        card: Name of the card.
        memory: Bytes that a process finds free.
        usable: Bytes of them less the reserve.
        fits: Whether every phase fits.
        over: Phases that do not.
        seconds: Of each part of a step, estimated; None on a CPU.
        choices: The largest batches that fit.
        changes: What to set so that it fits, in order; empty if it does or if nothing helps.
        helped: Whether these changes are enough.
    """

    card: str
    memory: int
    usable: int
    fits: bool
    over: list[str]
    seconds: dict[str, float] | None
    choices: list[Choice]
    changes: list[str]
    helped: bool


@dataclass(frozen=True)
class Plan:
    """What a run needs on each of its processes. Sizes are in bytes."""

    recipes: list[str]
    model: str
    device: str
    parameters: int
    trained: int
    gpus: int
    videos: int
    batch_size: int
    windows: int
    micro_batch: int
    keys_and_values_of_a_frame: int
    phases: list[Phase]
    host: Bytes
    disk: Bytes
    network: int
    flops: dict[str, float]
    verdicts: list[Verdict]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """The same as what JSON can hold."""
        table = asdict(self) | {"schema": SCHEMA}
        for row, phase in zip(table["phases"], self.phases, strict=True):
            row["total"] = phase.total
        return table


@dataclass(frozen=True)
class Question:
    """What is asked of a plan.

    Attributes:
        recipes: Names or files, a later one wins.
        overrides: ``a.b=value`` each.
        gpus: Processes, each with a GPU.
        memory: GiB of a GPU, or of main memory for a model on the CPU; None: those of all cards.
        reserve: Share of the memory that stays free.
        utilisation: Share of the peak that bfloat16 arithmetic reaches.
        allow_code: Whether recipes may name any code, as in `train`.
        unset: Settings that are taken out before the overrides, as `load` does it.
    """

    recipes: Sequence[str]
    overrides: Sequence[str] = ()
    gpus: int = 1
    memory: float | None = None
    reserve: float = 0.10
    utilisation: float = 0.35
    allow_code: bool = False
    unset: Sequence[str] = ()

    def run(self, changes: Sequence[str] = ()) -> Run:
        """The settings, with some changes."""
        code: Code = "any" if self.allow_code else "parts"
        return load(self.recipes, [*self.overrides, *changes], unset=self.unset, code=code)


def plan(question: Question) -> Plan:
    """Find what a run needs.

    Raises:
        ConfigError: If a setting is wrong, the processes do not divide the work, or the model is
            none of which the sizes are known.
        LookupError: If a part is not installed.
        PromptFileError: If a file of prompts that is there cannot be read.
    """
    run = question.run()
    _check(question, run)
    return answer(question, Needs(run, question.gpus))


def answer(question: Question, needs: Needs) -> Plan:
    """Make the plan of a run whose settings were checked."""
    sizes, share, found = needs.sizes, needs.share, phases(needs)
    tasks = step_work(needs)
    return Plan(
        recipes=list(question.recipes),
        model=needs.run.model.name,
        device=needs.model.kind,
        parameters=sizes.parameters,
        trained=sizes.trained,
        gpus=question.gpus,
        videos=share.videos,
        batch_size=share.batch,
        windows=share.windows,
        micro_batch=share.micro_batch,
        keys_and_values_of_a_frame=sizes.frame,
        phases=found,
        host=host(needs),
        disk=disk(needs),
        network=int(sum(task.network for task in tasks.values())),
        flops={name: task.flops + task.flops_fp32 for name, task in tasks.items()},
        verdicts=[
            _verdict(question, needs, found, tasks, card) for card in _cards(question, needs)
        ],
        warnings=list(warnings(needs)),
    )


def _check(question: Question, run: Run) -> None:
    gpus = question.gpus
    if gpus < 1:
        raise ConfigError(f"--gpus is {gpus}. Give the number of GPUs, 1 or more.")
    if question.memory is not None and not question.memory > 0:
        raise ConfigError(f"--memory is {question.memory:g}. Give GiB above 0, such as 80.")
    if not 0 <= question.reserve < 1:
        raise ConfigError(f"--reserve is {question.reserve:g}. Give a share from 0 to below 1.")
    if not 0 < question.utilisation <= 1:
        raise ConfigError(f"--utilisation is {question.utilisation:g}. Give a share up to 1.")
    if run.distributed.rollout_ranks:
        raise ConfigError(
            "plan counts processes that sample and learn. Leave distributed.rollout_ranks at 0, "
            "and ask twice: with --gpus for those that sample, whose phases are sample, decode and "
            "score, and with --gpus for those that learn, whose phase is update."
        )
    check_settings(run, gpus)
    # A plan may be made before the files are there: what is absent is a warning.
    absent = {name for lack in own_lacks(run) for name, _ in lack.settings}
    check_prompts(run, absent)
    check_model(run, gpus, absent)
    check_terms(run, offline=True)


def warnings(needs: Needs) -> Iterator[str]:
    """What is allowed and yet most likely not meant."""
    run, share, group = needs.run, needs.share, needs.run.rollout.group_size
    for lack in own_lacks(run):
        yield f"train will not start without it: {told([lack])}"
    if run.rollout.shared:
        if share.videos % group and share.batch % group and group % share.batch:
            yield (
                f"groups of {group} share a history, but each process has {share.videos} videos "
                f"in batches of {share.batch}: groups span processes unevenly. Make "
                f"rollout.num_prompts a multiple of the {needs.gpus} GPUs."
            )
        elif share.batch < group:
            yield (
                f"a group of {group} is sampled {share.batch} at a time, and its history anew each "
                f"time. With rollout.batch_size={group} it is made once."
            )
    if run.distributed.base == "sharded" and needs.gpus == 1:
        yield "distributed.base is 'sharded' on one GPU, which holds all of it anyway."
    for name, one in zip(run.rewards, needs.rewards, strict=True):
        if not one.known:
            yield f"nothing is known of rewards.{name}; it counts as nothing here."


def _cards(question: Question, needs: Needs) -> list[Card]:
    """Cards to judge for: all, or one of the memory that is asked for."""
    if question.memory is None:
        return list(CARDS) if needs.model.kind == "cuda" else []
    bytes_ = int(question.memory * GIB)
    like = next((card for card in CARDS if card.memory >= 0.98 * bytes_), CARDS[-1])
    return [replace(like, name=f"{question.memory:g} GiB", memory=bytes_)]


def _verdict(
    question: Question, needs: Needs, found: list[Phase], tasks: dict[str, Work], card: Card
) -> Verdict:
    usable = int(card.memory * (1 - question.reserve))
    over = [phase.name for phase in found if phase.total > usable]
    seconds = None
    if needs.model.kind == "cuda":
        seconds = {name: task.seconds(card, question.utilisation) for name, task in tasks.items()}
        sampled = seconds["sample"] + seconds["decode"]
        beside = max(sampled, seconds["score"]) if needs.overlapped else sampled + seconds["score"]
        seconds["step"] = beside + seconds["update"]
    changes, helped = way_out(needs, usable, question.run) if over else ([], True)
    return Verdict(
        card.name,
        card.memory,
        usable,
        not over,
        over,
        seconds,
        choices(needs, usable),
        changes,
        helped,
    )
