"""LAION's aesthetic predictor: how much people like the look of a picture, whatever it shows.

Schuhmann 2022, github.com/christophschuhmann/improved-aesthetic-predictor: five linear layers over
the normalised picture embedding of CLIP ViT-L/14, trained on ratings of 1 to 10.
"""

from collections import OrderedDict
from typing import Any, ClassVar

from torch import Tensor, nn

from astrolabe_rewards.clip_model import picture_vectors, transformer
from astrolabe_rewards.image_text import FrameReward
from astrolabe_rewards.model_folder import CONFIG, PICTURES, ModelFolder
from astrolabe_rewards.needs import AESTHETIC, AESTHETIC_BASE
from astrolabe_rewards.network import Network, without_tables
from astrolabe_rewards.placement import DType, Placement, shared
from astrolabe_rewards.weights import TensorFiles

_TEXT_TOWER = ("text_model.", "text_projection.", "logit_scale")


def rating_head(width: int) -> nn.Sequential:
    """Return the head: five linear layers with nothing but dropout between, which is off here.

    Its layers bear the numbers 0, 2, 4, 6 and 7 of the published files.
    """
    sizes = {"0": (width, 1024), "2": (1024, 128), "4": (128, 64), "6": (64, 16), "7": (16, 1)}
    return nn.Sequential(OrderedDict((name, nn.Linear(*size)) for name, size in sizes.items()))


class LaionAesthetic(FrameReward):
    """Aesthetic rating of the sampled frames, averaged; the prompt plays no part.

    Args:
        weights: ``sac+logos+ava1-l14-linearMSE.pth``, its folder, or where it is on the hub.
        base: Folder or hub repository of CLIP ViT-L/14; its text tower is not read.
        fps: Frames per second that are looked at, from the first; None for every frame.
        micro_batch: Frames of one forward.
        dtype: Of the vision tower; the head is float32.
        device: Where the weights go; None takes the current CUDA device if there is one, else the
            CPU. Moving the module later has no effect.

    Raises:
        ModuleNotFoundError: If transformers or Pillow is not installed.
        ValueError: If an option is out of its range.
        WeightsError: If weights or base are absent, damaged or of another network. All of this is
            found out here; the weights themselves are read at the first score, or by ``load``.

    Example:
        ``LaionAesthetic(weights="/models/aesthetic", base="/models/clip-vit-large-patch14")``
    """

    name: ClassVar[str] = "aesthetic"
    measures: ClassVar[str] = "how much people like the look of the frames, whatever they show"
    unit: ClassVar[str] = "rating, unbounded; about 1 to 10, most pictures 4 to 7"
    licence: ClassVar[str] = "Apache-2.0 (predictor), MIT (CLIP ViT-L/14)"
    weights_from: ClassVar[str] = f"`{AESTHETIC.source}`, `{AESTHETIC_BASE.source}`"
    memory: ClassVar[str] = "1.1 GiB fp32, 0.6 bf16"

    def __init__(
        self,
        *,
        weights: str = AESTHETIC.source,
        base: str = AESTHETIC_BASE.source,
        fps: float | None = 2.0,
        micro_batch: int = 32,
        dtype: DType = "float32",
        device: str | None = None,
    ) -> None:
        placement = Placement(dtype, device)
        super().__init__(placement, fps, micro_batch)
        folder = ModelFolder(AESTHETIC_BASE, base, self.name)
        file = AESTHETIC.wanted(self.name, weights).locate_file()
        config = folder.config("clip")
        self._pictures = folder.pictures(config.vision_config.image_size)

        def build() -> Network:
            made = transformer(_vision(config), "CLIPVisionModelWithProjection")
            made.add_module("layers", rating_head(config.projection_dim).to("meta"))
            files = TensorFiles([*folder.weights, file])
            return Network(
                self.name, files, made, placement, ours=_without_texts, exact=("layers.",)
            )

        read = [*folder.weights, file, folder.file(CONFIG)]
        self._network = shared(self.name, read, placement, build)
        self._files = [*read, folder.file(PICTURES)]

    def _judged(self, network: Any, frames: Tensor, texts: Tensor) -> Tensor:
        pictures = picture_vectors(network, self._placed(self._pictures(frames)))
        ratings: Tensor = network.layers(pictures)[:, 0]
        return ratings


def _vision(config: Any) -> Any:  # Any: transformers ships no types
    """The vision part of a CLIP's configuration; the width of embeddings is only in the whole."""
    vision = config.vision_config
    vision.projection_dim = config.projection_dim
    return vision


def _without_texts(name: str) -> str | None:
    return None if name.startswith(_TEXT_TOWER) else without_tables(name)
