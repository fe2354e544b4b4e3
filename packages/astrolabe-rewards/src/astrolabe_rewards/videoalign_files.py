"""The files of VideoReward: which checkpoint of a folder, and what its settings say."""

import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import nn

from astrolabe_rewards.errors import UNREADABLE, WeightsError
from astrolabe_rewards.input_files import read_json
from astrolabe_rewards.needs import VIDEOREWARD_CONFIG as CONFIG
from astrolabe_rewards.qwen_weights import LoRA
from astrolabe_rewards.wanted import Wanted
from astrolabe_rewards.weights import TensorFiles

#: What is scored, in the order of the text's reward tokens.
DIMENSIONS: Final = ("VQ", "MQ", "TA")
#: What peft puts before every name.
PREFIX: Final = "base_model.model."
_WHOLE: Final = ("model.safetensors", "model.pth")
_PARTS: Final = ("adapter_model.safetensors", "non_lora_state_dict.pth")

_PUBLISHED_LORA: Final = LoRA(rank=64, scale=2.0)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What ``model_config.json`` says; the defaults are the published checkpoint's.

    Attributes:
        mean: Mean raw score of VQ, MQ and TA over the training videos.
        std: Its deviation.
        fps: Frames per second that the model was trained with.
        most_pixels: Pixels of a frame after scaling, at most.
        lora: The LoRA layers; None if there are none.
    """

    mean: tuple[float, ...] = (3.6757, 1.1646, 2.8105)
    std: tuple[float, ...] = (2.2476, 1.3811, 2.5121)
    fps: float = 2.0
    most_pixels: int = 200704
    lora: LoRA | None = _PUBLISHED_LORA

    @classmethod
    def read(cls, file: Path | None) -> "Settings":
        """Read the file; None gives the defaults.

        Raises:
            WeightsError: If it is no such file, or of a model with other questions.
        """
        if file is None:
            _log.warning("no %s beside VideoReward's weights: taking the published one", CONFIG)
            return cls()
        try:
            return cls._of(read_json(file))
        except UNREADABLE as error:
            raise WeightsError(
                f"{str(file)!r} is no settings of VideoReward ({type(error).__name__}: {error}). "
                f"Take {CONFIG} as it was published."
            ) from error

    @classmethod
    def _of(cls, found: Mapping[str, Any]) -> "Settings":
        """Settings from the parsed file; ``Any`` because JSON may hold anything."""
        data, model, adapter = (
            found[section] for section in ("data_config", "model_config", "peft_lora_config")
        )
        asked = tuple(data["eval_dim"]), data["prompt_template_type"], model["reward_token"]
        if asked != (DIMENSIONS, "detailed_special", "special"):
            raise ValueError(f"the model answers {asked}, not VQ, MQ and TA at special tokens")
        mean, std = cls.mean, cls.std
        if found.get("inference_config") is None:
            _log.warning("%s has no inference_config: taking the published means", CONFIG)
        else:
            numbers = found["inference_config"]
            mean = tuple(float(numbers[f"{name}_mean"]) for name in DIMENSIONS)
            std = tuple(float(numbers[f"{name}_std"]) for name in DIMENSIONS)
        if not all(map(math.isfinite, mean + std)) or min(std) <= 0:
            raise ValueError(f"means {mean} and deviations {std} cannot normalise a score")
        lora = None
        if adapter["lora_enable"]:
            rank, alpha = int(adapter["lora_r"]), float(adapter["lora_alpha"])
            lora = LoRA(rank, alpha / (math.sqrt(rank) if adapter.get("use_rslora") else rank))
        return cls(mean, std, float(data["fps"]), int(data["max_frame_pixels"]), lora)


def find_checkpoint(wanted: Wanted) -> tuple[list[Path], Path | None]:
    """Return the files of the newest checkpoint, and the settings beside it if there are any.

    Raises:
        WeightsError: If there is no checkpoint.
    """
    place = wanted.locate()
    if place.is_file():
        files, around = [place], (place.parent, place.parent.parent)
    else:
        numbered = [
            (int(match[1]), path)
            for path in place.glob("checkpoint-*")
            if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
        ]
        folder = max(numbered)[1] if numbered else place
        whole = [folder / name for name in _WHOLE if (folder / name).is_file()][:1]
        files = whole or [folder / name for name in _PARTS]
        if not all(file.is_file() for file in files):
            raise wanted.absent(f"{str(folder)!r} has no {' or '.join(_WHOLE)}.")
        around = (folder, folder.parent)
    found = [path / CONFIG for path in around if (path / CONFIG).is_file()]
    return files, found[0] if found else None


def head_of(files: TensorFiles) -> Callable[[int], nn.Module]:
    """Return what makes a head with as many outputs as the files': one, or one per dimension.

    Raises:
        WeightsError: If they have another number.
    """
    outputs = files.shapes.get(f"{PREFIX}rm_head.weight", (1,))[0]
    if outputs not in (1, len(DIMENSIONS)):
        raise WeightsError(
            f"{files.names()} has a head of {outputs} outputs; VideoReward's has 1 or 3. "
            "Take the checkpoint as it was published."
        )
    return lambda width: nn.Linear(width, outputs, bias=False)
