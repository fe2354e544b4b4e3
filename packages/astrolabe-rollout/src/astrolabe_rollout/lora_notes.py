"""What LoRA files say beside their tensors: headers, other entries, ``adapter_config.json``."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from astrolabe_rollout.conversion import bare
from astrolabe_rollout.errors import CheckpointError
from astrolabe_rollout.extras import wan_extra
from astrolabe_rollout.input_files import parse_json, read_json
from astrolabe_rollout.lora_config import of_peft
from astrolabe_rollout.lora_names import Entries
from astrolabe_rollout.lora_scale import (
    HOW_TO_STATE,
    RSLORA,
    WORDS,
    Statement,
    number,
    of_settings,
    speaks_of_strength,
)

with wan_extra():
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY

CONFIG_FILE: Final = "adapter_config.json"


def peft_settings(file: Path, notes: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Settings of peft for a file, by the place where they stand."""
    beside = file.parent / CONFIG_FILE
    if beside.is_file():
        yield CONFIG_FILE, _read_config(beside)
    if LORA_ADAPTER_METADATA_KEY in notes:
        place = f"{LORA_ADAPTER_METADATA_KEY} of {file.name}"
        parsed = _parsed(notes[LORA_ADAPTER_METADATA_KEY], place)
        settings = _of_transformer(parsed.items(), place)
        if settings:  # else they are of a text encoder
            yield place, settings


def notes_of_others(
    file: Path, notes: Mapping[str, Any], entries: Entries, stated: bool
) -> list[Statement]:
    """What programs other than peft and diffusers note beside the tensors."""
    found: list[Statement] = []
    flat: list[tuple[str, Any]] = []
    for key, value in notes.items():
        if isinstance(value, str) and value.lstrip().startswith("{"):
            value = _parsed(value, key, strict=False)
        if key == LORA_ADAPTER_METADATA_KEY or key.startswith("modelspec."):
            continue
        if key == "ss_network_args" and isinstance(value, Mapping):
            flat += [(flag, value[flag]) for flag in RSLORA if flag in value]
        elif speaks_of_strength(_word(key)):
            flat.append((_word(key), value))
        elif isinstance(value, Mapping) and not key.startswith("ss_"):
            found += _nested(value, f"{key} of {file.name}")
    place = f"the header of {file.name}" if file.suffix == ".safetensors" else file.name
    settings = _of_transformer(flat, place)
    if _is_kohyas_own(file, notes, settings, entries, stated or bool(found)):
        settings = {name: x for name, x in settings.items() if not name.startswith("ss_")}
    return [of_settings(settings, place), *found]


def _of_transformer(settings: Iterable[tuple[str, Any]], place: str) -> dict[str, Any]:
    """Settings without what is put before their names, and without those of other networks."""
    result: dict[str, Any] = {}
    for key, value in settings:
        name = bare(key)
        if "." not in name and result.setdefault(name, value) != value:
            raise CheckpointError(
                f"{place} has two values for {name!r}, {result[name]!r} and {value!r}. "
                "Keep that of the transformer."
            )
    return result


def _word(key: str) -> str:
    """A setting's name without its place, as it is written in other files.

    >>> _word("transformer.loraAlpha"), _word("Network.Alpha"), _word("LoRA-Rank")
    ('lora_alpha', 'network_alpha', 'lora_rank')
    """
    name = re.sub(r"^(peft|config|adapter)\.", "", bare(key).lower())
    name = re.sub(r"^(lora|network)\.|[- ]", lambda found: f"{found[1] or ''}_", name)
    return next((word for word in WORDS if word.replace("_", "") == name.replace("_", "")), name)


def _nested(settings: Mapping[str, Any], place: str) -> list[Statement]:
    """Settings of a LoRA somewhere in a configuration."""
    if "peft_type" in settings:
        return [of_peft(settings, place)]
    found = [one for x in settings.values() if isinstance(x, Mapping) for one in _nested(x, place)]
    if "lora_alpha" in settings or ("alpha" in settings and {"r", "rank"} & settings.keys()):
        found.append(of_settings(settings, place))
    return found


def _is_kohyas_own(
    file: Path,
    notes: Mapping[str, Any],
    settings: Mapping[str, Any],
    entries: Entries,
    stated: bool,
) -> bool:
    """Whether what kohya's header says of the scale does not speak of these matrices.

    Raises:
        CheckpointError: If that cannot be known.
    """
    alpha, rank = (
        number(settings.get(name), f"{name} of {file.name}")
        for name in ("ss_network_alpha", "ss_network_dim")
    )
    if alpha is None:
        return False
    if re.search("_(dims|alphas)", str(notes.get("ss_network_args"))) and entries.alphas:
        return True  # some blocks or layers have their own, and all have entries that say it
    # Its programs call matrices down and up, with entries of alpha. Where these are gone, another
    # one renamed them; musubi-tuner's also multiplies them with the scale and keeps the header.
    renamed = "ss_network_module" in notes and not entries.by_kohya and not entries.alphas
    if renamed and alpha != rank:
        doubt = "was renamed by another program, and some multiply the matrices with the scale"
    elif alpha == 0:
        doubt = "has no entries of alpha, and its programs take an alpha of 0 for the rank"
    else:
        return False
    if stated or entries.alphas:
        return True
    raise CheckpointError(
        f"the header of {str(file)!r}, with ss_network_alpha {alpha:g} and ss_network_dim {rank}, "
        f"is of a program of kohya's, but the file {doubt}. Say how strong it is: {HOW_TO_STATE}."
    )


def _parsed(text: object, place: str, strict: bool = True) -> dict[str, Any]:
    try:
        content = parse_json(text) if isinstance(text, str) else text
        if isinstance(content, dict):
            return content
        raise ValueError("not a dictionary")
    except ValueError as error:
        if not strict:
            return {}
        raise CheckpointError(f"{place} is no JSON of settings ({error}). Correct it.") from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = read_json(path)
        kind = settings["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{str(path)!r} is not a configuration of peft ({error}). Save the adapter again."
        ) from error
    if kind != "LORA":
        raise CheckpointError(
            f"{str(path)!r} describes an adapter of type {kind!r}. Only LORA can be loaded: merge "
            "it into the base with peft, and load the merged checkpoint in place of the base."
        )
    return settings
