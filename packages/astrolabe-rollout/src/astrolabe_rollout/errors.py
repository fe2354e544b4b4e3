"""Errors about files; wrong arguments raise plain ``ValueError`` or ``TypeError``."""


class CheckpointError(ValueError):
    """A checkpoint or adapter that cannot be read or does not fit the network."""


class PromptFileError(ValueError):
    """A file of prompts that is missing, empty, not UTF-8, or has an entry that does not fit."""


class PrecisionWarning(UserWarning):
    """Numbers that are too small for the precision they were added in."""
