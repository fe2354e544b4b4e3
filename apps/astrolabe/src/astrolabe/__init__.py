"""Online RL alignment of distilled autoregressive video models.

The app that puts the four packages together: `astrolabe.config` holds the settings,
`astrolabe.compose` makes the parts, `astrolabe.train` is the loop, `astrolabe.cli` the commands.
"""

from importlib import import_module


def __getattr__(name: str) -> object:
    if name == "__version__":  # read when asked for: the command line starts often
        return import_module("importlib.metadata").version("astrolabe")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
