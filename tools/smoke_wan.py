"""Run a model of real size once, with random weights: load, sample a chunk, decode, export.

    uv run python tools/smoke_wan.py --out /tmp/smoke

Writes a 1.3B transformer in the layout of Self-Forcing (``generator_ema`` in a ``.pt``, 2.8 GB), a
VAE of real size and a text encoder of one layer, loads them as the family ``self-forcing``,
samples one chunk with four steps and exports the transformer. Tells seconds and peak memory of each
part. It shows that sizes and names fit and what they cost; the pictures are noise.
"""

import argparse
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from astrolabe.clock import peak_memory
from astrolabe_rollout.checkpoints import load_checkpoint, meta_network
from astrolabe_rollout.chunks import ChunkStream
from astrolabe_rollout.conversion import to_original
from astrolabe_rollout.export import export_transformer
from astrolabe_rollout.text import word_tokenizer
from astrolabe_rollout.wan import self_forcing

SIZES = {"num_layers": 30, "num_attention_heads": 12, "ffn_dim": 8960}


@contextmanager
def measured(what: str) -> Iterator[None]:
    """Print what a part took."""
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    print(f"{what:<28} {seconds:8.1f} s   peak {peak_memory():6.2f} GiB", flush=True)


def fill(module: nn.Module, generator: torch.Generator) -> None:
    """Draw weights small enough for activations to stay finite."""
    for parameter in module.parameters():
        parameter.data.normal_(std=0.02, generator=generator)


def write_files(out: Path) -> None:
    """Write checkpoint and components as they are published."""
    generator = torch.Generator().manual_seed(0)
    network = meta_network(SIZES)
    state = {
        name: torch.randn(value.shape, generator=generator, dtype=torch.bfloat16) * 0.02
        for name, value in network.state_dict().items()
    }
    named = {f"model.{name}": value for name, value in to_original(state).items()}
    torch.save({"generator_ema": named}, out / "self_forcing_dmd.pt")
    tokenizer = word_tokenizer(["a", "cat", "runs"])
    tokenizer.save_pretrained(out / "components" / "tokenizer")
    config = UMT5Config(vocab_size=len(tokenizer), d_model=4096, d_kv=64, d_ff=128, num_layers=1)
    UMT5EncoderModel(config).save_pretrained(out / "components" / "text_encoder")
    vae = AutoencoderKLWan()
    fill(vae, generator)
    vae.save_pretrained(out / "components" / "vae")


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder, emptied at the end")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--window", type=int, default=3, help="latent frames in the cache")
    parser.add_argument("--no-decode", action="store_true", help="leave out the VAE")
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True)
    with measured("write the checkpoint"):
        write_files(out)
    with measured("load"):
        model = self_forcing(
            checkpoint=str(out / "self_forcing_dmd.pt"),
            components=str(out / "components"),
            height=options.height,
            width=options.width,
            window=options.window,
        )
    count = sum(p.numel() for p in model.transformer.parameters())
    print(f"{count / 1e9:.3f} B parameters, {model.geometry.tokens} tokens a frame", flush=True)
    stream = ChunkStream(model, [0], decode=False)
    with measured("sample one chunk, 4 steps"):
        latents = stream.next(model.text(["a cat runs"])).latents
    assert latents.isfinite().all()
    frames = stream.cache.nbytes / model.geometry.chunk
    print(f"{frames / 2**20:.1f} MiB of keys and values for a latent frame", flush=True)
    if not options.no_decode:
        with measured("decode"):
            pixels = model.codec.decode(latents)
        print(f"pixels {tuple(pixels.shape)}", flush=True)
    with measured("export"):
        export_transformer(model.transformer.network, out / "exported.safetensors")
    original, exported = (
        load_checkpoint(out / name) for name in ("self_forcing_dmd.pt", "exported.safetensors")
    )
    same = all(torch.equal(original[name], exported[name].to(torch.bfloat16)) for name in original)
    print(f"exported weights equal the original: {same and original.keys() == exported.keys()}")
    shutil.rmtree(out)


if __name__ == "__main__":
    main()
