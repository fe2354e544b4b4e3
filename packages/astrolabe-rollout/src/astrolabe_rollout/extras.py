"""What to install where a library of the models is absent.

Prompts, groups, geometry and the environment do without these libraries, so that they are an extra.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import requires
from typing import Final

#: What the extra brings, as it is imported.
WAN: Final = (
    "diffusers",
    "ftfy",
    "huggingface_hub",
    "peft",
    "safetensors",
    "tokenizers",
    "transformers",
)


@contextmanager
def wan_extra() -> Iterator[None]:
    """Import libraries of the extra, and say what brings them where one is absent.

    Raises:
        ModuleNotFoundError: If one is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in WAN:
            raise  # a library is there, and broken
        raise ModuleNotFoundError(
            f"The models of astrolabe_rollout need {error.name}. Install it: {installs('wan')}.",
            name=error.name,
        ) from None


def installs(extra: str) -> str:
    """Return the command that installs what an extra brings, wherever this package came from.

    Example:
        >>> installs("ray")
        "pip install 'ray>=2.9'"
    """
    marked = re.compile(rf"(.+?)\s*;.*extra == ['\"]{extra}['\"]")
    found = [
        match[1] for line in requires("astrolabe-rollout") or () if (match := marked.match(line))
    ]
    return f"pip install {' '.join(map(repr, found))}"
