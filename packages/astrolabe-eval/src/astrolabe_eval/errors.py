"""The errors of this package that a command line should show as one line."""


class SuiteError(ValueError):
    """A suite that cannot be used, or two that do not pair up: prompts, seeds or scores differ."""


class VideoError(ValueError):
    """A video file that is missing, cut short, or no video at all."""


class VoteError(ValueError):
    """A file of votes, or their key, that is missing, broken, or belongs to another page."""


class VBenchError(SuiteError):
    """Result files of VBench, or the program itself, that cannot be used."""


class DamageError(SuiteError):
    """A file that is not what was written; the text goes on after its name: "is empty"."""
