"""A run's video model without its weights: the real classes, of the real sizes, on meta tensors."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Final, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from astrolabe.config import Part
from astrolabe.errors import ConfigError
from astrolabe.plan_trace import Kind
from astrolabe.registry import check, find
from astrolabe_rollout.checkpoints import load_into, meta_network
from astrolabe_rollout.codec import VideoCodec
from astrolabe_rollout.geometry import Geometry
from astrolabe_rollout.model import VideoModel
from astrolabe_rollout.schedule import FlowSchedule
from astrolabe_rollout.text import TextEncoder
from astrolabe_rollout.tiny import build_tiny, load_tiny
from astrolabe_rollout.transformer import CausalWan
from astrolabe_rollout.wan import DTYPES, SIZES, load_wan
from astrolabe_rollout.wan_vae import WanCodec

#: Width of the feed-forward layers of Wan 2.1, by size.
FEED_FORWARD: Final = {"1.3b": 8960, "14b": 13824}
#: UMT5-XXL, as Wan uses it.
UMT5_XXL: Final[dict[str, Any]] = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
}
PROMPT_TOKENS: Final = 512


@dataclass(frozen=True)
class Blueprint:
    """What is known of a model before its weights are there.

    Attributes:
        options: Every option of the model, defaults filled in.
        layers: Transformer blocks.
        kind: What it runs on.
        text_kind: What its text encoder runs on.
        text_bytes: Of the text encoder's weights.
        text_shape: Tokens and width of an embedded prompt.
    """

    part: Part
    options: dict[str, Any]  # Any: each model has its own
    layers: int
    kind: Kind
    text_kind: Kind
    text_bytes: int
    text_shape: tuple[int, int]

    @property
    def tiny(self) -> bool:
        """Whether it is the embedded model."""
        return self.part.name == "tiny"

    def build(self, layers: int | None = None) -> VideoModel:
        """Make the model on the meta device, frozen, with as many blocks as are asked for.

        Raises:
            ConfigError: If the sizes do not fit each other.
        """
        if self.tiny:
            model = build_tiny(layers=self.layers)
            model.transformer.to("meta")
            cast(nn.Module, model.codec).to("meta")
        else:
            try:
                model = _wan(self.options, layers or self.layers)
            except ValueError as error:
                raise ConfigError(f"model.options: {error}") from error
        text = cast(TextEncoder, _Prompts(self.text_shape, model.transformer._weight.dtype))
        return replace(model.freeze(), encoder=text)


def describable(part: Part) -> bool:
    """Whether the sizes of a model are known without its weights."""
    make = find("models", part.name, "model")
    return make is load_tiny or (isinstance(make, partial) and make.func is load_wan)


def blueprint(part: Part) -> Blueprint:
    """Describe the model that a run names; nothing is read or downloaded.

    Raises:
        ConfigError: If an option is unknown or wrong, or the model is none that can be described.
        LookupError: If there is no such model.
    """
    make = check("models", part.name, part.options, where="model")
    bound = inspect.signature(make).bind(**part.options)
    bound.apply_defaults()
    options = dict(bound.arguments)
    if make is load_tiny:
        model = build_tiny(layers=1)
        assert model.encoder.encoder is not None
        width = model.encoder.encoder.config.d_model
        size, shape = weight_bytes(model.encoder), (model.encoder.length, width)
        return Blueprint(part, options, options["layers"], "cpu", "cpu", size, shape)
    if not describable(part):
        raise ConfigError(
            f"model {part.name!r} is neither the embedded one nor of the Wan family, so its sizes "
            "are not known. Plan with the model of the family that is nearest to it."
        )
    if options["size"] not in SIZES or options["dtype"] not in DTYPES:
        raise ConfigError(
            f"model.options: dtype={options['dtype']!r}, size={options['size']!r}: choose dtype "
            f"from {', '.join(DTYPES)} and size from {', '.join(SIZES)}."
        )
    kind: Kind = "cpu" if options["device"] == "cpu" else "cuda"
    text_kind: Kind = "cpu" if (options["text_device"] or kind) == "cpu" else "cuda"
    return Blueprint(
        part,
        options,
        SIZES[options["size"]][0],
        kind,
        text_kind,
        _text_bytes(options["dtype"]),
        (PROMPT_TOKENS, UMT5_XXL["d_model"]),
    )


@cache  # a plan asks for each of some hundred settings
def _text_bytes(dtype: str) -> int:
    config: Any = UMT5Config(**UMT5_XXL)
    with torch.device("meta"):
        encoder = nn.Module.to(UMT5EncoderModel(config), dtype=DTYPES[dtype])
    return weight_bytes(encoder)


def weight_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers."""
    return sum(value.nbytes for value in (*module.parameters(), *module.buffers()))


def _wan(options: dict[str, Any], layers: int) -> VideoModel:
    """What `load_wan` makes of these options, but for the text encoder and all numbers."""
    geometry = Geometry(
        options["height"],
        options["width"],
        chunk=options["chunk"],
        window=options["window"] or None,
        sink=options["sink"],
    )
    dtype = DTYPES[options["dtype"]]
    network = meta_network(
        {
            "num_layers": layers,
            "num_attention_heads": SIZES[options["size"]][1],
            "ffn_dim": FEED_FORWARD[options["size"]],
        }
    )
    load_into(network, network.state_dict(), dtype)  # what diffusers keeps in float32 stays so
    with torch.device("meta"):
        codec: VideoCodec = WanCodec(nn.Module.to(AutoencoderKLWan(), dtype=dtype))
    return VideoModel(
        CausalWan(network, geometry, options["relative"]),
        cast(TextEncoder, None),
        codec,
        FlowSchedule(options["shift"]),
        denoising_steps=tuple(options["denoising_steps"]),
        first_steps=tuple(options["first_steps"]) or None,
        switch=options["switch"],
        rebuild=options["rebuild"] or None,
        warped=options["warped"],
    )


class _Prompts:
    """Stands for the text encoder: embeddings of the right size."""

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype) -> None:
        self.shape, self.dtype = shape, dtype

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Return embeddings ``[n, L, D]`` without values."""
        return torch.empty(len(prompts), *self.shape, dtype=self.dtype, device="meta")
