"""A plan as people read it."""

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from astrolabe.plan import Plan, Verdict
from astrolabe.plan_fit import SERVER, Choice
from astrolabe.screen import shown
from astrolabe.view import clock_time

GIB, TIB = 2**30, 2**40
#: Parts of a phase that are named.
NAMED = 4


def show(plan: Plan, console: Console) -> None:
    """Print a plan."""
    console.print(Group(*render(plan)), soft_wrap=not console.is_terminal)


def render(plan: Plan) -> Iterator[RenderableType]:
    """Everything that is shown, from top to bottom."""
    yield Text(shown(_title(plan)), style="bold")
    yield Text()
    yield _phases(plan)
    yield Text(f"main memory  {_listed(plan.host)}", style="dim")
    yield Text(f"disk         {_listed(plan.disk)}", style="dim")
    if plan.network:
        yield Text(f"network      {size(plan.network)} sent by each process in a step", style="dim")
    if plan.verdicts:
        yield Text()
        yield _verdicts(plan)
        yield Text()
        yield _choices(plan)
        yield Text()
    for verdict in plan.verdicts:
        yield from _help(plan, verdict)
    for warning in plan.warnings:
        yield Text(shown(f"warning: {warning}"), style="yellow")
    if plan.device == "cuda":
        yield Text()
        yield Text(
            "Traced, not run: kernels' own workspaces, fragmentation and rewards on the CPU are "
            "not in it. docs/planning.md says how far to trust it.",
            style="dim",
        )


def size(count: float) -> str:
    """Write bytes for people.

    >>> size(3 * 2**40), size(3 * 2**30), size(300 * 2**20)
    ('3.0 TiB', '3.0 GiB', '300.0 MiB')
    """
    if count >= TIB:
        return f"{count / TIB:.1f} TiB"
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.1f} MiB"


def _title(plan: Plan) -> str:
    gpus = f"{plan.gpus} GPU{'s' * (plan.gpus > 1)}" if plan.device == "cuda" else "CPU"
    return (
        f"{' + '.join(plan.recipes)}: {plan.model}, {_number(plan.parameters)} parameters, "
        f"{_number(plan.trained)} trained; {gpus}. Each process samples {plan.videos} videos, "
        f"{plan.batch_size} at a time, and learns from {plan.windows} windows, "
        f"{plan.micro_batch} at a time."
    )


def _number(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _phases(plan: Plan) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("phase")
    table.add_column("peak", justify="right")
    table.add_column("largest parts")
    for phase in plan.phases:
        largest = sorted(phase.parts.items(), key=lambda part: -part[1])
        named = dict(largest[:NAMED])
        rest = sum(count for _, count in largest[NAMED:])
        if rest:
            named["rest"] = rest
        table.add_row(phase.name, size(phase.total), _listed(named))
    return table


def _listed(parts: dict[str, int]) -> str:
    return shown(", ".join(f"{name} {size(count)}" for name, count in parts.items()))


def _verdicts(plan: Plan) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("card")
    table.add_column("usable", justify="right")
    table.add_column("as it is")
    if plan.device == "cuda":
        table.add_column("step", justify="right")
    for verdict in plan.verdicts:
        fits = Text("fits", "green") if verdict.fits else Text("too big: ", "red")
        if not verdict.fits:
            fits.append(", ".join(verdict.over))
        time = [clock_time(verdict.seconds["step"])] if verdict.seconds else []
        table.add_row(verdict.card, size(verdict.usable), fits, *time)
    return table


def _choices(plan: Plan) -> Table:
    """A table of its own: beside the verdicts it would not fit into 80 columns."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", title_justify="left")
    table.title = "largest rollout.batch_size x train.micro_batch, without and with checkpointing"
    table.title_style = "dim"
    table.add_column("card", no_wrap=True)
    for title in _titles(plan.verdicts[0].choices):
        table.add_column(title)
    for verdict in plan.verdicts:
        found = [
            f"{one.batch_size} x {one.micro_batch}" if one.micro_batch else "-"
            for one in verdict.choices
        ]
        table.add_row(verdict.card, *found)
    return table


def _titles(choices: list[Choice]) -> list[str]:
    sharded = any(choice.base == "sharded" for choice in choices)
    return [
        ("with" if choice.gradient_checkpointing else "without")
        + (f"\n{choice.base}" if sharded else "")
        for choice in choices
    ]


def _help(plan: Plan, verdict: Verdict) -> Iterator[RenderableType]:
    if verdict.fits or not verdict.changes:
        return
    how = "it fits with" if verdict.helped else "it does not fit even with"
    lines = " ".join(f"--set {change}" for change in verdict.changes)
    yield Text(shown(f"{verdict.card}: {how} {lines}"))
    if verdict.helped and SERVER in lines:
        yield Text(f"  {SERVER} is another GPU, where `astrolabe serve-rewards` runs.", style="dim")
    if not verdict.helped:
        yield Text(
            "  Take fewer pixels (model.options.height, width) or frames (rollout.num_frames), or "
            "more GPUs."
        )
