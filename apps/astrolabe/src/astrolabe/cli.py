"""The command line. Torch is imported only inside commands, so that ``--help`` is quick."""

from typing import NoReturn

import typer

from astrolabe import commands_about, commands_eval, commands_rewards, commands_run, commands_video
from astrolabe.errors import ConfigError, InvariantError

#: Modules whose errors are the user's to mend; others are bugs and keep their traceback.
ERROR_MODULES = ("astrolabe_rollout.errors", "astrolabe_rewards.errors", "astrolabe_eval.errors")

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
for module in (commands_run, commands_eval, commands_video, commands_rewards, commands_about):
    app.add_typer(module.commands)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command; end with code 2 and one line for a mistake that the user can mend."""
    try:
        app(arguments, prog_name="astrolabe")
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        typer.echo(f"error: {message}", err=True)
        raise SystemExit(2) from error
    raise SystemExit(0)


def explain(error: Exception) -> str | None:
    """Return a mistake of the user in one line; None for what is a bug."""
    if isinstance(error, OSError) and error.strerror:
        import errno

        ways_out = {
            errno.ENOSPC: "Free some space, or choose another --out; what was saved is intact.",
            errno.EROFS: "Choose another --out.",
            errno.EACCES: "Choose another --out, or change the permissions.",
        }
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}. {ways_out.get(error.errno or 0, 'Check the path.')}"
    known = isinstance(error, (ConfigError, InvariantError, OSError)) or type(error) is LookupError
    if not known and type(error).__module__ not in ERROR_MODULES:
        return None
    return " ".join(str(error.args[0] if error.args else error).split())
