"""The one error of this package that is not a plain ``ValueError`` or ``TypeError``."""


class WeightsError(FileNotFoundError):
    """Weights of a reward are missing, damaged or made for another network."""
