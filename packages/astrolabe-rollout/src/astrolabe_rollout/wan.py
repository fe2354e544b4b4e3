"""The real models: Wan 2.1's causal descendants by family, each with its own rules.

A family is `load_wan` with its numbers filled in. Every rule stays an option, so that one family's
cache can be put on another's weights. Sources are the public configurations of Self-Forcing,
Causal-Forcing, LongLive, Infinity-RoPE and Krea realtime.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import torch

from astrolabe_rollout.checkpoints import (
    infer_config,
    load_checkpoint,
    load_into,
    meta_network,
    read_config,
)
from astrolabe_rollout.errors import CheckpointError
from astrolabe_rollout.extras import wan_extra
from astrolabe_rollout.geometry import Geometry
from astrolabe_rollout.hub import locate
from astrolabe_rollout.lora import load_lora, merge_lora, merge_update
from astrolabe_rollout.lora_files import locate_lora
from astrolabe_rollout.merging import Source, remember, source_of
from astrolabe_rollout.model import Switch, VideoModel
from astrolabe_rollout.needs import COMPONENT_PARTS, COMPONENTS, SOURCES
from astrolabe_rollout.schedule import FlowSchedule
from astrolabe_rollout.text import TextEncoder
from astrolabe_rollout.transformer import CausalWan
from astrolabe_rollout.wan_components import load_codec, load_text_encoder
from astrolabe_rollout.wan_vae import WanCodec

with wan_extra():
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

Size = Literal["1.3b", "14b", "any"]

#: Layers and attention heads of Wan 2.1; heads are 128 wide.
SIZES: Final[dict[Size, tuple[int, int]]] = {"1.3b": (30, 12), "14b": (40, 40)}
DTYPES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FOUR_STEPS: Final = (1000, 750, 500, 250)


def load_wan(
    *,
    checkpoint: str,
    lora: str = "",
    components: str = COMPONENTS,
    size: Size = "1.3b",
    height: int = 480,
    width: int = 832,
    chunk: int = 3,
    window: int = 21,
    sink: int = 0,
    relative: bool = False,
    switch: Switch = "keep",
    rebuild: int = 0,
    denoising_steps: Sequence[int] = FOUR_STEPS,
    first_steps: Sequence[int] = (),
    warped: bool = False,
    shift: float = 5.0,
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16",
    device: str = "auto",
    text_device: str = "",
    attention: str = "",
    compile: bool = False,  # the word that torch uses
) -> VideoModel:
    """Load a causal model on Wan 2.1, frozen.

    Paths are local, or ``owner/repository[/path]`` of the hub. All are found before anything is
    loaded.

    Args:
        checkpoint: The transformer: a file or folder of any kind that `load_checkpoint` reads.
        lora: An adapter that is merged into it in float32, of any kind that `load_lora` reads; a
            `PrecisionWarning` is shown if ``dtype`` cannot hold it.
        components: Folder of diffusers with ``text_encoder``, ``tokenizer`` and ``vae``.
        size: Size that the checkpoint must have, ``1.3b`` or ``14b``; ``any`` takes what it has,
            such as a small one to try things with.
        height: Of the picture in pixels, a multiple of 16.
        width: The same.
        chunk: Latent frames that are denoised together.
        window: Latent frames in the KV cache, sink and open chunk included; 0 keeps all.
        sink: Latent frames at the start that never leave the cache.
        relative: Whether positions are slots of the cache (Infinity-RoPE).
        switch: What happens to the cache at another prompt: ``keep``, ``recache`` (LongLive; the
            sink stays), ``recache_all``, ``flush`` (Infinity-RoPE).
        rebuild: Latent frames from which the cache is computed anew for every chunk (Krea); 0: it
            rolls.
        denoising_steps: The few-step list.
        first_steps: The list of a video's first chunk, if it has its own.
        warped: Whether the lists hold timesteps as the model is told them (Krea).
        shift: Time shift of the noise levels.
        dtype: ``bf16``, ``fp16`` or ``fp32``; what diffusers keeps in float32 stays so.
        device: Of transformer and VAE; ``auto`` takes a GPU if there is one.
        text_device: Of the text encoder; empty: the same. ``cpu`` leaves a GPU its 11 GB.
        attention: Attention back end of diffusers, such as ``flash`` or ``sage``; empty: its own
            choice.
        compile: Whether the blocks are compiled by torch.compile.

    Raises:
        CheckpointError: If weights are absent, damaged, or of another model.
        ValueError: If an option is unknown or the sizes do not fit each other.
    """
    if dtype not in DTYPES or size not in (*SIZES, "any"):
        raise ValueError(
            f"dtype={dtype!r}, size={size!r}: choose dtype from {', '.join(DTYPES)} and size from "
            f"{', '.join(SIZES)}, any."
        )
    geometry = Geometry(height, width, chunk=chunk, window=window or None, sink=sink)
    schedule = FlowSchedule(shift)
    for steps in filter(None, (denoising_steps, first_steps)):
        schedule.warp(steps)  # refuses a bad list
    file = locate(checkpoint, "checkpoint", "checkpoint")
    adapter = locate_lora(lora, "lora") if lora else None
    folder = locate(components, "folder of components", "components", COMPONENT_PARTS)

    where = _device(device)
    network = load_network(file, DTYPES[dtype], size, adapter)
    transformer = CausalWan(network, geometry, relative)
    transformer.to(where)
    if attention:
        network.set_attention_backend(attention)
    if compile:
        transformer.compile_blocks()
    text = load_text_encoder(folder, DTYPES[dtype], _device(text_device) if text_device else where)
    codec = load_codec(folder, DTYPES[dtype], where)
    _check_fit(network, text, codec, geometry)
    return VideoModel(
        transformer,
        text,
        codec,
        schedule,
        denoising_steps=tuple(denoising_steps),
        first_steps=tuple(first_steps) or None,
        switch=switch,
        rebuild=rebuild or None,
        warped=warped,
    ).freeze()


def _check_fit(
    network: WanTransformer3DModel, text: TextEncoder, codec: WanCodec, geometry: Geometry
) -> None:
    """Refuse parts whose sizes differ where they meet."""
    wan: Any = network.config  # diffusers types it as a dict
    assert text.encoder is not None
    for what, theirs, ours in (
        ("in_channels", wan.in_channels, geometry.channels),
        ("text_dim", wan.text_dim, text.encoder.config.d_model),
        ("z_dim of the VAE", len(codec.mean.flatten()), geometry.channels),
    ):
        if theirs != ours:
            raise CheckpointError(
                f"checkpoint and components do not fit each other: {what} is {theirs}, {ours} is "
                "needed. Set checkpoint and components to parts of one model."
            )


def load_network(
    path: Path,
    dtype: torch.dtype | None = None,
    size: Size | None = None,
    lora: Path | None = None,
) -> WanTransformer3DModel:
    """Load Wan's transformer from a file or folder; its sizes are read off the weights.

    It remembers its files, from whose digits `merge_lora` and `reload` start.

    Args:
        path: See `load_checkpoint`.
        dtype: Of the weights, but for those that diffusers keeps in float32; None: as in the file.
        size: Size that it must have.
        lora: An adapter that is merged into it in float32, before weights are turned into
            ``dtype``; a `PrecisionWarning` is shown if they do not hold it.

    Raises:
        CheckpointError: If the file is damaged or of another model.
    """
    # 8 bits have no digits of their own to merge into.
    state = load_checkpoint(path, torch.float32 if lora or dtype is None else dtype)
    config: dict[str, Any] = (read_config(path) if path.is_dir() else None) or infer_config(state)
    if size is not None and size != "any":
        layers, heads = config["num_layers"], config["num_attention_heads"]
        if (layers, heads) != SIZES[size]:
            known = [name for name, sizes in SIZES.items() if sizes == (layers, heads)]
            hint = f"Set size={known[0] if known else 'any'}"
            raise CheckpointError(
                f"{str(path)!r} has {layers} blocks of {heads} heads, size {size!r} has "
                f"{SIZES[size][0]} of {SIZES[size][1]}. {hint}, or name the family that it is of."
            )
    network = meta_network(config)
    load_into(network, state, dtype if lora is None else None)
    if lora is not None:
        load_lora(network, lora)
        merge_lora(network, dtype, precise=True)
    remember(network, Source(path, lora))
    return network


def reload(network: WanTransformer3DModel) -> WanTransformer3DModel:
    """Load a network again in the precision of its checkpoint, without LoRA.

    Returns:
        A network on the CPU, whose weights are read when they are used, with what was merged into
        ``network`` since; ``network`` itself if it was not made by `load_network`.

    Raises:
        CheckpointError: If the files are gone or damaged.
    """
    source = source_of(network)
    if source is None:
        return network
    fresh = load_network(source.checkpoint, lora=source.lora)
    for update in source.merged:
        merge_update(fresh, update)
    return fresh


def _device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _family(doc: str, **rules: object) -> Callable[..., VideoModel]:
    """Fill in a family's numbers; its help keeps the explanation of every option."""
    family = partial(load_wan, **rules)  # type: ignore[arg-type]  # checked by a test of each
    _, heading, arguments = str(inspect.getdoc(load_wan)).partition("Args:")
    family.__doc__ = f"{doc}\n\n{heading}{arguments}"
    return family


