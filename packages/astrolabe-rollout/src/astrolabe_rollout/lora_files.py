"""LoRA files of all programs: peft's and diffusers' folders, LongLive's, kohya's, ComfyUI's."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from astrolabe_rollout.checkpoints import ENDINGS, read_file
from astrolabe_rollout.errors import CheckpointError
from astrolabe_rollout.extras import wan_extra
from astrolabe_rollout.finite import check_finite
from astrolabe_rollout.hub import locate
from astrolabe_rollout.lora_config import configured, named_layers, of_peft
from astrolabe_rollout.lora_names import Entries, sort_entries
from astrolabe_rollout.lora_notes import CONFIG_FILE, notes_of_others, peft_settings
from astrolabe_rollout.lora_scale import scales

with wan_extra():
    from diffusers.loaders.lora_base import LORA_WEIGHT_NAME, LORA_WEIGHT_NAME_SAFE
    from peft import LoraConfig
    from safetensors import safe_open

logger = logging.getLogger(__name__)

WEIGHTS_FILE: Final = "adapter_model.safetensors"
#: What the file of a folder is called by peft and by diffusers; of several, the first is read.
_USUAL: Final = (WEIGHTS_FILE, "adapter_model.bin", LORA_WEIGHT_NAME_SAFE, LORA_WEIGHT_NAME)

#: Where training code keeps the generator's LoRA beside the critic's.
CONTAINERS: Final = ("generator_lora", "lora", "state_dict")


@dataclass(frozen=True)
class Adapter:
    """A LoRA as it was read.

    Args:
        config: Peft's settings of it; ranks and alphas are those of every layer.
        weights: ``<layer>.lora_A.weight`` ``[r, in]`` and ``<layer>.lora_B.weight`` ``[out, r]`` by
            diffusers' names of the layers.
        scales: What the product of each layer's matrices is multiplied with.
        entries: What its file holds.
        targets: Settings of peft that name the layers it has, and where they stand; or None.
    """

    config: LoraConfig
    weights: Mapping[str, Tensor]
    scales: Mapping[str, float]
    entries: Entries
    targets: tuple[Mapping[str, Any], str] | None

    def rank(self, layer: str) -> int:
        """Return the rank of a layer, or what most layers have."""
        rank: int = self.entries.ranks.get(layer, self.config.r)
        return rank

    def layers_of(self, names: Iterable[str]) -> set[str]:
        """Return which linear layers of a network it should have matrices for."""
        named = None
        if self.targets is not None:
            named = named_layers(*self.targets, self.entries, names)
        return set(self.scales) if named is None else named


def read_lora(path: str | Path) -> Adapter:
    """Read a LoRA with diffusers' names of the layers, and how strong it is.

    The strength is what is stated: in ``.alpha`` entries, in the header of a ``.safetensors``, in
    ``adapter_config.json`` in the same folder. If nothing is stated, alpha is the rank, as for
    every program that reads such files.

    Args:
        path: A file of any program, or a folder with one, such as peft's and diffusers'.

    Raises:
        CheckpointError: If a file is missing, damaged, no LoRA, or holds more than the two matrices
            of linear layers, or numbers that are not finite; or if what is stated is contradictory.
    """
    path = Path(path)
    named = path.is_file() or (path.suffix in ENDINGS and not path.is_dir())
    file = path if named else _file_of(path)
    content, notes = _unwrapped(file)
    # Of a strength it is said where it stands, see `scales`.
    check_finite(file, {key: x for key, x in content.items() if not key.endswith(".alpha")})
    entries = sort_entries(file, content)
    peft = dict(peft_settings(file, notes))
    statements = [of_peft(settings, place) for place, settings in peft.items()]
    statements += notes_of_others(file, notes, entries, bool(statements))
    strength = scales(file, entries, statements)
    if strength is None:
        if file.stem == Path(WEIGHTS_FILE).stem:
            raise CheckpointError(
                f"peft states how strong {str(file)!r} is in {CONFIG_FILE}, and there is none "
                "beside it. Put it there: it was saved or published with the weights."
            )
        logger.info("%s states no alpha: taken as the rank of each layer", file)
        strength = dict.fromkeys(entries.ranks, 1.0)
    settings = next(iter(peft.values()), {})
    targets = next(((it, place) for place, it in peft.items() if it.get("target_modules")), None)
    config = configured(entries, strength, settings)
    return Adapter(config, entries.weights, strength, entries, targets)


def locate_lora(source: str | Path, option: str) -> Path:
    """Return the local path of a LoRA, with the settings that lie beside it.

    Args:
        source: See `astrolabe_rollout.hub.locate`.
        option: The setting that names it, for messages.

    Raises:
        CheckpointError: If it is not here and cannot be downloaded.
    """
    return locate(source, "LoRA", option, beside=(CONFIG_FILE,))


def _file_of(folder: Path) -> Path:
    """The file with the weights in a folder."""
    for name in _USUAL:
        if (folder / name).is_file():
            return folder / name
    found = sorted(file for file in folder.glob("*") if file.suffix in ENDINGS)
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(
            f"{str(folder)!r} holds {len(found)} files of weights: "
            f"{', '.join(file.name for file in found[:4])}. Name one of them."
        )
    raise CheckpointError(_missing(folder / WEIGHTS_FILE))


def _unwrapped(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file, and what is noted beside them."""
    content = read_file(path)
    notes: dict[str, Any] = {}
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            notes = dict(file.metadata() or {})
    if isinstance(content, Mapping):
        for name in CONTAINERS:
            if isinstance(content.get(name), Mapping) and content[name]:
                notes |= {str(key): value for key, value in content.items() if key != name}
                content = content[name]
                break
    if not isinstance(content, Mapping):
        content = {"": content}
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    others = {str(name): value for name, value in content.items() if not isinstance(value, Tensor)}
    alphas = {name: value for name, value in others.items() if name.endswith(".alpha")}
    if (content and not tensors) or not all(isinstance(x, (int, float)) for x in alphas.values()):
        raise CheckpointError(
            f"{str(path)!r} holds no LoRA: a flat dictionary of tensors was expected, or one as "
            f"{' or '.join(CONTAINERS)}."
        )
    tensors |= {name: Tensor([value]) for name, value in alphas.items()}
    return tensors, notes | {name: x for name, x in others.items() if name not in alphas}


def _missing(path: Path) -> str:
    there = ", ".join(sorted(entry.name for entry in path.parent.glob("*"))) or "nothing"
    return (
        f"there is no {path.name} in {str(path.parent)!r}, which holds {there}. "
        "Name the folder that save_lora, peft or diffusers wrote, or a file with a LoRA."
    )
