"""How strong an adapter is: what its files say of rank and alpha, and whether they agree.

The update of a layer is ``s B A`` with ``s = alpha / rank``, or ``alpha / sqrt(rank)`` where it is
stabilised by rank (arXiv 2312.03732). Programs state alpha in different places; each is read, and
places that contradict each other are refused.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from astrolabe_rollout.conversion import bare
from astrolabe_rollout.errors import CheckpointError
from astrolabe_rollout.extras import wan_extra
from astrolabe_rollout.lora_names import Entries, original_name

with wan_extra():
    from peft.utils.other import get_pattern_key

ALPHAS: Final = ("lora_alpha", "network_alpha", "ss_network_alpha", "linear_alpha", "alpha")
RANKS: Final = ("r", "rank", "lora_rank", "lora_dim", "network_dim", "ss_network_dim")
_PATTERNS: Final = ("alpha_pattern", "rank_pattern")
RSLORA: Final = ("use_rslora", "rs_lora", "rslora")
#: All of these.
WORDS: Final = (*ALPHAS, *RANKS, *RSLORA, *_PATTERNS)
#: Words that speak of strength, but no program is known that says what they mean.
_UNKNOWN: Final = re.compile(r"scale|scaling|alphas|\w*(lora|network|adapter)\w*_(alphas?|scal\w+)")
#: What kohya's programs write in place of a number that there is not, or not one of.
_NONE: Final = ("", "none", "null", "dynamic")
_ROUNDING: Final = 1e-6
HOW_TO_STATE: Final = (
    'put an adapter_config.json with "peft_type": "LORA" beside it that states r, lora_alpha'
)


@dataclass(frozen=True)
class Statement:
    """What one place says of the strength of an adapter.

    Args:
        place: Its name in messages.
        alpha: Of all layers that ``alphas`` does not name; None if it says none.
        rank: The same.
        alphas: Alpha of some layers, by name or regular expression, as peft matches them.
        ranks: The same.
        rslora: Whether the scale is ``alpha / sqrt(rank)``.
    """

    place: str
    alpha: float | None = None
    rank: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False


def scales(
    path: Path, entries: Entries, statements: Sequence[Statement]
) -> dict[str, float] | None:
    """Return what the product of each layer's matrices is multiplied with; None: nothing says.

    Args:
        path: The file, for messages.
        entries: What it holds.
        statements: What its header and the files beside it say.

    Raises:
        CheckpointError: If two places contradict each other, or the shapes of the matrices.
    """
    ranks = entries.ranks
    found: list[tuple[str, dict[str, float], float]] = []
    for one in statements:
        stated: dict[str, float] = {}
        for layer, rank in ranks.items():
            raw = entries.written[layer]
            names = (raw, bare(raw), layer, original_name(layer))
            said = _matched(one.ranks, names, one.rank)
            if said is not None and said != rank:
                raise CheckpointError(
                    f"{one.place} says rank {said:g}, but the matrices of {layer!r} in "
                    f"{str(path)!r} have another rank, {rank}. They are not of one adapter: "
                    "keep each with its own settings."
                )
            alpha = _matched(one.alphas, names, one.alpha)
            if alpha is not None:
                stated[layer] = alpha / (math.sqrt(rank) if one.rslora else rank)
        if stated:
            found.append((one.place, stated, _ROUNDING))
    if not found and any(one.rslora for one in statements):
        raise CheckpointError(
            f"{str(path)!r} is said to be stabilised by rank, but its header has no alpha; what "
            f"entries of alpha mean then, programs see differently. Leave them out, and "
            f"{HOW_TO_STATE} and use_rslora."
        )
    if entries.alphas:
        found.append(("its entries of alpha", *_of_entries(entries)))
    if not found:
        return None
    result: dict[str, tuple[float, str]] = {}
    for place, stated, precision in found:
        for layer, scale in stated.items():
            before, by = result.setdefault(layer, (scale, place))
            if not math.isclose(before, scale, rel_tol=precision):
                raise CheckpointError(
                    f"the strength of {str(path)!r} is stated twice, and differently: {by} "
                    f"multiplies the update of {layer!r} by {before:g}, {place} by {scale:g}. "
                    "Keep the one that it was trained with."
                )
    # A layer that nothing speaks of has alpha = rank, for all programs that read such files.
    return {layer: result[layer][0] if layer in result else 1.0 for layer in ranks}


def speaks_of_strength(name: str) -> bool:
    """Whether a setting of this name is about rank or alpha."""
    return name in WORDS or _UNKNOWN.fullmatch(name) is not None


def of_settings(settings: Mapping[str, Any], place: str) -> Statement:
    """Return what a flat dictionary says, in the words of any program.

    Raises:
        CheckpointError: If it contradicts itself, a number is none, or a word is not known.
    """
    for name, value in settings.items():
        known = name in ALPHAS or _stated(value) in (None, "1", "1.0")
        if _UNKNOWN.fullmatch(name) and not known:
            raise CheckpointError(
                f"{place} has {name} = {value!r}, and it is not known what that scales. Take it "
                f"out, and {HOW_TO_STATE}."
            )
    alphas, ranks = (_pattern(settings, name, place) for name in _PATTERNS)
    return Statement(
        place,
        _only(settings, ALPHAS, place),
        _only(settings, RANKS, place),
        alphas,
        ranks,
        any(str(settings.get(name)).lower() in ("true", "1") for name in RSLORA),
    )


def number(value: object, place: str) -> float | None:
    """Read a finite number from a header, a JSON or a tensor; None where there is none to read.

    Raises:
        CheckpointError: If it is something else.
    """
    text = _stated(value)
    if text is None:
        return None
    try:
        result = float(text)
    except ValueError:
        result = math.nan
    if isinstance(value, bool) or not math.isfinite(result):
        raise CheckpointError(f"{place} is {value!r}, no finite number. Correct the file.")
    return result


def _stated(value: object) -> str | None:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = float(value)
    text = str(value).strip()
    return None if text.lower() in _NONE else text


def _only(settings: Mapping[str, Any], names: Sequence[str], place: str) -> float | None:
    """The one number that stands under any of several names."""
    found = {
        name: number(settings[name], f"{name} of {place}") for name in names if name in settings
    }
    stated = {name: value for name, value in found.items() if value is not None}
    if len(set(stated.values())) > 1:
        said = " and ".join(f"{name} {value:g}" for name, value in stated.items())
        raise CheckpointError(f"{place} says both {said}. Keep the one that it was trained with.")
    return next(iter(stated.values()), None)


def _pattern(settings: Mapping[str, Any], name: str, place: str) -> dict[str, float]:
    pattern = settings.get(name) or {}
    result: dict[str, float] = {}
    for key, value in pattern.items() if isinstance(pattern, Mapping) else ((name, pattern),):
        try:
            re.compile(str(key))
        except re.error as error:
            raise CheckpointError(
                f"{name} of {place} has {key!r}, no regular expression ({error}). Correct it."
            ) from error
        stated = number(value, f"{name} of {place} for {key!r}")
        if stated is not None:
            result[str(key)] = stated
    return result


def _matched(
    pattern: Mapping[str, float], names: Sequence[str], general: float | None
) -> float | None:
    for name in names:
        key: str = get_pattern_key(tuple(pattern), name)
        if key in pattern:
            return pattern[key]
    return general


def _of_entries(entries: Entries) -> tuple[dict[str, float], float]:
    """Scale by the entries of alpha, and how exact they are."""
    result: dict[str, float] = {}
    precision = _ROUNDING
    for layer, value in entries.alphas.items():
        if value.numel() != 1:
            raise CheckpointError(
                f"alpha of {layer!r} has the shape {tuple(value.shape)}, but it is one number. "
                "Correct the file."
            )
        alpha = number(value, f"alpha of {layer!r}")
        if layer in entries.ranks and alpha is not None:
            result[layer] = alpha / entries.ranks[layer]
        if value.is_floating_point():
            precision = max(precision, torch.finfo(value.dtype).eps)
    return result, precision
