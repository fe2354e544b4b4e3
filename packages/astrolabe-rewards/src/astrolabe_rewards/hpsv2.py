"""HPSv2.1: how much people prefer a picture for a prompt, by a CLIP trained on their choices.

Wu et al. 2023, "Human Preference Score v2" (arXiv 2306.09341): CLIP ViT-H/14 of open_clip,
fine-tuned on 798 090 choices. Taking the best 30 % of the frames is how the public Astrolabe code
scores videos with it.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from astrolabe_rewards.hpsv3 import best_mean
from astrolabe_rewards.image_text import FrameReward
from astrolabe_rewards.needs import HPSV2, require
from astrolabe_rewards.network import Network
from astrolabe_rewards.pictures import normalised
from astrolabe_rewards.placement import DType, Placement, shared
from astrolabe_rewards.weights import TensorFiles

#: Extra of this package with what HPSv2 needs.


class HPSv2(FrameReward):
    """HPSv2.1 of a video's frames, given its prompt: the mean of the best ones.

    Args:
        weights: ``HPS_v2.1_compressed.pt``, its folder, or where it is on the hub. It holds the
            whole network; the CLIP that it was trained from is not needed.
        top: Share of the frames looked at that count, in (0, 1]. Astrolabe takes 0.3.
        fps: Frames per second that are looked at, from the first; None, every frame, is what
            Astrolabe does.
        micro_batch: Frames of one forward.
        dtype: Of the network.
        device: Where the weights go; None takes the current CUDA device if there is one, else the
            CPU. Moving the module later has no effect.

    Raises:
        ModuleNotFoundError: If open_clip is not installed.
        ValueError: If an option is out of its range.
        WeightsError: If the weights are absent, damaged or of another network. All of this is found
            out here; the weights themselves are read at the first score, or by ``load``.

    Example:
        ``HPSv2(weights="/models/HPS_v2.1_compressed.pt")``
    """

    name: ClassVar[str] = "hpsv2"
    measures: ClassVar[str] = "human preference for the best 30 % of frames, given the prompt"
    unit: ClassVar[str] = "cos, -1 to 1; pictures have about 0.2 to 0.35"
    licence: ClassVar[str] = "Apache-2.0 (HPSv2), MIT (CLIP ViT-H/14)"
    weights_from: ClassVar[str] = f"`{HPSV2.source}`"
    memory: ClassVar[str] = "3.7 GiB fp32, 1.8 bf16"
    needs_text: ClassVar[bool] = True
    #: open_clip's name of the network, for subclasses that hold another.
    architecture: ClassVar[str] = "ViT-H-14"

    def __init__(
        self,
        *,
        weights: str = HPSV2.source,
        top: float = 0.3,
        fps: float | None = None,
        micro_batch: int = 32,
        dtype: DType = "float32",
        device: str | None = None,
    ) -> None:
        require("openclip", self.name)
        placement = Placement(dtype, device)
        super().__init__(placement, fps, micro_batch)
        if not 0 < top <= 1:
            raise ValueError(f"top is {top!r}, not in (0, 1]. Take 1.0 for the mean of all frames.")
        self.top = top
        file = HPSV2.wanted(self.name, weights).locate_file()
        import open_clip

        config: dict[str, Any] = open_clip.get_model_config(self.architecture)

        def build() -> Network:
            with torch.device("meta"):
                made = open_clip.CLIP(**config)
            return Network(self.name, TensorFiles([file]), made, placement)

        self._side: int = config["vision_cfg"]["image_size"]
        self._tokens = Words(config["text_cfg"]["context_length"])
        self._files = [file]
        self._network = shared(f"{self.name} {self.architecture}", [file], placement, build)

    def _texts(self, network: Any, ids: Tensor) -> Tensor:
        return functional.normalize(network.encode_text(ids).float(), dim=-1)

    def _judged(self, network: Any, frames: Tensor, texts: Tensor) -> Tensor:
        ready = normalised(letterboxed(frames.to(self._device).float() / 255, self._side))
        found = network.encode_image(self._placed(ready)).float()
        return (functional.normalize(found, dim=-1) * texts).sum(-1)

    def _pooled(self, scores: Tensor) -> Tensor:
        return best_mean(scores[None], self.top)[0]


def letterboxed(pictures: Tensor, side: int) -> Tensor:
    """Scale pictures to a longer side and fill the rest with black, as HPSv2 does.

    HPSv2 scales numbers, not levels: nothing is rounded or clipped.

    Args:
        pictures: float ``[n, 3, H, W]`` in [0, 1].
        side: Of the result.

    Returns:
        ``[n, 3, side, side]``, the picture in the middle.
    """
    longest = max(pictures.shape[-2:])
    height, width = (max(1, round(length * side / longest)) for length in pictures.shape[-2:])
    if longest != side:
        pictures = functional.interpolate(
            pictures, size=(height, width), mode="bicubic", antialias=True
        )
    across, down = side - width, side - height
    return functional.pad(
        pictures, (across // 2, across - across // 2, down // 2, down - down // 2)
    )


class Words:
    """Prompts to token ids of one length, by open_clip's tokenizer.

    What looks like a control token in a prompt is left out.

    Args:
        length: Tokens of a text, first and last included; more are cut.
    """

    def __init__(self, length: int) -> None:
        from open_clip import SimpleTokenizer

        self._tokenizer = SimpleTokenizer()
        self._length = length

    def __call__(self, texts: list[str]) -> tuple[Tensor, int]:
        """Return ids ``[N, length]``, and how many texts were cut."""
        start, end = self._tokenizer.sot_token_id, self._tokenizer.eot_token_id
        ids = torch.zeros(len(texts), self._length, dtype=torch.int64)
        cut = 0
        for row, text in zip(ids, texts, strict=True):
            words = [i for i in self._tokenizer.encode(text) if i not in (start, end)]
            cut += len(words) > self._length - 2
            whole = [start, *words[: self._length - 2], end]
            row[: len(whole)] = torch.tensor(whole)
        return ids, cut
