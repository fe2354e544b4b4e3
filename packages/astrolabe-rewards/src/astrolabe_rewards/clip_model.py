"""CLIP and SigLIP of transformers: the network on the meta device, and its embeddings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from astrolabe_rewards.errors import WeightsError
from astrolabe_rewards.model_folder import CONFIG, PICTURES, ModelFolder, Texts
from astrolabe_rewards.network import Network
from astrolabe_rewards.pictures import Pictures
from astrolabe_rewards.placement import Placement, shared
from astrolabe_rewards.weights import TensorFiles

_MODELS: Final = {"clip": "CLIPModel", "siglip": "SiglipModel"}


def transformer(config: Any, model: str, **options: bool) -> nn.Module:
    """Return a network of transformers on the meta device.

    Args:
        config: Its configuration; ``Any`` because transformers ships no types.
        model: The name of its class.
        options: What its class takes beside.
    """
    import transformers

    with torch.device("meta"):
        made: nn.Module = getattr(transformers, model)._from_config(
            config, dtype=torch.float32, **options
        )
    return made


def picture_vectors(network: Any, pictures: Tensor) -> Tensor:
    """Return the embeddings of prepared pictures, float32 ``[n, d]`` of length 1.

    Args:
        network: ``CLIPModel``, ``SiglipModel``, or only their vision tower with its projection.
        pictures: ``[n, 3, h, w]``.
    """
    found = network.vision_model(pixel_values=pictures).pooler_output
    project = getattr(network, "visual_projection", nn.Identity())
    return functional.normalize(project(found).float(), dim=-1)


def text_vectors(network: Any, ids: Tensor) -> Tensor:
    """Return the embeddings of texts, float32 ``[n, d]`` of length 1.

    No mask is given: CLIP looks back only, so that no token that counts sees padding; SigLIP was
    trained without one.

    Args:
        network: ``CLIPModel`` or ``SiglipModel``.
        ids: ``[n, L]``.
    """
    found = network.text_model(input_ids=ids).pooler_output
    project = getattr(network, "text_projection", nn.Identity())
    return functional.normalize(project(found).float(), dim=-1)


@dataclass(frozen=True)
class DualEncoder:
    """A CLIP or SigLIP with all that it needs.

    Attributes:
        network: ``CLIPModel`` or ``SiglipModel``; ``logit_scale`` is float32.
        tokens: Its tokenizer.
        pictures: How its pictures are prepared.
        files: What it was made of.
    """

    network: Network
    tokens: Texts
    pictures: Pictures
    files: list[Path]


def dual_encoder(
    asker: str, weights: ModelFolder, base: ModelFolder, placement: Placement, *kinds: str
) -> DualEncoder:
    """Return a model of which nothing but headers was read.

    Args:
        asker: The reward, for messages.
        weights: Has the weights and their configuration.
        base: Has the tokenizer and how pictures are prepared.
        placement: Where and how the weights are held.
        kinds: "clip", "siglip" or both: what it may be.

    Raises:
        WeightsError: If files are absent, damaged, or do not go together.
    """
    config = weights.config(*kinds)
    read = config.text_config
    tokens = base.tokens(read.max_position_embeddings, read.vocab_size)
    # CLIP looks for the end of a text; 2 stands for the largest id, in the configs of before 2023.
    end = tokens.most if read.eos_token_id == 2 else read.eos_token_id
    if config.model_type == "clip" and end != tokens.end:
        raise WeightsError(
            f"{str(weights.file(CONFIG))!r} ends texts with token {end}, the tokenizer with "
            f"{tokens.end}. Take both from one model."
        )
    files = [*weights.weights, weights.file(CONFIG)]

    def build() -> Network:
        made = transformer(config, _MODELS[config.model_type])
        return Network(asker, TensorFiles(weights.weights), made, placement, exact=("logit_scale",))

    return DualEncoder(
        shared(asker, files, placement, build),
        tokens,
        base.pictures(config.vision_config.image_size),
        [*files, base.file(PICTURES), *base.vocabulary()],
    )
