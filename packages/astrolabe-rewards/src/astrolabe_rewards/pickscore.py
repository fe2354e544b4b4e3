"""PickScore: how much people prefer a picture for a prompt, by a CLIP trained on their choices.

Kirstain et al. 2023, "Pick-a-Pic: An Open Dataset of User Preferences for Text-to-Image Generation"
(arXiv 2305.01569): CLIP ViT-H/14, its scaled cosine fine-tuned on half a million choices.
"""

from typing import Any, ClassVar

from torch import Tensor

from astrolabe_rewards.clip_model import dual_encoder, picture_vectors, text_vectors
from astrolabe_rewards.image_text import FrameReward
from astrolabe_rewards.model_folder import ModelFolder
from astrolabe_rewards.needs import PICKSCORE, PICKSCORE_BASE
from astrolabe_rewards.placement import DType, Placement


class PickScore(FrameReward):
    """PickScore of the sampled frames, averaged: the model's own scale times the cosine.

    Args:
        weights: Folder or hub repository of the weights and their ``config.json``.
        base: Folder or hub repository of the tokenizer and ``preprocessor_config.json`` of the CLIP
            that it was trained from; the weights of that one are not needed.
        fps: Frames per second that are looked at, from the first; None for every frame.
        micro_batch: Frames of one forward.
        dtype: Of the network; the scale is float32.
        device: Where the weights go; None takes the current CUDA device if there is one, else the
            CPU. Moving the module later has no effect.

    Raises:
        ModuleNotFoundError: If transformers or Pillow is not installed.
        ValueError: If an option is out of its range.
        WeightsError: If weights or base are absent, damaged or of another network. All of this is
            found out here; the weights themselves are read at the first score, or by ``load``.

    Example:
        ``PickScore(weights="/models/PickScore_v1", base="/models/CLIP-ViT-H-14")``
    """

    name: ClassVar[str] = "pickscore"
    measures: ClassVar[str] = "human preference for the frames, given the prompt"
    unit: ClassVar[str] = "scale times cos, within -100 to 100; pictures have about 18 to 24"
    licence: ClassVar[str] = "MIT (PickScore, CLIP ViT-H/14)"
    weights_from: ClassVar[str] = f"`{PICKSCORE.source}`, `{PICKSCORE_BASE.source}`"
    memory: ClassVar[str] = "3.7 GiB fp32, 1.8 bf16"
    needs_text: ClassVar[bool] = True

    def __init__(
        self,
        *,
        weights: str = PICKSCORE.source,
        base: str = PICKSCORE_BASE.source,
        fps: float | None = 2.0,
        micro_batch: int = 32,
        dtype: DType = "float32",
        device: str | None = None,
    ) -> None:
        placement = Placement(dtype, device)
        super().__init__(placement, fps, micro_batch)
        folder = ModelFolder(PICKSCORE, weights, self.name)
        settings = ModelFolder(PICKSCORE_BASE, base, self.name)
        model = dual_encoder(self.name, folder, settings, placement, "clip")
        self._network, self._tokens, self._files = model.network, model.tokens, model.files
        self._pictures = model.pictures

    def _texts(self, network: Any, ids: Tensor) -> Tensor:
        return text_vectors(network, ids)

    def _judged(self, network: Any, frames: Tensor, texts: Tensor) -> Tensor:
        pictures = picture_vectors(network, self._placed(self._pictures(frames)))
        scores: Tensor = network.logit_scale.exp() * (pictures * texts).sum(-1)
        return scores
