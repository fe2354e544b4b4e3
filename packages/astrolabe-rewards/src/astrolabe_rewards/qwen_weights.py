"""A published reward checkpoint into the Qwen2-VL of the installed transformers, without gaps.

The checkpoints carry the names of transformers 4.45 (``visual.*``, ``model.*``), their LoRA layers
unmerged. Every tensor of the network must come from the file and every tensor of the file must have
a place, LoRA included; only ``lm_head.weight`` may go unused, since no score depends on it. The
public loader of VideoReward looks the other way instead and drops all of its LoRA weights.
"""

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from astrolabe_rewards.errors import WeightsError
from astrolabe_rewards.input_files import read_json
from astrolabe_rewards.network import refuse_misfits
from astrolabe_rewards.weights import TensorFiles

#: Beginnings of names, theirs to ours; the first that fits is taken. The first two are the layout
#: that transformers writes since 4.52.
_RENAMES = (
    ("model.visual.", "visual."),
    ("model.language_model.", "language_model."),
    ("visual.", "visual."),
    ("model.", "language_model."),
    ("rm_head.", "rm_head."),
    ("lm_head.", "lm_head."),
)
_LORA = re.compile(r"(.+)\.(lora_[AB])(?:\.default)?\.weight")
_EMBEDDING, _OUTPUT = "language_model.embed_tokens.weight", "lm_head.weight"
_HEAD = "rm_head."


@dataclass(frozen=True)
class LoRA:
    """How the LoRA layers of a checkpoint were made: ``W + alpha / rank · B A`` (Hu et al. 2021).

    Attributes:
        rank: Rows of ``A``.
        scale: What the product is multiplied by.
    """

    rank: int
    scale: float


