"""What the models of this package need from disk or hub, told without loading anything.

Light on purpose: neither torch nor diffusers is imported, so that what is missing can be said
within a second.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from astrolabe_rollout.hub import lacking

#: Text encoder, tokenizer and VAE are the same for all sizes.
COMPONENTS: Final = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
COMPONENT_PARTS: Final = ("text_encoder", "tokenizer", "vae")
_CAUSAL_FORCING: Final = "zhuhz22/Causal-Forcing"
_LONGLIVE: Final = "Efficient-Large-Model/LongLive-1.3B/models"

#: The weights of each family in `astrolabe_rollout.wan`, by the options that name them.
SOURCES: Final[dict[str, dict[str, str]]] = {
    "wan_1_3b": {},
    "wan_14b": {},
    "self_forcing": {"checkpoint": "gdhe17/Self-Forcing/checkpoints/self_forcing_dmd.pt"},
    "causal_forcing": {"checkpoint": f"{_CAUSAL_FORCING}/chunkwise/causal_forcing.pt"},
    "causal_forcing_framewise": {"checkpoint": f"{_CAUSAL_FORCING}/framewise/causal_forcing.pt"},
    "causal_forcing_2step": {
        "checkpoint": f"{_CAUSAL_FORCING}/causal-forcing++/framewise-2step.pt"
    },
    "causal_forcing_1step": {
        "checkpoint": f"{_CAUSAL_FORCING}/causal-forcing++/framewise-1step.pt"
    },
    "longlive": {
        "checkpoint": f"{_LONGLIVE}/longlive_base.pt",
        "lora": f"{_LONGLIVE}/lora.pt",
    },
    "infinity_rope": {"checkpoint": "gdhe17/Self-Forcing/checkpoints/self_forcing_dmd.pt"},
    "krea_14b": {
        "checkpoint": "krea/krea-realtime-video/krea-realtime-video-14b.safetensors",
    },
}

#: Files of the embedded model, in its folder.
TINY_PARTS: Final = ("transformer", "text", "codec")

#: Bytes of what is published, where they are known: 1.4 billion numbers in float32, 14.3 billion
#: in bfloat16, 5.7 billion of UMT5 and the VAE in float32.
SIZES_IN_BYTES: Final = {
    SOURCES["self_forcing"]["checkpoint"]: 5_680_000_000,
    SOURCES["krea_14b"]["checkpoint"]: 28_600_000_000,
    COMPONENTS: 23_200_000_000,
}


def lacks(target: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a model of this package needs and is not on this machine.

    Args:
        target: ``"module:attribute"`` of the part, as its entry point says.
        options: Arguments of its constructor.

    Returns:
        For each thing that is missing: ``what`` it is, its ``source``, the ``option`` that names
        it, ``why`` it counts as missing, its size in ``bytes`` (0: not known); if something fetches
        it, the command ``fetch`` and the ``value`` that the option then gets; if the hub has it,
        the repository ``hub`` and the patterns ``files``.

    Example:
        >>> lacks("astrolabe_rollout.tiny:load_tiny", {})
        []
    """
    module, _, name = target.partition(":")
    if module == "astrolabe_rollout.tiny":
        return _tiny(options.get("path"))
    if module != "astrolabe_rollout.wan" or name not in SOURCES:
        return []
    given = {"components": COMPONENTS, **SOURCES[name], **options}
    wanted = (
        ("checkpoint", "checkpoint", ()),
        ("LoRA", "lora", ()),
        ("text encoder, tokenizer and VAE", "components", COMPONENT_PARTS),
    )
    found = [
        lacking(source, what, option, parts, SIZES_IN_BYTES.get(source, 0))
        for what, option, parts in wanted
        if (source := str(given.get(option) or ""))
    ]
    return [one for one in found if one is not None]


def _tiny(path: object) -> list[dict[str, Any]]:
    if path is None:
        return []
    files = [Path(str(path)) / f"{part}.safetensors" for part in TINY_PARTS]
    missing = [str(file) for file in files if not file.is_file()]
    if not missing:
        return []
    why = f"there is no {missing[0]!r}. Give a folder with all of {', '.join(TINY_PARTS)}"
    return [{"what": "embedded model", "source": str(path), "option": "path", "why": why}]
