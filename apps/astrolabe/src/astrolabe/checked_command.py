"""Commands whose numbers are checked before anything else is done with them."""

from typing import Any

from typer.core import TyperCommand

from astrolabe.errors import ConfigError
from astrolabe.limits import check_option


class Checked(TyperCommand):
    """A command that refuses numbers outside `astrolabe.limits.OPTIONS`."""

    def invoke(self, ctx: Any) -> Any:  # Any: a context of the click inside Typer; any result
        """Check what was typed, then do it."""
        for parameter in self.params:
            name = str(parameter.name)
            try:
                check_option(name, parameter.opts[0], ctx.params.get(name))
            except ValueError as error:
                raise ConfigError(str(error)) from error
        return super().invoke(ctx)
