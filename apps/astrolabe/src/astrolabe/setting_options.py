"""Options that several commands share: how the settings of a run are changed."""

from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated."),
]
Unset = Annotated[
    list[str] | None,
    typer.Option(
        "--unset",
        metavar="KEY",
        help="Before --set, take out an entry such as rewards.NAME; what is none is as by default.",
    ),
]
