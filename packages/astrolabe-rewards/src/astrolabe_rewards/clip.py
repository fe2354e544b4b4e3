"""CLIP score: how near a video's frames are to its prompt, by CLIP or SigLIP.

Hessel et al. 2021, "CLIPScore: A Reference-free Evaluation Metric for Image Captioning" (arXiv
2104.08718), with the factor 100 that work on video generation uses instead of its 2.5. CLIP:
Radford et al. 2021 (arXiv 2103.00020); SigLIP: Zhai et al. 2023 (arXiv 2303.15343); SigLIP 2:
Tschannen et al. 2025 (arXiv 2502.14786).
"""

from typing import Any, ClassVar

from torch import Tensor

from astrolabe_rewards.clip_model import dual_encoder, picture_vectors, text_vectors
from astrolabe_rewards.image_text import FrameReward
from astrolabe_rewards.model_folder import ModelFolder
from astrolabe_rewards.needs import CLIP
from astrolabe_rewards.placement import DType, Placement


class CLIPScore(FrameReward):
    """Cosine between frames and prompt times 100, none below 0, averaged over the sampled frames.

    The unit is the same for CLIP and SigLIP, the scale is not: a matching picture has about 30 with
    CLIP and much less with SigLIP, whose cosines are corrected by a learned scale and bias that
    this score leaves out. Scores of two models do not compare.

    Args:
        weights: Folder or hub repository of a CLIP, a SigLIP or a SigLIP 2 of fixed size
            (``model_type`` "clip" or "siglip" in ``config.json``), such as
            "google/siglip2-base-patch16-224". The tokenizer of SigLIP 1 also needs
            ``pip install sentencepiece protobuf``.
        fps: Frames per second that are looked at, from the first; None for every frame.
        micro_batch: Frames of one forward.
        dtype: Of the network.
        device: Where the weights go; None takes the current CUDA device if there is one, else the
            CPU. Moving the module later has no effect.

    Raises:
        ModuleNotFoundError: If transformers or Pillow is not installed.
        ValueError: If an option is out of its range.
        WeightsError: If weights, tokenizer or settings are absent, damaged or of another network.
            All of this is found out here; the weights themselves are read at the first score, or
            by ``load``.

    Example:
        ``CLIPScore(weights="/models/clip-vit-base-patch32")``
    """

    name: ClassVar[str] = "clip"
    measures: ClassVar[str] = "likeness of frames and prompt; prompts of over 77 tokens are cut"
    unit: ClassVar[str] = (
        "100 cos, at least 0, at most 100; matching pictures reach about 30 with CLIP, less with "
        "SigLIP"
    )
    licence: ClassVar[str] = "MIT (CLIP), Apache-2.0 (SigLIP)"
    weights_from: ClassVar[str] = f"`{CLIP.source}`"
    memory: ClassVar[str] = "0.6 GiB fp32, 0.3 bf16"
    needs_text: ClassVar[bool] = True

    def __init__(
        self,
        *,
        weights: str = CLIP.source,
        fps: float | None = 2.0,
        micro_batch: int = 32,
        dtype: DType = "float32",
        device: str | None = None,
    ) -> None:
        placement = Placement(dtype, device)
        super().__init__(placement, fps, micro_batch)
        folder = ModelFolder(CLIP, weights, self.name)
        model = dual_encoder(self.name, folder, folder, placement, "clip", "siglip")
        self._network, self._tokens, self._files = model.network, model.tokens, model.files
        self._pictures = model.pictures

    def _texts(self, network: Any, ids: Tensor) -> Tensor:
        return text_vectors(network, ids)

    def _judged(self, network: Any, frames: Tensor, texts: Tensor) -> Tensor:
        pictures = picture_vectors(network, self._placed(self._pictures(frames)))
        return 100 * (pictures * texts).sum(-1).clamp(min=0)
