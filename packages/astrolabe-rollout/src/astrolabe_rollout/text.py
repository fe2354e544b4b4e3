"""Text encoders: prompts in, padded embeddings out."""

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, UMT5EncoderModel


class TextEncoder(nn.Module):
    """A (U)MT5 encoder with its tokenizer, used as Wan does.

    Prompts are padded to ``length`` tokens, and embeddings at padding positions are set to 0
    *after* the encoder; cross-attention has no mask and sees them all.

    Args:
        encoder: The encoder, of any size.
        tokenizer: Its tokenizer.
        length: Tokens of a prompt; longer ones are cut.
    """

    def __init__(
        self, encoder: UMT5EncoderModel, tokenizer: PreTrainedTokenizerBase, length: int = 512
    ) -> None:
        super().__init__()
        self.encoder, self.tokenizer, self.length = encoder, tokenizer, length

    def forward(self, prompts: Sequence[str]) -> Tensor:
        """Return embeddings ``[n, length, D]`` of n prompts, zero after the last token."""
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.length,
            truncation=True,
            return_tensors="pt",
        ).to(next(self.encoder.parameters()).device)
        hidden: Tensor = self.encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        mask: Tensor = tokens.attention_mask[..., None].to(hidden.dtype)
        return hidden * mask


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


@torch.no_grad()
def encode_distinct(encoder: TextEncoder, prompts: Sequence[str]) -> Tensor:
    """Encode each distinct prompt once; return ``[n, length, D]`` in the order given."""
    distinct = sorted(set(prompts))
    index = torch.tensor([distinct.index(prompt) for prompt in prompts])
    embeds: Tensor = encoder(distinct)
    return embeds[index]
