"""Errors about files; wrong arguments raise plain ``ValueError`` or ``TypeError``."""


class CheckpointError(ValueError):
    """A checkpoint or adapter that cannot be read or does not fit the network."""


class PromptFileError(ValueError):
    """A prompt file that is missing, empty or not UTF-8 text."""
