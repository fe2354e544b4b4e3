"""Streaming rollout of causal video models, as TensorDict modules. Names load on first use."""

from importlib import import_module
from typing import Any

_HOME = {
    "CausalTransformer": "causal",
    "CausalWan": "transformer",
    "CheckpointError": "errors",
    "ChunkStream": "chunks",
    "Denoiser": "denoiser",
    "FlowSchedule": "schedule",
    "Geometry": "geometry",
    "GroupSampler": "prompts",
    "KVCache": "cache",
    "PrecisionWarning": "errors",
    "PromptEnv": "env",
    "PromptFileError": "errors",
    "StreamingPolicy": "streaming",
    "VideoModel": "model",
    "add_lora": "lora",
    "export_lora": "export",
    "export_transformer": "export",
    "full_state": "sharding",
    "load_checkpoint": "checkpoints",
    "load_into": "checkpoints",
    "load_lora": "lora",
    "load_tiny": "tiny",
    "make_collector": "collector",
    "merge_lora": "lora",
    "read_prompt_table": "prompts",
    "read_prompts": "prompts",
    "sample_chunk": "sampler",
    "save_lora": "lora",
    "shard": "sharding",
    "trainable_parameters": "lora",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:  # any public name
    if name == "__version__":
        return import_module("importlib.metadata").version("astrolabe-rollout")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
