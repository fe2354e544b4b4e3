"""Commands that tell what there is: recipes, parts, keys, this machine."""

from pathlib import Path
from typing import Annotated

import typer

from astrolabe.epilog import examples
from astrolabe.errors import ConfigError
from astrolabe.screen import echo

commands = typer.Typer()


@commands.command(
    epilog=examples(
        "astrolabe recipes tiny > mine.toml",
        "astrolabe train mine.toml",
    )
)
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe or overlay.")] = None,
) -> None:
    """List the recipes and the overlays that change one, or print one as a start for your own."""
    from astrolabe.load import overlay_names, read_recipe, recipe_names

    if name is not None:
        echo(read_recipe(name), nl=False)
        return
    for known in recipe_names():
        echo(read_recipe(known).splitlines()[0].removeprefix("# "))
    echo("\nOverlays, given after a recipe:")
    for known in overlay_names():
        echo(read_recipe(known).splitlines()[0].removeprefix("# "))


@commands.command(
    epilog=examples(
        "astrolabe parts rewards",
        "astrolabe parts objectives nft",
    )
)
def parts(
    kind: Annotated[
        str | None, typer.Argument(help="models, rewards, objectives or suites.")
    ] = None,
    name: Annotated[str | None, typer.Argument(help="Explain this part and its options.")] = None,
) -> None:
    """List the models, rewards, objectives and prompt lists that are installed, also your own."""
    import inspect
    from difflib import get_close_matches

    from astrolabe.contract import contract_of
    from astrolabe.registry import KINDS, find, names, options_of

    chosen = [known for known in KINDS if kind in (None, known)]
    if not chosen:
        close = get_close_matches(str(kind), KINDS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"there is no kind of parts {kind!r}.{hint} Kinds: {', '.join(KINDS)}.")
    if name is not None:
        maker = find(chosen[0], name, f"astrolabe parts {kind}")
        echo(f"{name}: {inspect.getdoc(maker) or 'no description'}\n\nOptions:")
        for option in options_of(maker).values():
            echo(f"  {option}")
        for line in contract_of(chosen[0], maker):
            echo(line)
        return
    for known in chosen:
        echo(f"{known}:")
        found = names(known)
        width = max(map(len, found), default=0)
        for part, target in found.items():
            echo(f"  {part:<{width}}  {target}")


@commands.command()
def keys() -> None:
    """Print the entries of a batch: what each is, who writes it, who reads it."""
    from astrolabe.keys_table import table

    echo(table(), nl=False)


@commands.command()
def doctor() -> None:
    """Examine this machine and the installation; exit code 1 if something needs mending."""
    from astrolabe.doctor import examine

    good = True
    for finding in examine(Path()):
        good &= finding.good
        echo(f"{'ok ' if finding.good else 'BAD'}  {finding.name:<12} {finding.detail}")
    raise typer.Exit(0 if good else 1)
