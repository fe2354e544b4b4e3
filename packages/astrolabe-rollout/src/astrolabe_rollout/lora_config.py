"""Settings of peft in LoRA files: what of them is carried, and which layers they name."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, Final

from astrolabe_rollout.conversion import bare
from astrolabe_rollout.errors import CheckpointError
from astrolabe_rollout.extras import wan_extra
from astrolabe_rollout.lora_names import Entries, original_name
from astrolabe_rollout.lora_scale import Statement, of_settings

with wan_extra():
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils import INCLUDE_LINEAR_LAYERS_SHORTHAND

#: Which layers a configuration speaks of.
_TARGETS: Final = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
#: What is read elsewhere, or makes no difference to what a trained adapter computes.
_CARRIED: Final = frozenset(
    (
        *_TARGETS,
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_bias"),
        *("peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision"),
        *("peft_version", "inference_mode", "lora_dropout", "fan_in_fan_out", "runtime_config"),
        *("init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    )
)
#: Starts that leave the base as it is; others move a part of its weights into the adapter.
_STARTS: Final = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


def of_peft(settings: Mapping[str, Any], place: str) -> Statement:
    """Return what a configuration of peft says; what it leaves out has peft's own default.

    Raises:
        CheckpointError: If it asks for more than two matrices of each layer, or is damaged.
    """
    default = asdict(LoraConfig())
    for name, value in settings.items():
        if name not in _CARRIED and value not in (None, False, "", [], {}, default.get(name)):
            raise CheckpointError(
                f"{place} asks for {name} = {value!r}, which is not carried: only the two matrices "
                "of linear layers are. Merge the adapter into the base with peft, and load the "
                "merged checkpoint in place of the base."
            )
    if settings.get("init_lora_weights") not in _STARTS:
        raise CheckpointError(
            f"{place} has init_lora_weights = {settings['init_lora_weights']!r}: the adapter was "
            "trained on a base that this start changed. Save it again with peft's "
            "path_initial_model_for_weight_conversion, which makes it one for the unchanged base."
        )
    filled = {name: default[name] for name in ("r", "lora_alpha")} | dict(settings)
    return of_settings(filled, place)


def named_layers(
    settings: Mapping[str, Any], place: str, entries: Entries, names: Iterable[str]
) -> set[str] | None:
    """Return which layers of a network a configuration names; None if it names none at all.

    Args:
        settings: The configuration.
        place: Its name in messages.
        entries: The adapter, whose layers tell how its writer called those of the network.
        names: The network's linear layers.

    Raises:
        CheckpointError: If it is not one of peft.
    """
    targets = settings.get("target_modules")
    if targets is None:
        return None
    if isinstance(targets, str) and targets.lower() == INCLUDE_LINEAR_LAYERS_SHORTHAND:
        return set(names)
    try:
        config = LoraConfig(**{name: settings[name] for name in _TARGETS if name in settings})
        for spell in _spellings(entries):
            named = {
                name
                for name in names
                if any(check_target_module_exists(config, spelling) for spelling in spell(name))
            }
            if not named.isdisjoint(entries.written):
                break
        return named
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise CheckpointError(
            f"{place} names its layers in a way that peft does not read ({error}). "
            "Save the adapter again."
        ) from error


def configured(
    entries: Entries, scales: Mapping[str, float], settings: Mapping[str, Any]
) -> LoraConfig:
    """Return peft's configuration of an adapter, whatever program wrote it.

    Args:
        entries: The adapter.
        scales: What the product of each layer's matrices is multiplied with.
        settings: Peft's settings where there are some, for what only training needs.
    """
    ranks = entries.ranks
    rank, rank_pattern = _general(ranks)
    alpha, alpha_pattern = _general({name: _whole(scales[name] * ranks[name]) for name in ranks})
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
        target_modules=sorted(ranks),
        lora_dropout=float(settings.get("lora_dropout") or 0.0),
    )


def _spellings(entries: Entries) -> Iterator[Callable[[str], list[str]]]:
    """What a writer may call a layer, by diffusers' name: as it does in the file, or otherwise."""
    plain = {layer: bare(raw) for layer, raw in entries.written.items()}
    heads = {""} | {
        raw.removesuffix(plain[layer])
        for layer, raw in entries.written.items()
        if raw.endswith(plain[layer])
    }
    namings: tuple[Callable[[str], str], ...] = (str, original_name)
    own = [x for x in namings if any(x(layer) == name for layer, name in plain.items())]
    for some in (own, namings):
        yield partial(_called, heads, some)


def _called(heads: Iterable[str], namings: Iterable[Callable[[str], str]], layer: str) -> list[str]:
    return [head + naming(layer) for head in heads for naming in namings]


def _general(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The commonest value, and a pattern of peft for the layers that have another."""
    common = Counter(values.values()).most_common(1)[0][0]
    by_ending: dict[str, set[Any]] = {}
    for layer, value in values.items():
        by_ending.setdefault(_ending(layer), set()).add(value)
    return common, {
        _ending(layer) if len(by_ending[_ending(layer)]) == 1 else layer: value
        for layer, value in values.items()
        if value != common
    }


def _ending(layer: str) -> str:
    return re.sub(r"^blocks\.\d+\.", "", layer)


def _whole(alpha: float) -> int | float:
    near = round(alpha)
    return near if math.isclose(alpha, near, rel_tol=1e-9) else alpha
