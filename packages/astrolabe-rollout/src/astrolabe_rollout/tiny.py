"""The embedded model ``tiny``: the real classes at a small size, its weights in the package.

48x48 pixels, 16 frames per second, 3.9 M parameters; it knows the procedural world of ``world`` and
no other.
``tools/pretrain_tiny.py`` made the weights; ``tiny_weights/README.md`` is its model card.
"""

from pathlib import Path

import torch
from torch import nn

from astrolabe_rollout import world
from astrolabe_rollout.codec import PatchCodec
from astrolabe_rollout.errors import CheckpointError
from astrolabe_rollout.extras import wan_extra
from astrolabe_rollout.finite import check_finite
from astrolabe_rollout.geometry import Geometry
from astrolabe_rollout.input_files import check_file
from astrolabe_rollout.model import VideoModel
from astrolabe_rollout.needs import TINY_PARTS as PARTS
from astrolabe_rollout.schedule import FlowSchedule
from astrolabe_rollout.text import TextEncoder, word_tokenizer
from astrolabe_rollout.transformer import CausalWan

with wan_extra():
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import UMT5Config, UMT5EncoderModel

GEOMETRY = Geometry(world.SIZE, world.SIZE, window=9, sink=3)
LAYERS = 6
SHIFT = 3.0  # 5 is for 832x480 pixels; the fewer the pixels, the more a noise level hides


def build_tiny(seed: int = 0, layers: int = LAYERS) -> VideoModel:
    """Return the model with random weights, as pretraining starts from it.

    Args:
        seed: Of the weights.
        layers: Blocks of the transformer, from 1 to 100; fewer of them take less time.

    Raises:
        ValueError: If ``layers`` is something else.
    """
    if type(layers) is not int or not 1 <= layers <= 100:
        raise ValueError(f"layers is {layers!r}. Give a whole number from 1 to 100.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = WanTransformer3DModel(
            num_attention_heads=3,
            attention_head_dim=64,
            text_dim=96,
            freq_dim=128,
            ffn_dim=768,
            num_layers=layers,
        )
        words = " ".join(world.prompts(False) + world.prompts(True)).split()
        tokenizer = word_tokenizer(words)
        config = UMT5Config(
            vocab_size=len(tokenizer),
            d_model=96,
            d_kv=24,
            d_ff=192,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
        )
        encoder = TextEncoder(UMT5EncoderModel(config), tokenizer, length=12)
        codec = PatchCodec()
    transformer = CausalWan(network, GEOMETRY, relative=True)
    return VideoModel(transformer, encoder, codec, FlowSchedule(SHIFT), fps=world.FPS)


def tiny_modules(model: VideoModel) -> dict[str, nn.Module]:
    """Return the modules whose weights are stored, by the name of their file."""
    assert isinstance(model.codec, PatchCodec)
    assert model.encoder.encoder is not None
    modules = (model.transformer.network, model.encoder.encoder, model.codec)
    return dict(zip(PARTS, modules, strict=True))


def load_tiny(path: str | Path | None = None, layers: int = LAYERS) -> VideoModel:
    """Load the embedded model, frozen.

    Args:
        path: Folder with ``transformer``, ``text`` and ``codec.safetensors``; by default the
            shipped ones.
        layers: Blocks of the transformer in ``path``.

    Raises:
        CheckpointError: If a file is missing, damaged, or of another model.
    """
    folder = Path(__file__).parent / "tiny_weights" if path is None else Path(path)
    model = build_tiny(layers=layers)
    for name, module in tiny_modules(model).items():
        file = folder / f"{name}.safetensors"
        try:
            check_file(file)
            state = load_file(file)
            check_finite(file, state)
            module.load_state_dict({key: value.float() for key, value in state.items()})
        except FileNotFoundError:
            raise CheckpointError(
                f"there is no {str(file)!r}. Give a folder with one of each of {', '.join(PARTS)}."
            ) from None
        except OSError as error:
            raise CheckpointError(
                f"{str(file)!r} cannot be read ({error.strerror}). Name a folder that you may read."
            ) from error
        except (SafetensorError, RuntimeError) as error:
            raise CheckpointError(
                f"{str(file)!r} is damaged or of another model: {str(error).splitlines()[0]}. "
                "Copy it again."
            ) from error
    return model.freeze()
