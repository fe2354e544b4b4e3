"""Checks of what a module reads of a batch, against the texts in ``keys``."""

import re
from collections.abc import Sequence

from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from astrolabe_rollout.checks import kind
from astrolabe_rollout.finite import is_finite
from astrolabe_rollout.keys import EMBEDS, GROUP, READS, SEED, TEXT


def check_entries(module: str, batch: TensorDictBase, keys: Sequence[NestedKey]) -> None:
    """Refuse a batch that lacks an entry, or has one of another dtype or rank.

    Floats and whole numbers may have any precision.

    Args:
        module: Who reads, for messages.
        batch: Any batch shape.
        keys: What it reads, each in `READS`.

    Raises:
        KeyError: If an entry is missing.
        TypeError: If one has another dtype.
        ValueError: If one has another rank.
    """
    for key in keys:
        value = batch.get(key, None)
        if value is None:
            raise KeyError(
                f"{module}: the batch lacks {key}; it reads {list(keys)}. Add {READS[key]}."
            )
        found = re.match(r"(\w+) \[\*B([^\]]*)\]", READS[key])
        assert found is not None
        wanted, inside = found.groups()
        if not isinstance(value, Tensor):
            if wanted == "str":
                continue
            raise TypeError(f"{module}: {key} is {type(value).__name__}. Give {READS[key]}.")
        floats = value.is_floating_point()
        integers = value.dtype.is_signed and not (floats or value.is_complex())
        fits = {"float32": floats, "int64": integers}
        if not fits.get(wanted, False):
            raise TypeError(f"{module}: {key} is {kind(value)}. Give {READS[key]}.")
        if value.ndim != batch.batch_dims + inside.count(","):
            raise ValueError(
                f"{module}: {key} is {kind(value)} in a batch {list(batch.batch_size)}. "
                f"Give {READS[key]}."
            )


def check_embeds(module: str, batch: TensorDictBase) -> None:
    """Refuse text that is no numbers, of which every video would be black.

    Raises:
        ValueError: Names the entry.
    """
    if not is_finite(batch[EMBEDS]):
        raise ValueError(f"{module}: {EMBEDS} has NaN or infinite numbers. Mend the text encoder.")


def check_groups(module: str, flat: TensorDictBase) -> None:
    """Refuse groups that cannot be: of several prompts, or with the same video twice.

    Both come of environments that were made alike and know nothing of each other.

    Args:
        module: Who reads, for messages.
        flat: ``[N]``, with groups and texts or without.

    Raises:
        ValueError: Names the group.
    """
    groups, texts = flat.get(GROUP, None), flat.get(TEXT, None)
    if not isinstance(groups, Tensor) or texts is None:
        return
    shown: dict[int, str] = {}
    videos: set[tuple[int, int]] = set()
    way = (
        "Seed environments apart by env.set_seed(seed), and where they are put together give each "
        "its share of one draw: GroupSampler(..., rank=k, world_size=n)."
    )
    for group, text, seed in zip(groups.tolist(), texts.tolist(), flat[SEED].tolist(), strict=True):
        if shown.setdefault(group, text) != text:
            raise ValueError(
                f"{module}: group {group} holds the prompts {shown[group]!r} and {text!r}, but "
                f"its videos compete for one. {way}"
            )
        if (group, seed) in videos:
            raise ValueError(
                f"{module}: two videos of group {group} have the seed {seed}, so they would be "
                f"the same. {way}"
            )
        videos.add((group, seed))
