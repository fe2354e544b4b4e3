"""Seeds: which numbers are some, and the noise of each video of a run."""

from numbers import Integral


def whole_number(name: str, number: object) -> None:
    """Refuse what is no whole number.

    Raises:
        TypeError: Names it.
    """
    if not isinstance(number, Integral) or isinstance(number, bool):
        raise TypeError(f"{name} is {number!r}, which is no whole number. Give one.")


def whole_seed(seed: int) -> int:
    """Return a seed that torch's generators take.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If it has more than 64 bits.
    """
    whole_number("seed", seed)
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed is {seed}, which has more than 64 bits. Give a smaller one.")
    return int(seed)


def noise_seed(seed: int, video: int) -> int:
    """Seed of the noise of the ``video``-th video of a run, in [0, 2³²).

    Torch's CPU generator uses only the low 32 bits of a seed. Hence a one-to-one mix of 32 bits
    (the finaliser of MurmurHash3): equal seeds first come after 2³² videos, whereas random 32-bit
    numbers would collide, by the birthday paradox, within about 77 000.

    Args:
        seed: Seed of the run.
        video: Number of the video in the run, 0 or more.
    """
    return _mix(_mix(seed) + video)


def _mix(number: int) -> int:
    """Map [0, 2³²) one-to-one onto itself, neighbours far apart (fmix32 of MurmurHash3)."""
    number &= 0xFFFFFFFF
    number = (number ^ (number >> 16)) * 0x85EBCA6B & 0xFFFFFFFF
    number = (number ^ (number >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
    return number ^ (number >> 16)
