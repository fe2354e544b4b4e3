"""ImageReward: how much people prefer a picture for a prompt, by a BLIP that reads both together.

Xu et al. 2023, "ImageReward: Learning and Evaluating Human Preferences for Text-to-Image
Generation" (arXiv 2304.05977): BLIP's ViT-L/16 and BERT with cross-attention, five linear layers
over the state of the first token, trained on 137 000 comparisons.
"""

import re
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from astrolabe_rewards.aesthetic import rating_head
from astrolabe_rewards.clip_model import transformer
from astrolabe_rewards.image_text import FrameReward
from astrolabe_rewards.model_folder import ModelFolder
from astrolabe_rewards.needs import IMAGE_REWARD, IMAGE_REWARD_BASE
from astrolabe_rewards.network import Network, without_tables
from astrolabe_rewards.pictures import Pictures
from astrolabe_rewards.placement import DType, Placement, shared
from astrolabe_rewards.weights import TensorFiles

#: Tokens of a prompt that are read, first and last included.
_LENGTH = 35
#: Mean and deviation of the head's output over the validation set.
_MEAN, _STD = 0.16717362830052426, 1.0333394966054072
#: What no score depends on: projections of BLIP's contrastive loss.
_UNUSED = ("blip.vision_proj.", "blip.text_proj.")
#: Pieces of names, theirs to ours, of the vision tower.
_RENAMES = (
    (r"\.cls_token$", ".embeddings.class_embedding"),
    (r"\.pos_embed$", ".embeddings.position_embedding"),
    (r"\.patch_embed\.proj\.", ".embeddings.patch_embedding."),
    (r"\.blocks\.(\d+)\.norm(\d)\.", r".encoder.layers.\1.layer_norm\2."),
    (r"\.blocks\.(\d+)\.attn\.proj\.", r".encoder.layers.\1.self_attn.projection."),
    (r"\.blocks\.(\d+)\.attn\.", r".encoder.layers.\1.self_attn."),
    (r"\.blocks\.(\d+)\.", r".encoder.layers.\1."),
    (r"\.norm\.", ".post_layernorm."),
)


class ImageReward(FrameReward):
    """ImageReward of the sampled frames, averaged.

    Args:
        weights: ``ImageReward.pt``, its folder, or where it is on the hub.
        base: Folder or hub repository of the tokenizer of BERT (base, uncased).
        fps: Frames per second that are looked at, from the first; None for every frame.
        micro_batch: Frames of one forward.
        dtype: Of the two towers; the head is float32.
        device: Where the weights go; None takes the current CUDA device if there is one, else the
            CPU. Moving the module later has no effect.

    Raises:
        ModuleNotFoundError: If transformers or Pillow is not installed.
        ValueError: If an option is out of its range.
        WeightsError: If weights or base are absent, damaged or of another network. All of this is
            found out here; the weights themselves are read at the first score, or by ``load``.

    Example:
        ``ImageReward(weights="/models/ImageReward.pt", base="/models/bert-base-uncased")``
    """

    name: ClassVar[str] = "image_reward"
    measures: ClassVar[str] = (
        "human preference for the frames, given the prompt; over 35 tokens are cut"
    )
    unit: ClassVar[str] = "deviations above ImageReward's mean, unbounded; about -2 to 2"
    licence: ClassVar[str] = "Apache-2.0 (ImageReward, BERT), BSD-3-Clause (BLIP)"
    weights_from: ClassVar[str] = f"`{IMAGE_REWARD.source}`, `{IMAGE_REWARD_BASE.source}`"
    memory: ClassVar[str] = "1.7 GiB fp32, 0.8 bf16"
    needs_text: ClassVar[bool] = True
    #: transformers' settings of the two towers, for subclasses that hold others.
    vision: ClassVar[dict[str, Any]] = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 16,
        "layer_norm_eps": 1e-6,
    }
    text: ClassVar[dict[str, Any]] = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "vocab_size": 30524,
        "max_position_embeddings": 512,
    }

    def __init__(
        self,
        *,
        weights: str = IMAGE_REWARD.source,
        base: str = IMAGE_REWARD_BASE.source,
        fps: float | None = 2.0,
        micro_batch: int = 32,
        dtype: DType = "float32",
        device: str | None = None,
    ) -> None:
        placement = Placement(dtype, device)
        super().__init__(placement, fps, micro_batch)
        folder = ModelFolder(IMAGE_REWARD_BASE, base, self.name)
        file = IMAGE_REWARD.wanted(self.name, weights).locate_file()

        def build() -> Network:
            made = skeleton(self.vision, self.text)
            return Network(
                self.name, TensorFiles([file]), made, placement, ours=_ours, exact=("mlp.",)
            )

        words = folder.tokens(_LENGTH, self.text["vocab_size"])
        self._tokens, self._padding = words, words.padding
        side = self.vision["image_size"]
        self._pictures = Pictures((side, side), side)
        self._files = [file, *folder.vocabulary()]
        self._network = shared(self.name, [file], placement, build)

    def _texts(self, network: Any, ids: Tensor) -> Tensor:
        return ids  # read together with each picture, not before

    def _judged(self, network: Any, frames: Tensor, texts: Tensor) -> Tensor:
        pictures = self._placed(self._pictures(frames))
        seen = network.visual_encoder(pixel_values=pictures).last_hidden_state
        read = network.text_encoder(
            input_ids=texts,
            attention_mask=(texts != self._padding).long(),
            encoder_hidden_states=seen,
        ).last_hidden_state
        marks: Tensor = network.mlp.layers(read[:, 0].float())[:, 0]
        return (marks - _MEAN) / _STD


def skeleton(vision: dict[str, Any], text: dict[str, Any]) -> nn.Module:
    """Return the two towers and the head on the meta device, as ``_ours`` names them."""
    from transformers import BlipTextConfig, BlipVisionConfig

    both = BlipTextConfig(
        **text,
        encoder_hidden_size=vision["hidden_size"],
        is_decoder=True,  # so that its layers have cross-attention; it is read in both directions
    )
    network = nn.Module()
    network.add_module("visual_encoder", transformer(BlipVisionConfig(**vision), "BlipVisionModel"))
    network.add_module("text_encoder", transformer(both, "BlipTextModel", add_pooling_layer=False))
    with torch.device("meta"):
        head = nn.Module()
        head.add_module("layers", rating_head(text["hidden_size"]))
    network.add_module("mlp", head)
    return network


def _ours(name: str) -> str | None:
    """Their name of a tensor to the network's."""
    if name.startswith(_UNUSED):
        return None
    name = name.removeprefix("blip.")
    if name.startswith("visual_encoder."):
        for theirs, ours in _RENAMES:
            name, found = re.subn(theirs, ours, name)
            if found:
                break
    return without_tables(name)
