"""What stands beside Wan's transformer: its text encoder and its VAE, from folders of diffusers."""

from pathlib import Path
from typing import Any

import torch

from astrolabe_rollout.errors import CheckpointError
from astrolabe_rollout.extras import wan_extra
from astrolabe_rollout.finite import check_finite
from astrolabe_rollout.text import TextEncoder
from astrolabe_rollout.wan_config import check_text_encoder, check_vae, read_json
from astrolabe_rollout.wan_vae import WanCodec

with wan_extra():
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    from transformers import AutoTokenizer, UMT5EncoderModel


def load_text_encoder(folder: Path, dtype: torch.dtype, device: torch.device) -> TextEncoder:
    """Load UMT5 and its tokenizer from a diffusers folder of Wan; prompts have 512 tokens.

    Raises:
        CheckpointError: If it is damaged, incomplete, of another kind or unfit for its tokenizer,
            or a number is not finite.
    """
    part = folder / "text_encoder"
    check_text_encoder(_config(part), repr(str(part)))
    with _reading(part):
        loaded: Any = UMT5EncoderModel.from_pretrained(part, dtype=dtype, output_loading_info=True)
        encoder, found = loaded
        _complete(part, found, others=("decoder.", "lm_head."))
    check_finite(part, encoder.state_dict())
    with _reading(folder / "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    if len(tokenizer) > encoder.config.vocab_size:
        raise CheckpointError(
            f"{str(folder / 'tokenizer')!r} knows {len(tokenizer)} tokens, the text encoder beside "
            f"it {encoder.config.vocab_size}. Download both from one repository."
        )
    return TextEncoder(encoder, tokenizer, length=512).to(device)


def load_codec(folder: Path, dtype: torch.dtype, device: torch.device) -> WanCodec:
    """Load Wan's VAE from a diffusers folder.

    Raises:
        CheckpointError: If it is damaged, incomplete or of another kind, or a number is not finite.
    """
    part = folder / "vae"
    check_vae(_config(part), repr(str(part)))
    with _reading(part):
        vae, found = AutoencoderKLWan.from_pretrained(
            part, torch_dtype=dtype, output_loading_info=True
        )
        _complete(part, found)
    check_finite(part, vae.state_dict())
    return WanCodec(vae).to(device)


def _config(part: Path) -> dict[str, Any]:
    file = part / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{str(part)!r} has no config.json. Download the folder again.")
    return read_json(file)


def _complete(part: Path, found: dict[str, Any], others: tuple[str, ...] = ()) -> None:
    """Refuse weights that left a part of the model as it was made: at random."""
    wrong = {
        kind: sorted(map(str, found.get(f"{kind}_keys") or ()))
        for kind in ("missing", "unexpected", "mismatched")
    }
    wrong["unexpected"] = [key for key in wrong["unexpected"] if not key.startswith(others)]
    told = "; ".join(
        f"{len(keys)} {kind}: {', '.join(keys[:3])}" for kind, keys in wrong.items() if keys
    )
    if told:
        raise ValueError(f"its weights do not fit its config.json: {told}")


class _reading:  # noqa: N801  # reads like the function that it stands for
    """Name the folder when a library cannot load it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (OSError, ValueError, TypeError, RuntimeError)):
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{str(self.folder)!r} cannot be loaded ({reason}). Download it again, or set "
                "components to a complete folder."
            ) from error
