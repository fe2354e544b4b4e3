"""Limits of settings; each raises ValueError and says what would do."""


def at_least(name: str, value: float, low: int) -> None:
    """Refuse a value below ``low``."""
    if value < low:
        raise ValueError(f"{name} is {value}. Set it to {low} or more.")


def above_zero(name: str, value: float) -> None:
    """Refuse a value that is not above 0."""
    if not value > 0:
        raise ValueError(f"{name} is {value}. Set it above 0.")


def share(name: str, value: float) -> None:
    """Refuse a value outside 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}. Give a share from 0 to 1.")
