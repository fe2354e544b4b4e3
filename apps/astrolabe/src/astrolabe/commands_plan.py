"""The command that says what a run needs before it is started."""

from typing import Annotated

import typer

from astrolabe.code_option import AllowCode
from astrolabe.epilog import examples
from astrolabe.screen import echo
from astrolabe.setting_options import Overrides, Unset

commands = typer.Typer()


@commands.command(
    epilog=examples(
        "astrolabe plan self_forcing_multi",
        "astrolabe plan self_forcing_multi gpu_48gb --memory 48",
        "astrolabe plan krea_14b_multi --gpus 8 --set distributed.base=sharded --memory 80",
        "astrolabe plan longlive_streaming --gpus 8 --json > plan.json",
    )
)
def plan(
    recipes: Annotated[
        list[str], typer.Argument(metavar="RECIPE...", help="Names or .toml files; a later wins.")
    ],
    overrides: Overrides = None,
    unset: Unset = None,
    gpus: Annotated[int, typer.Option(help="Processes of torchrun, each with a GPU.")] = 1,
    memory: Annotated[
        float | None,
        typer.Option(help="GiB of each GPU, of main memory on a CPU; by default usual cards."),
    ] = None,
    reserve: Annotated[
        float, typer.Option(help="Share of the memory to keep free, for fragments and workspaces.")
    ] = 0.10,
    utilisation: Annotated[
        float, typer.Option(help="Share of a card's bfloat16 peak that is reached.")
    ] = 0.35,
    allow_code: AllowCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what a run needs, whether it fits and how long a step takes, before it is started.

    Needs no GPU, no weights and no network: the run's own code is traced on tensors without
    values. Names the peak of each phase and what is in it, the largest batches that fit, with and
    without gradient checkpointing and sharding, and, if it does not fit, what to set.
    """
    from astrolabe.plan import Question
    from astrolabe.plan import plan as make_plan

    question = Question(
        recipes,
        overrides or [],
        gpus,
        memory,
        reserve,
        utilisation,
        allow_code,
        unset or [],
    )
    found = make_plan(question)
    if as_json:
        import json

        echo(json.dumps(found.to_dict(), indent=2))
        return
    from astrolabe.plan_view import show
    from astrolabe.screen import console

    show(found, console())