wan_1_3b = _family("Any causal model on Wan 2.1 1.3B, with the rules that the options give.")
wan_14b = _family("The same on Wan 2.1 14B.", size="14b")

self_forcing = _family(
    "Self-Forcing (DMD): trained on 21 latent frames, whose newest it sees in longer videos.",
    **SOURCES["self_forcing"],
)

causal_forcing = _family("Causal-Forcing, chunk by chunk.", **SOURCES["causal_forcing"])
causal_forcing_framewise = _family(
    "Causal-Forcing, frame by frame, four steps.",
    **SOURCES["causal_forcing_framewise"],
    chunk=1,
)
causal_forcing_2step = _family(
    "Causal-Forcing++, frame by frame, two steps after a first frame of four.",
    **SOURCES["causal_forcing_2step"],
    chunk=1,
    denoising_steps=(1000, 500),
    first_steps=FOUR_STEPS,
)
causal_forcing_1step = _family(
    "Causal-Forcing++, frame by frame, one step after a first frame of four.",
    **SOURCES["causal_forcing_1step"],
    chunk=1,
    denoising_steps=(1000,),
    first_steps=FOUR_STEPS,
)

longlive = _family(
    "LongLive: window 12, sink 3, KV recache at another prompt; its LoRA is merged.",
    **SOURCES["longlive"],
    window=12,
    sink=3,
    switch="recache",
)

#: Infinity-RoPE needs no training: these rules go on any of the weights above.
INFINITY_ROPE: Final[dict[str, object]] = {
    "window": 6,
    "sink": 1,
    "relative": True,
    "switch": "flush",
}
infinity_rope = _family(
    "Infinity-RoPE on Self-Forcing's weights, or on those that checkpoint and lora name.",
    **SOURCES["infinity_rope"],
    **INFINITY_ROPE,
)

krea_14b = _family(
    "Krea realtime 14B: the cache is computed anew from three latent frames for every chunk.",
    **SOURCES["krea_14b"],
    size="14b",
    window=6,
    rebuild=3,
    denoising_steps=(1000, 937, 833, 625),
    warped=True,
)
