"""Write weights of all families in the layouts that are published, random and small (3 MB).

With them the real path runs on any machine, without a download: names, containers, adapters, text
encoder, VAE and the rules of each family. What they film is noise.

    uv run python tools/make_small_weights.py weights
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from astrolabe_rollout.conversion import to_original
from astrolabe_rollout.text import word_tokenizer

WORDS = ["a", "cat", "dog", "red", "blue", "circle", "runs", "sleeps", "wakes", "it", "the"]
WIDTH = 16  # of text embeddings
OPTIONS = ("size=any", "components={0}/wan", "height=64", "width=64", "device=cpu", "dtype=fp32")
#: Files of each family, by the options that name them.
FAMILIES = {
    "self-forcing": {"checkpoint": "self_forcing_dmd.pt"},
    "causal-forcing": {"checkpoint": "causal_forcing.pt"},
    "causal-forcing-framewise": {"checkpoint": "causal_forcing.pt"},
    "causal-forcing-2step": {"checkpoint": "causal_forcing.pt"},
    "causal-forcing-1step": {"checkpoint": "causal_forcing.pt"},
    "longlive": {"checkpoint": "longlive_base.pt", "lora": "lora.pt"},
    "infinity-rope": {"checkpoint": "self_forcing_dmd.pt"},
    "krea-14b": {"checkpoint": "krea-realtime-video-14b.safetensors"},
    "wan-1.3b": {"checkpoint": "wan"},
}


def write(folder: Path) -> None:
    """Write all files into a folder."""
    torch.manual_seed(0)
    network = WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=128, ffn_dim=256, text_dim=WIDTH, num_layers=2
    )
    network.save_pretrained(folder / "wan" / "transformer")
    state = {k: v.contiguous() for k, v in to_original(network.state_dict()).items()}
    model = {f"model.{name}": value for name, value in state.items()}
    sharded = {f"model._fsdp_wrapped_module.{name}": value for name, value in state.items()}
    torch.save({"generator_ema": sharded, "generator": model}, folder / "self_forcing_dmd.pt")
    torch.save({"generator": model, "step": 1000}, folder / "causal_forcing.pt")
    torch.save({"generator": model}, folder / "longlive_base.pt")
    torch.save({"generator_lora": adapter(state), "step": 3000}, folder / "lora.pt")
    save_file(state, folder / "krea-realtime-video-14b.safetensors")

    parts = folder / "wan"
    tokenizer = word_tokenizer(WORDS)
    tokenizer.save_pretrained(parts / "tokenizer")
    config = UMT5Config(
        vocab_size=len(tokenizer), d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    UMT5EncoderModel(config).save_pretrained(parts / "text_encoder")
    AutoencoderKLWan(base_dim=8, num_res_blocks=1).save_pretrained(parts / "vae")
    (parts / "scheduler").mkdir(exist_ok=True)
    scheduler = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"}
    (parts / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))


def adapter(state: dict[str, Tensor], rank: int = 4) -> dict[str, Tensor]:
    """A LoRA of all linear layers of the blocks, named as LongLive names it."""
    made = {}
    for name, value in state.items():
        if name.startswith("blocks.") and name.endswith(".weight") and value.ndim == 2:
            layer = f"base_model.model.{name.removesuffix('.weight')}"
            made[f"{layer}.lora_A.weight"] = torch.randn(rank, value.shape[1]) / 10
            made[f"{layer}.lora_B.weight"] = torch.randn(value.shape[0], rank) / 10
    return made


def command(family: str, folder: Path) -> list[str]:
    """What films with a family's files."""
    options = [f"{name}={folder / file}" for name, file in FAMILIES[family].items()]
    options += [one.format(folder) for one in OPTIONS]
    settings = [word for one in options for word in ("--set", f"model.options.{one}")]
    # A folder for each: no program replaces the videos of another model unasked.
    out = ["--frames", "9", "--out", f"videos/{family}"]
    return ["generate", "a cat runs", "--model", family, *settings, *out]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where they go; made if missing")
    target = parser.parse_args().folder
    target.mkdir(parents=True, exist_ok=True)
    write(target)
    for name in FAMILIES:
        words = [f'"{word}"' if " " in word else word for word in command(name, target)]
        print("astrolabe", *words)
