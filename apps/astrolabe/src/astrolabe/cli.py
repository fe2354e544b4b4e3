"""The command line. Torch is imported only inside commands, so that ``--help`` is quick."""

import os
from typing import NoReturn

import typer

from astrolabe import (
    commands_about,
    commands_eval,
    commands_plan,
    commands_rewards,
    commands_run,
    commands_video,
)
from astrolabe.checked_command import Checked
from astrolabe.explain import explain
from astrolabe.screen import echo, guard

app = typer.Typer(
    name="astrolabe",
    help="""Align video models with what people like, by online reinforcement learning.

    Start here: `astrolabe train` teaches the embedded model on this machine in some minutes and
    ends with a report that shows it before and after.""",
    epilog="Every command explains itself: astrolabe train --help",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
MODULES = (
    commands_run,
    commands_plan,
    commands_eval,
    commands_video,
    commands_rewards,
    commands_about,
)
for module in MODULES:
    for command in module.commands.registered_commands:
        command.cls = Checked
    app.add_typer(module.commands)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command; end with code 2 and one line for a mistake that the user can mend."""
    guard()
    try:
        app(arguments, prog_name="astrolabe")
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        several = os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1")
        who = f"rank {os.environ.get('RANK', '?')}: " if several else ""
        echo(f"{who}error: {message}", err=True)
        raise SystemExit(2) from error
    raise SystemExit(0)
