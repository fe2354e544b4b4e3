"""The option by which settings may name code; see `astrolabe.code_in_data`."""

from typing import Annotated

import typer

AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code",
        envvar="ASTROLABE_ALLOW_CODE",
        help="Run what settings of a run folder or a recipe name as code.",
    ),
]
