"""The errors of the app that the command line shows as one line.

A part that is not installed is a plain ``LookupError`` (`astrolabe.registry`).
"""


class ConfigError(ValueError):
    """A setting that is unknown, of the wrong type, or does not go with another one."""


class MissingError(ConfigError):
    """What a run needs and does not find; its text may have several lines."""


class InvariantError(RuntimeError):
    """Something that must hold in every run does not, so its numbers would mean nothing."""
