"""The one place that says between which numbers a setting or an option lies.

All are finite. The upper ends are far above what any machine runs: they are there so that a slip of
the keyboard is refused at once, and not by a machine that counts to it.
"""

import inspect
import math
from collections.abc import Iterator
from dataclasses import fields
from types import NoneType
from typing import Any, Final, get_args

#: Least and largest value; a least value of `ABOVE_0` is excluded.
Range = tuple[float, float]

SHARE: Final = (0.0, 1.0)
ABOVE_0: Final = math.ulp(0.0)
STEPS: Final = 10**9
COUNT: Final = 10**6
VIDEOS: Final = 10**5
WEIGHT: Final = 1e6
TIME: Final = 1e7
SEED: Final = 2**32 - 1
#: Largest size of a number among the options of a part, which knows its own ranges.
PART: Final = 1e12

SETTINGS: Final[dict[str, Range]] = {
    "Lora.rank": (1, VIDEOS),
    "Lora.alpha": (1, COUNT),
    "Evaluation.num_videos": (0, COUNT),
    "Evaluation.num_frames": (0, COUNT),
    "Evaluation.seconds": (0, VIDEOS),
    "Evaluation.batch_size": (1, VIDEOS),
    "Evaluation.seed": (0, SEED),
    "RewardTerm.weight": (-WEIGHT, WEIGHT),
    "RewardTerm.mean": (-1e12, 1e12),
    "RewardTerm.std": (ABOVE_0, 1e12),
    "Guard.kl_factor": (1, WEIGHT),
    "Guard.window": (10, STEPS),
    "Guard.margin": (ABOVE_0, WEIGHT),
    "Guard.min_fall": (0, WEIGHT),
    "Guard.max_skipped": (1, STEPS),
    "Rollout.num_prompts": (1, VIDEOS),
    "Rollout.group_size": (1, VIDEOS),
    "Rollout.num_frames": (1, VIDEOS),
    "Rollout.windows": (1, VIDEOS),
    "Rollout.length": (0, VIDEOS),
    "Rollout.starts": (0, VIDEOS),
    "Rollout.curriculum": (0, STEPS),
    "Rollout.scene_windows": (0, VIDEOS),
    "Rollout.overview": (2, VIDEOS),
    "Rollout.batch_size": (0, COUNT),
    "Rollout.lag": SHARE,
    "Snapshots.old_decay": SHARE,
    "Snapshots.old_slope": SHARE,
    "Snapshots.old_delay": (0, STEPS),
    "Snapshots.old_cap": SHARE,
    "Snapshots.old_every": (1, STEPS),
    "Snapshots.reference_max_kl": (0, WEIGHT),
    "Snapshots.reference_max_epochs": (0, STEPS),
    "Train.steps": (1, STEPS),
    "Train.seed": (0, SEED),
    "Train.updates": (1, COUNT),
    "Train.micro_batch": (1, COUNT),
    "Train.lr": (ABOVE_0, 1e3),
    "Train.betas": (0, 1 - 2**-53),
    "Train.eps": (0, 1e3),
    "Train.weight_decay": (0, 1e3),
    "Train.max_grad_norm": (ABOVE_0, 1e12),
    "Distributed.shard_ranks": (0, VIDEOS),
    "Distributed.rollout_ranks": (0, VIDEOS),
    "Distributed.timeout": (ABOVE_0, TIME),
    "Logging.checkpoint_every": (1, STEPS),
    "Logging.keep": (1, STEPS),
    "Logging.keep_best": (0, STEPS),
    "Logging.samples_every": (0, STEPS),
    "Logging.samples": (1, VIDEOS),
}


#: Of the command line, by the name of the parameter; the same in all commands.
OPTIONS: Final[dict[str, Range]] = {
    "num_videos": (0, COUNT),
    "seconds": (ABOVE_0, VIDEOS),
    "frames": (1, COUNT),
    "step": (0, STEPS),
    "batch_size": (1, VIDEOS),
    "seed": (0, SEED),
    "num_seeds": (1, VIDEOS),
    "repeats": (2, VIDEOS),
    "pairs": (1, VIDEOS),
    "port": (0, 65535),
    "max_mib": (1, COUNT),
    "max_memory_mib": (1, COUNT),
    "queue_size": (1, VIDEOS),
    "max_batch": (1, VIDEOS),
    "max_wait": (0, TIME),
    "gpus": (1, VIDEOS),
    "memory": (0, COUNT),
    "reserve": SHARE,
    "utilisation": SHARE,
}


def check_option(parameter: str, written: str, value: Any) -> None:  # Any: what was parsed
    """Refuse a number of the command line that is not finite or outside its range.

    Args:
        parameter: Its name in `OPTIONS`.
        written: As it is typed, for the message.
        value: A number, several of them, or something else, which is passed over.

    Raises:
        ValueError: Names it, and says what would do.
    """
    for number in _numbers(value):
        between(written, number, *OPTIONS[parameter])


def check_numbers(settings: Any) -> None:  # Any: a dataclass of settings
    """Refuse a number of a table of settings that is not finite or outside its range.

    Raises:
        ValueError: Names it, and says what would do.
    """
    for item in fields(settings):
        for number in _numbers(getattr(settings, item.name)):
            low, high = SETTINGS[f"{type(settings).__name__}.{item.name}"]
            between(item.name, number, low, high)


def check_part_option(
    written: str,
    parameter: inspect.Parameter,
    value: Any,  # Any: from the settings
) -> None:
    """Refuse an option of a part that is not of the type, or not near the numbers, that it takes.

    A type counts where the part's constructor states ``int``, ``float`` or ``bool`` alone or
    beside None, or states none and has a default of one of them. What lies inside these bounds is
    the part's own matter.

    Args:
        written: As it is set, for the message.
        parameter: That of the part's constructor.
        value: What is set.

    Raises:
        ValueError: Names it, and says what would do.
    """
    stated = parameter.annotation
    if stated is parameter.empty and parameter.default is not parameter.empty:
        stated = type(parameter.default)
    kinds = {*(get_args(stated) or (stated,))}
    if value is None and NoneType in kinds:
        return
    for kind, name in ((bool, "true or false"), (int, "a whole number"), (float, "a number")):
        fits = type(value) is kind or (kind is float and type(value) is int)
        if kinds - {NoneType} == {kind} and not fits:
            raise ValueError(f"{written} is {value!r:.80}. Give {name}.")
    for number in _numbers(value):
        between(written, number, -PART, PART)


def between(name: str, value: float, low: float, high: float) -> None:
    """Refuse a value that is not finite, below ``low`` or above ``high``.

    Raises:
        ValueError: Names it, and says what would do.
    """
    if low <= value <= high:
        return
    if (low, high) == SHARE and -math.inf < value < math.inf:
        raise ValueError(f"{name} is {_short(value)}. Give a number from 0 to 1.")
    if value < low:
        value = value if value == -math.inf else max(value, -1e30)
        way_out = "above 0" if low == ABOVE_0 else f"to {low} or more"
        raise ValueError(f"{name} is {value}. Set it {way_out}.")
    if value > high and value != math.inf:
        raise ValueError(f"{name} is {_short(value)}. Set it to {high:.15g} or less.")
    raise ValueError(f"{name} is {value}. Give a finite number.")


def _short(value: float) -> str:
    """A number that may have more digits than anybody reads."""
    return "far too large" if value > 1e30 else str(value)


def _numbers(value: Any) -> Iterator[float]:  # Any: of a setting
    """Numbers of a value, and of the lists in it; free options are their part's own matter."""
    if isinstance(value, (tuple, list)):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value
