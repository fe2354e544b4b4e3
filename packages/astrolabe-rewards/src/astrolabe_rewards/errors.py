"""The errors of this package that are no plain ``ValueError`` or ``TypeError``."""


class WeightsError(FileNotFoundError):
    """Weights of a reward are missing, damaged or made for another network."""


class RewardError(ValueError):
    """A reward declares or returns what no reward may: a fault of its code, of no single video."""
