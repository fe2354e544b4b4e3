"""The errors of this package that a command line should show as one line."""


class SuiteError(ValueError):
    """A prompt suite that cannot be used: missing, empty, not text, or prompts without a seed."""


class VideoError(ValueError):
    """A video file that is missing, cut short, or no video at all."""
