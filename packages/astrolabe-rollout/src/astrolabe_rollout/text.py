"""Text encoders: prompts in, padded embeddings out."""

import html
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from astrolabe_rollout.extras import wan_extra

with wan_extra():
    import ftfy
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, UMT5EncoderModel


@runtime_checkable
class PromptEncoder(Protocol):
    """What a model asks of its text encoder."""

    def embed(self, prompts: list[str]) -> Tensor:
        """Return embeddings ``[n, L, D]`` of n prompts, floats; L the same at every call."""


_log = logging.getLogger(__name__)


class TextEncoder(nn.Module):
    """A (U)MT5 encoder with its tokenizer, used as Wan does.

    Prompts are cleaned, padded to ``length`` tokens, and embeddings at padding positions are set to
    0 *after* the encoder; cross-attention has no mask and sees them all.

    Args:
        encoder: The encoder, of any size.
        tokenizer: Its tokenizer.
        length: Tokens of a prompt; longer ones are cut, with a warning, and counted.
        remember: Prompts whose embeddings `embed` keeps.

    Attributes:
        num_cut: Prompts that were longer than ``length``.
    """

    def __init__(
        self,
        encoder: UMT5EncoderModel,
        tokenizer: PreTrainedTokenizerBase,
        length: int = 512,
        remember: int = 1024,
    ) -> None:
        super().__init__()
        self.encoder: UMT5EncoderModel | None = encoder
        self.tokenizer, self.length, self.remember = tokenizer, length, remember
        self.num_cut = 0
        self._known: OrderedDict[str, Tensor] = OrderedDict()  # on the CPU

    def forward(self, prompts: Sequence[str]) -> Tensor:
        """Return embeddings ``[n, length, D]`` of n prompts, zero after the last token."""
        encoder = self._encoder(prompts)
        cleaned = [clean(prompt) for prompt in prompts]
        self._warn(cleaned)
        tokens = self.tokenizer(
            cleaned,
            padding="max_length",
            max_length=self.length,
            truncation=True,
            return_tensors="pt",
        ).to(next(encoder.parameters()).device)
        hidden: Tensor = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        mask: Tensor = tokens.attention_mask[..., None].to(hidden.dtype)
        return hidden * mask

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Encode each distinct prompt once; return ``[n, length, D]`` in order, on the CPU.

        While the encoder is frozen, embeddings are remembered on the CPU: UMT5-XXL takes longer
        than a chunk of video.

        Raises:
            RuntimeError: If a prompt is new and the encoder was released.
        """
        new = sorted(set(prompts) - self._known.keys())
        fresh = dict(zip(new, map(_trimmed, self(new).cpu()), strict=True)) if new else {}
        rows = {p: fresh[p] if p in fresh else self._known[p] for p in prompts}
        padded = {p: pad(row, (0, 0, 0, self.length - len(row))) for p, row in rows.items()}
        found = torch.stack([padded[prompt] for prompt in prompts])
        if self.encoder is None or not any(p.requires_grad for p in self.encoder.parameters()):
            self._known.update(fresh)
            for prompt in set(prompts):
                self._known.move_to_end(prompt)
            while len(self._known) > self.remember:
                self._known.popitem(last=False)
        return found

    def release(self) -> None:
        """Free the encoder's memory; prompts that were embedded stay known."""
        self.encoder = None

    def _encoder(self, prompts: Sequence[str]) -> UMT5EncoderModel:
        if self.encoder is None:
            raise RuntimeError(
                f"the text encoder was released and does not know {prompts[0]!r}. "
                "Embed all prompts before release(), or keep the encoder on the CPU."
            )
        return self.encoder

    def _warn(self, prompts: Sequence[str]) -> None:
        lengths = [len(ids) for ids in self.tokenizer(list(prompts)).input_ids]
        for prompt, count in zip(prompts, lengths, strict=True):
            if count > self.length:
                self.num_cut += 1
                _log.warning(
                    "a prompt of %d tokens is cut to %d: %r...", count, self.length, prompt[:60]
                )


def clean(prompt: str) -> str:
    """Mend a prompt as Wan's own pipeline does: broken Unicode, HTML entities, white space."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())


def _trimmed(embeds: Tensor) -> Tensor:
    """Embeddings without the zeros at the end: of 512 positions, a prompt fills a tenth."""
    used = embeds.any(-1).nonzero()
    return embeds[: int(used[-1]) + 1 if len(used) else 0].clone()


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows whole lower-case words; all others become ``<unk>``."""
    specials = ["<pad>", "</s>", "<unk>"]
    vocabulary = {word: index for index, word in enumerate([*specials, *sorted(set(words))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers has no types here
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
