"""Frames as vision towers of transformers were trained on them: ``preprocessor_config.json``.

Scaled by Pillow, as the models' own processors did: the kernels of torch give other levels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from astrolabe_rewards.errors import UNREADABLE, WeightsError
from astrolabe_rewards.frames import channels_last
from astrolabe_rewards.input_files import read_json

#: What CLIP takes from every channel, and what it divides by, in [0, 1].
CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)
_BICUBIC: Final = 3


def normalised(
    pictures: Tensor, mean: tuple[float, ...] = CLIP_MEAN, std: tuple[float, ...] = CLIP_STD
) -> Tensor:
    """Return ``[n, 3, h, w]`` in [0, 1] less a mean and over a deviation per channel."""
    of = [pictures.new_tensor(numbers)[:, None, None] for numbers in (mean, std)]
    return (pictures - of[0]) / of[1]


@dataclass(frozen=True)
class Pictures:
    """How frames are scaled, cut and normalised; the defaults are CLIP's.

    Attributes:
        size: Height and width that the tower reads.
        shortest: What the shorter side is scaled to before ``size`` is cut from the middle; None
            scales both sides to ``size``, whatever the shape (SigLIP).
        resample: Pillow's number of the kernel.
        mean: Of each channel.
        std: Of each channel.
    """

    size: tuple[int, int] = (224, 224)
    shortest: int | None = 224
    resample: int = _BICUBIC
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    @classmethod
    def read(cls, file: Path) -> "Pictures":
        """Read ``preprocessor_config.json``.

        Raises:
            WeightsError: If it is no such file, or asks for something else.
        """
        try:
            return cls._of(read_json(file))
        except UNREADABLE as error:
            raise WeightsError(
                f"{str(file)!r} does not say how pictures are prepared ({type(error).__name__}: "
                f"{error}). Take preprocessor_config.json as it was published."
            ) from error

    @classmethod
    def _of(cls, found: Mapping[str, Any]) -> "Pictures":
        """Settings from the parsed file; ``Any`` because JSON may hold anything."""
        undone = [
            step for step in ("resize", "rescale", "normalize") if not found.get(f"do_{step}", 1)
        ]
        if undone:
            raise ValueError(f"it does not {' and '.join(undone)}")
        size = found["size"]
        shortest = size if isinstance(size, int) else size.get("shortest_edge")
        target = found["crop_size"] if shortest is not None else size
        if isinstance(target, int):
            target = {"height": target, "width": target}
        height, width = int(target["height"]), int(target["width"])
        if shortest is not None and not found.get("do_center_crop", True):
            raise ValueError("it cuts no picture to a fixed size")
        if shortest is not None and max(height, width) > shortest:
            raise ValueError(f"it cuts {height}x{width} from a side of {shortest}")
        mean, std = (tuple(map(float, found[f"image_{name}"])) for name in ("mean", "std"))
        return cls((height, width), shortest, int(found.get("resample", _BICUBIC)), mean, std)

    def __call__(self, frames: Tensor) -> Tensor:
        """Prepare frames.

        Args:
            frames: uint8 ``[n, 3, H, W]``.

        Returns:
            float32 ``[n, 3, *size]`` on the CPU.
        """
        from PIL import Image

        height, width = frames.shape[-2:]
        scaled = self.size
        if self.shortest is not None:
            short = min(height, width)
            scaled = (self.shortest * height // short, self.shortest * width // short)
        kernel = Image.Resampling(self.resample)
        pictures = np.stack(
            [
                np.asarray(Image.fromarray(f).resize(scaled[::-1], kernel))
                for f in channels_last(frames)
            ]
        )
        top, left = (scaled[0] - self.size[0]) // 2, (scaled[1] - self.size[1]) // 2
        cut = pictures[:, top : top + self.size[0], left : left + self.size[1]]
        return normalised(torch.from_numpy(cut).permute(0, 3, 1, 2) / 255, self.mean, self.std)
