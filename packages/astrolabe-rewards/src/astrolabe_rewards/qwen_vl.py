"""A Qwen2-VL with a reward head: questions about pictures or videos in, numbers out.

What the two reward models that use it have in common:

- **Positions are 0, 1, 2, ... on all three axes of the rotary embedding.** Both were trained so
  (their ``forward`` bypassed ``get_rope_index`` of transformers 4.45); transformers now computes
  positions in space and time when none are given, and scores then differ by whole units.
- Padding is on the right and attention looks back only, so no token that counts sees padding: there
  is no mask to make, and scaled_dot_product_attention takes its fast causal path.
- The last hidden state is read at the reward tokens alone; the head runs in float32.
- Questions of like length share a forward, as many as fit ``max_tokens``. This changes no score.
"""

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn

from astrolabe_rewards.errors import WeightsError
from astrolabe_rewards.frames import qwen_patches
from astrolabe_rewards.needs import Published, require
from astrolabe_rewards.placement import Placement
from astrolabe_rewards.qwen_prompt import PromptEncoder
from astrolabe_rewards.qwen_weights import Checkpoint
from astrolabe_rewards.reward import Reward
from astrolabe_rewards.weights import digest

Quantization = Literal["8bit", "4bit"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class QwenPlacement(Placement):
    """A placement that may also hold the language layers in few bits.

    Args:
        asker: The reward, for messages.
        quantization: None, "8bit" or "4bit".

    Raises:
        ModuleNotFoundError: If transformers, tokenizers or Pillow is not installed.
        ValueError: If an option is unknown, the device is not there, or bitsandbytes is not.
    """

    asker: str = field(compare=False)
    quantization: Quantization | None

    def __post_init__(self) -> None:
        require("qwen", self.asker)
        super().__post_init__()
        if self.quantization is not None:
            if self.quantization not in get_args(Quantization):
                raise ValueError(
                    f"quantization is {self.quantization!r}. Leave it out, or choose from: "
                    f"{get_args(Quantization)}."
                )
            absent = [name for name in ("bitsandbytes", "accelerate") if find_spec(name) is None]
            if absent:
                raise ValueError(
                    f"quantization is {self.quantization!r}, which needs {' and '.join(absent)}. "
                    f"Install with `pip install {' '.join(absent)}`, or leave quantization out."
                )


@dataclass(frozen=True)
class Question:
    """One sequence to be read.

    Attributes:
        ids: Token ids, visual tokens included.
        asked: Places of the reward tokens, one per answer.
        frames: uint8 ``[F, 3, H, W]`` as they came; made ready when the forward comes to them.
    """

    ids: list[int]
    asked: list[int]
    frames: Tensor


class RewardVLM:
    """Backbone and head, loaded when the first question comes; one forward at a time.

    Args:
        checkpoint: The matched weights.
        encoder: The text around.
        placement: Where and how the weights are held.
        kind: Whether frames are read as pictures or as videos.

    Raises:
        WeightsError: If the checkpoint's tokens are not those of the tokenizer.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        encoder: PromptEncoder,
        placement: QwenPlacement,
        kind: Literal["image", "video"],
    ) -> None:
        if checkpoint.rows < encoder.rows:
            raise WeightsError(
                f"{checkpoint.files.names()} knows {checkpoint.rows} tokens, the tokenizer and the "
                f"reward tokens are {encoder.rows}. Take the tokenizer of the base model that the "
                "checkpoint was trained from."
            )
        self.checkpoint = checkpoint
        self.encoder = encoder
        self.kind = kind
        self._placement = placement
        self._networks: tuple[nn.Module, nn.Module] | None = None
        self.lock = threading.RLock()

    def load(self) -> tuple[nn.Module, nn.Module]:
        """Return backbone and head; read the weights if they are not here yet."""
        with self.lock:
            if self._networks is None:
                placement, device = self._placement, self._placement.torch_device()
                _log.info("%s: reading %s", placement.asker, self.checkpoint.files.names())
                self._networks = self.checkpoint.load(
                    placement.torch_dtype(), device, placement.quantization
                )
            return self._networks

    def answers(
        self,
        questions: Sequence[Question],
        prepare: Callable[[Tensor], Tensor],
        max_tokens: int,
    ) -> Tensor:
        """Put questions to the model.

        Args:
            questions: At least one; all with as many reward tokens.
            prepare: Frames as they came to uint8 ``[F, 3, h, w]`` on the CPU, sides multiples of
                28.
            max_tokens: Tokens of one forward, padding included; a longer question goes alone.

        Returns:
            float32 ``[questions, reward tokens, outputs of the head]`` on the CPU.
        """
        with self.lock, torch.no_grad():
            networks = self.load()
            order: list[int] = []
            rows = []
            for members in micro_batches([len(question.ids) for question in questions], max_tokens):
                order += members
                rows.append(self._forward(networks, [questions[i] for i in members], prepare))
            # No result was waited for until here: the device computes while the CPU prepares.
            found = torch.cat(rows).cpu()
        answers = torch.empty_like(found)
        answers[order] = found
        return answers

    def _forward(
        self,
        networks: tuple[nn.Module, nn.Module],
        questions: Sequence[Question],
        prepare: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Answers of one micro-batch, ``[n, reward tokens, outputs]`` on the device."""
        backbone, head = networks
        device = next(head.parameters()).device
        length = max(len(question.ids) for question in questions)
        ids = torch.full((len(questions), length), self.encoder.padding)
        for row, question in zip(ids, questions, strict=True):
            row[: len(question.ids)] = torch.tensor(question.ids)
        # All are made ready before any goes to the device, which may still be at the last batch.
        ready = [prepare(question.frames) for question in questions]
        patches = torch.cat([qwen_patches(frames.to(device)) for frames in ready])
        sizes = [(len(frames), *frames.shape[-2:]) for frames in ready]
        grids = [[(count + 1) // 2, height // 14, width // 14] for count, height, width in sizes]
        pixels, grid = ("pixel_values", "image_grid_thw")
        if self.kind == "video":
            pixels, grid = ("pixel_values_videos", "video_grid_thw")
        positions = torch.arange(length, device=device).expand(3, len(questions), length)
        with torch.autocast(device.type, enabled=False):
            hidden = backbone(
                input_ids=ids.to(device),
                position_ids=positions,
                use_cache=False,
                **{pixels: patches, grid: torch.tensor(grids, device=device)},
            ).last_hidden_state  # [n, L, d]
            asked = torch.tensor([question.asked for question in questions], device=device)
            rows = torch.arange(len(questions), device=device)[:, None]
            answers: Tensor = head(hidden[rows, asked].float())
        return answers


class QwenReward(Reward):
    """What the rewards that are a Qwen2-VL have in common; not a reward by itself.

    Args:
        placement: Where and how the weights are held.
        max_tokens: Tokens of one forward, at least 1.

    Raises:
        ValueError: If ``max_tokens`` is less than 1.
    """

    needs_text: ClassVar[bool] = True
    _model: RewardVLM
    _files: list[Path]

    def __init__(self, placement: QwenPlacement, max_tokens: int) -> None:
        super().__init__()
        if max_tokens < 1:
            raise ValueError(
                f"max_tokens is {max_tokens!r}. Give the tokens of one forward, such as 16384."
            )
        self.dtype = placement.dtype
        self.quantization = placement.quantization
        self._max_tokens = max_tokens

    def load(self) -> Self:
        """Read the weights now instead of at the first score."""
        self._model.load()
        return self

    def fingerprint(self) -> str:
        """Return a short digest of class, options and the bytes of all files."""
        text = super().fingerprint() + digest(self._files)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def locate_base(published: Published, base: str, asker: str) -> tuple[Path, Path]:
    """Return ``config.json`` and ``tokenizer.json`` of a base model.

    Raises:
        WeightsError: If one of the two is missing.
    """
    wanted = published.wanted(asker, base)
    folder = wanted.locate()
    config, tokenizer = published.files
    return wanted.inside(folder, config), wanted.inside(folder, tokenizer)


def micro_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Yield groups of sequences, those of like length together.

    Args:
        lengths: Tokens of each sequence.
        max_tokens: Most tokens of a group after padding; a single longer one is a group too.

    Example:
        >>> list(micro_batches([5, 9, 4, 30], 18))
        [[2, 0], [1], [3]]
    """
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and (len(group) + 1) * lengths[index] > max_tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group
