"""Configurations of diffusers and transformers: what is not computed as they say is refused."""

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from astrolabe_rollout.errors import CheckpointError
from astrolabe_rollout.extras import wan_extra
from astrolabe_rollout.input_files import read_json as read_value

with wan_extra():
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

#: Settings by their names; their values have many types.
Config = Mapping[str, Any]


def read_json(file: Path) -> dict[str, Any]:
    """Read a configuration.

    Raises:
        CheckpointError: If the file is damaged.
    """
    try:
        config = read_value(file)
    except OSError as error:
        raise CheckpointError(
            f"{str(file)!r} cannot be read ({error.strerror}). Give a folder with a file that you "
            "may read."
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{str(file)!r} is no JSON ({error}). Download it again.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{str(file)!r} holds no settings by name. Download it again.")
    return config


def check_transformer(config: Config, where: str) -> None:
    """Refuse a transformer that is no text-to-video model of Wan 2.1.

    Args:
        config: Content of its ``config.json``.
        where: Its place, for messages.

    Raises:
        CheckpointError: Names every setting that is not understood.
    """
    wrong = _strange(config, WanTransformer3DModel, {})
    for name in ("image_dim", "added_kv_proj_dim", "pos_embed_seq_len"):
        if config.get(name) is not None:
            wrong[name] = "null: models that are given pictures are not supported"
    if config.get("qk_norm", "rms_norm_across_heads") != "rms_norm_across_heads":
        wrong["qk_norm"] = "'rms_norm_across_heads'"
    if config.get("in_channels", 16) != config.get("out_channels", 16):
        wrong["in_channels"] = f"out_channels, {config.get('out_channels', 16)}"
    _refuse(config, wrong, where, "Use a text-to-video transformer of Wan 2.1")


def check_vae(config: Config, where: str) -> None:
    """Refuse a VAE whose frames would be decoded otherwise than diffusers does.

    Args:
        config: Its configuration.
        where: Its place, for messages.

    Raises:
        CheckpointError: Names every setting that is not understood.
    """
    wrong = _strange(config, AutoencoderKLWan, {"clip_output": True})
    expected = {
        **{"patch_size": None, "is_residual": False, "in_channels": 3, "out_channels": 3},
        **{"scale_factor_temporal": 4, "scale_factor_spatial": 8},
    }
    for name, value in expected.items():
        if config.get(name, value) != value:
            wrong[name] = json.dumps(value)
    if len(_numbers(config, "dim_mult", (1, 2, 4, 4))) != 4:
        wrong["dim_mult"] = "four numbers: pictures are 8 times as large as latents"
    halved = _numbers(config, "temperal_downsample", (False, True, True))
    if len(halved) != 3 or sum(halved) != 2:
        wrong["temperal_downsample"] = "two of three: a latent frame is 4 frames"
    if config.get("attn_scales"):
        wrong["attn_scales"] = "empty, as diffusers itself cannot run such layers"
    channels = config.get("z_dim", 16)
    for name in ("latents_mean", "latents_std"):
        numbers = _numbers(config, name, [1.0] * 16)
        least = 0.0 if name == "latents_std" else -math.inf
        if len(numbers) != channels or not all(least < x < math.inf for x in numbers):
            wrong[name] = f"{channels} finite numbers (z_dim), deviations above 0"
    _refuse(config, wrong, where, "Use the VAE of Wan 2.1")


def check_text_encoder(config: Config, where: str) -> None:
    """Refuse a text encoder that is no UMT5.

    Raises:
        CheckpointError: Names its kind.
    """
    kind = config.get("model_type", "umt5")
    wrong = {} if kind == "umt5" else {"model_type": "'umt5'"}
    if config.get("quantization_config") is not None:
        wrong["quantization_config"] = "null: quantised encoders are not supported"
    _refuse(config, wrong, where, "Use the text encoder of Wan 2.1")


def check_scheduler(config: Config, where: str) -> None:
    """Refuse a checkpoint that predicts something else than the velocity of a flow.

    Its ``shift`` is not read: the families have their own, an option of each.

    Raises:
        CheckpointError: Names what it predicts.
    """
    kind = config.get("prediction_type", "flow_prediction")
    wrong = {} if kind == "flow_prediction" else {"prediction_type": "'flow_prediction'"}
    _refuse(config, wrong, where, "Use a model that was trained by flow matching")


def in_diffusers_words(config: Config, where: str) -> dict[str, Any]:
    """Turn settings of Wan's own code, and of the causal models' on it, into diffusers'.

    Args:
        config: Content of a ``config.json``; one of diffusers is returned as it is.
        where: Its place, for messages.

    Raises:
        CheckpointError: Names every setting that diffusers' transformer does not follow.
    """
    if config.get("_class_name") not in ("WanModel", "CausalWanModel"):
        return dict(config)
    fixed = {
        **{"model_type": "t2v", "qk_norm": True, "window_size": [-1, -1], "text_len": 512},
        **{"local_attn_size": -1, "sink_size": 0},  # the families' rules are options here
    }
    wrong = {
        name: json.dumps(value) for name, value in fixed.items() if config.get(name, value) != value
    }
    dim, heads = config.get("dim"), config.get("num_heads")
    if not (isinstance(dim, int) and isinstance(heads, int) and heads > 0 and dim % heads == 0):
        wrong["dim"] = "a multiple of num_heads"
    _refuse(config, wrong, where, "Use a text-to-video transformer of Wan 2.1")
    assert isinstance(dim, int)  # or it was refused
    assert isinstance(heads, int)
    words = {"in_dim": "in_channels", "out_dim": "out_channels", "num_heads": "num_attention_heads"}
    left_out = {*fixed, "dim", "_class_name"}
    named = {words.get(name, name): x for name, x in config.items() if name not in left_out}
    return {**named, "attention_head_dim": dim // heads}


def _numbers(config: Config, name: str, default: Sequence[float]) -> Sequence[float]:
    """A list of numbers; an empty one for anything else."""
    found = config.get(name, default)
    fits = isinstance(found, (list, tuple)) and all(isinstance(x, (int, float)) for x in found)
    return found if fits else ()


def _strange(config: Config, kind: type, known: Config) -> dict[str, str]:
    """Settings that this version of diffusers would drop, and what they would have to be."""
    names = inspect.signature(kind).parameters
    wrong = {
        name: "absent, as this version of diffusers does not know it"
        for name, value in config.items()
        if name not in names and not name.startswith("_") and value is not None
    }
    for name, value in known.items():
        if config.get(name) == value:
            wrong.pop(name, None)
    if config.get("_class_name", kind.__name__) != kind.__name__:
        wrong["_class_name"] = repr(kind.__name__)
    return wrong


def _refuse(config: Config, wrong: Mapping[str, str], where: str, way_out: str) -> None:
    if wrong:
        told = "; ".join(
            f"{name} is {json.dumps(config.get(name), default=str)}, and has to be {value}"
            for name, value in wrong.items()
        )
        raise CheckpointError(f"{where} is of a kind that is not supported: {told}. {way_out}.")