class Checkpoint:
    """A checkpoint matched with its network; nothing but headers is read.

    Args:
        files: The tensors.
        config: The base model's ``config.json``.
        head: Makes the reward head for a backbone of that width.
        prefix: What all names of the files begin with.
        lora: The LoRA layers of the language model that the files must have; None if none.

    Attributes:
        backbone: A ``Qwen2VLModel`` on the meta device.
        head: The reward head on the meta device.

    Raises:
        WeightsError: If tensors are missing, unexpected, or of another shape.
    """

    def __init__(
        self,
        files: TensorFiles,
        config: Path,
        head: Callable[[int], nn.Module],
        *,
        prefix: str = "",
        lora: LoRA | None = None,
    ) -> None:
        self.files = files
        self.lora = lora
        self._names = _renamed(files, prefix)
        rows = self._shape(_EMBEDDING)
        self._config = _config(config, rows[0] if rows else 0)
        self.backbone = _skeleton(self._config)
        with torch.device("meta"):
            self.head = head(self._config.text_config.hidden_size)
        wanted = self.shapes()
        refuse_misfits(files, self._names, wanted, {_OUTPUT: wanted[_EMBEDDING]})

    @property
    def rows(self) -> int:
        """Tokens that the embedding knows."""
        return self._shape(_EMBEDDING)[0]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the name (ours) and shape of every tensor that the files must have."""
        wanted = {name: tuple(value.shape) for name, value in self.backbone.state_dict().items()}
        if self.lora is not None:
            for name, module in self.backbone.language_model.named_modules():
                if isinstance(module, nn.Linear):
                    layer, rank = f"language_model.{name}", self.lora.rank
                    wanted[f"{layer}.lora_A"] = (rank, module.in_features)
                    wanted[f"{layer}.lora_B"] = (module.out_features, rank)
        head = self.head.state_dict().items()
        return wanted | {f"{_HEAD}{name}": tuple(value.shape) for name, value in head}

    def load(
        self, dtype: torch.dtype, device: torch.device, quantization: str | None
    ) -> tuple[nn.Module, nn.Module]:
        """Return backbone and head with their weights, frozen and in evaluation mode.

        Args:
            dtype: Of the backbone; LoRA is merged in float32 and then rounded. The head is float32.
            device: Where both go.
            quantization: None, "8bit" or "4bit" (bitsandbytes; linear layers of the language model
                only).
        """
        with torch.inference_mode(False), self.files.opened() as read:
            # Quantised weights are made by transformers, from a state on the CPU.
            place = device if quantization is None else torch.device("cpu")
            state = {}
            for name in self.backbone.state_dict():
                weight = read(self._names[self._origin(name)]).to(place)
                layer = name.removesuffix(".weight")
                if f"{layer}.lora_A" in self._names and self.lora is not None:
                    down = read(self._names[f"{layer}.lora_A"]).to(place).float()
                    up = read(self._names[f"{layer}.lora_B"]).to(place).float()
                    weight = weight.float() + self.lora.scale * (up @ down)
                state[name] = weight.to(dtype)
            head = copy.deepcopy(self.head)
            weights = {
                name: read(self._names[f"{_HEAD}{name}"]).to(device, torch.float32)
                for name in head.state_dict()
            }
            head.load_state_dict(weights, assign=True)
            if quantization is None:
                backbone = copy.deepcopy(self.backbone)
                backbone.load_state_dict(state, assign=True)
                _fill_buffers(backbone, self._config, device)
            else:
                backbone = _quantised(self._config, state, dtype, device, quantization)
        return backbone.eval().requires_grad_(False), head.eval().requires_grad_(False)

    def _origin(self, name: str) -> str:
        """Ours to ours: where the value of a tensor is found."""
        # The reference loads both names into one tied tensor, lm_head last.
        tied = name == _EMBEDDING and self._config.tie_word_embeddings
        return _OUTPUT if tied and _OUTPUT in self._names else name

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.files.shapes[self._names[name]] if name in self._names else ()


def _renamed(files: TensorFiles, prefix: str) -> dict[str, str]:
    """Our name to theirs, of every tensor; a name that follows no rule stays as it is."""
    names: dict[str, str] = {}
    for theirs in files.shapes:
        ours = theirs.removeprefix(prefix)
        lora = _LORA.fullmatch(ours)
        ours = f"{lora[1]}.{lora[2]}" if lora else ours.replace(".base_layer.", ".")
        for old, new in _RENAMES if theirs.startswith(prefix) else ():
            if ours.startswith(old):
                ours = new + ours.removeprefix(old)
                break
        if ours in names:
            raise WeightsError(
                f"{files.names()} has the tensor {ours} twice, as {names[ours]} and {theirs}. "
                "Take the checkpoint as it was published."
            )
        names[ours] = theirs
    return names


def _config(file: Path, rows: int) -> Any:  # Any: transformers ships no types
    """The configuration of the base, with as many tokens as the checkpoint has."""
    from transformers import Qwen2VLConfig

    try:
        described = read_json(file)
        if described["model_type"] != "qwen2_vl":
            raise ValueError(f"its model_type is {described['model_type']!r}")
        config: Any = Qwen2VLConfig.from_dict(described)
    except Exception as error:  # transformers has errors of its own for damaged settings
        raise WeightsError(
            f"{str(file)!r} is no configuration of Qwen2-VL: {error}. "
            "Take config.json as the base model has it."
        ) from error
    if rows:
        config.text_config.vocab_size = rows
    return config


def _skeleton(config: Any) -> Any:  # Any: transformers ships no types
    with torch.device("meta"):
        return _models().from_config(config, attn_implementation="sdpa", dtype=torch.float32)


def _models() -> Any:  # Any: its constructors are untyped
    from transformers import AutoModel

    return AutoModel


def _fill_buffers(backbone: nn.Module, config: Any, device: torch.device) -> None:
    """Give a network from the meta device its buffers, which are in no checkpoint.

    They are rotary frequencies and depend on the configuration alone: those of a network without
    layers are the same.
    """
    shell = copy.deepcopy(config)
    shell.text_config.num_hidden_layers = shell.vision_config.depth = 0
    shell.text_config.layer_types, shell.text_config.pad_token_id = [], None
    shell.text_config.vocab_size = 1
    with torch.random.fork_rng(devices=[]):  # its weights are drawn; nobody's numbers may change
        filled = _models().from_config(shell, dtype=torch.float32)
    for name, value in filled.named_buffers():
        path, _, last = name.rpartition(".")
        setattr(backbone.get_submodule(path), last, value.to(device))
    unfilled = [name for name, value in backbone.named_buffers() if value.is_meta]
    assert not unfilled, f"buffers without values: {unfilled}"


def _quantised(
    config: Any, state: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device, bits: str
) -> nn.Module:
    """A network whose language layers are held in 8 or 4 bits."""
    import transformers

    # Any: both are untyped where they are called.
    model: Any = transformers.Qwen2VLModel
    bitsandbytes: Any = transformers.BitsAndBytesConfig
    settings: dict[str, Any] = (
        {"load_in_8bit": True}
        if bits == "8bit"
        else {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": dtype,
        }
    )
    network: nn.Module = model.from_pretrained(
        None,
        config=config,
        state_dict=dict(state),
        dtype=dtype,
        attn_implementation="sdpa",
        device_map={"": str(device)},
        quantization_config=bitsandbytes(**settings, llm_int8_skip_modules=["visual"]),
    )
    return network
