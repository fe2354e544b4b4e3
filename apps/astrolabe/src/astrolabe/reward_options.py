"""Options that several commands share: which rewards, and how they are set."""

from typing import Annotated

import typer

RewardNames = Annotated[
    list[str] | None,
    typer.Option("--reward", help="Names of rewards; see astrolabe parts rewards."),
]
RewardRecipes = Annotated[
    list[str] | None,
    typer.Option("--recipe", help="Recipe whose rewards and judges are known, with their options."),
]
RewardOverrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="rewards.NAME.options.X=VALUE", help="Option of a reward."),
]
