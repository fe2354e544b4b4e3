"""Errors about files and models; wrong arguments raise plain ``ValueError`` or ``TypeError``."""

from collections.abc import Collection


class CheckpointError(ValueError):
    """A checkpoint or adapter that cannot be read or does not fit the network."""


class PromptFileError(ValueError):
    """A file of prompts that is missing, empty, not UTF-8, or has an entry that does not fit."""


class NotFiniteError(ValueError):
    """A model that samples NaN or infinite numbers: every video of them would be black."""


class PrecisionWarning(UserWarning):
    """Numbers that are too small for the precision they were added in."""


def some(names: Collection[str]) -> str:
    """The first few of a list, for an error message."""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(list(names)[:3]) + rest
