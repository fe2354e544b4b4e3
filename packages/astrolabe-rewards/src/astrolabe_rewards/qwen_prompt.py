"""The text around a picture or video as token ids; a user's prompt never becomes markup.

The checkpoints were trained with exact strings (``templates/*.json``, package data) and mark the
places where a score is read by tokens of their own. Those strings are cut at their control tokens
before a prompt is put in, and what lies between is encoded by a tokenizer that knows no control
token: ``<|im_end|>`` in a prompt is ten letters of text.
"""

import json
import logging
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from astrolabe_rewards.errors import WeightsError
from astrolabe_rewards.input_files import read_json

#: Longer prompts are cut: only their first 4096 tokens are read (about 16 000 letters of English).
MAX_PROMPT_TOKENS = 4096

_CONTROL = re.compile(r"(<\|\w+\|>)")
_BLANK = "{text_prompt}"
_PADDING = "<|endoftext|>"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChatTemplate:
    """The fixed text around one picture or video and one prompt.

    Attributes:
        pieces: Text and control tokens in turn; one text holds ``{text_prompt}``.
        reward_tokens: Control tokens at whose places a score is read, in the order of the text.
        slot: The control token that stands for the picture or video, once per visual token.
    """

    pieces: tuple[str, ...]
    reward_tokens: tuple[str, ...]
    slot: str


def load_template(name: str) -> ChatTemplate:
    """Read ``templates/<name>.json`` of this package."""
    file = resources.files("astrolabe_rewards") / "templates" / f"{name}.json"
    parts = json.loads(file.read_text("utf-8"))
    text = "".join(parts[part] for part in ("prefix", "slot", "instruction", "tail", "suffix"))
    (slot,) = (token for token in _CONTROL.findall(parts["slot"]) if token.endswith("_pad|>"))
    return ChatTemplate(tuple(_CONTROL.split(text)), tuple(parts["reward_tokens"]), slot)


class PromptEncoder:
    """Prompts to token ids, by the tokenizer of the base model and a chat template.

    Args:
        tokenizer: The base model's ``tokenizer.json``.
        template: The text around.

    Attributes:
        padding: Id of ``<|endoftext|>``.
        rows: Rows of an embedding that has the base's tokens and the reward tokens.

    Raises:
        WeightsError: If the file is no tokenizer, or not one of Qwen2-VL.
    """

    def __init__(self, tokenizer: Path, template: ChatTemplate) -> None:
        from tokenizers import Tokenizer

        try:
            described = read_json(tokenizer)
            controls = {token["content"]: int(token["id"]) for token in described["added_tokens"]}
            described["added_tokens"] = []
            self._tokenizer = Tokenizer.from_str(json.dumps(described))
        except Exception as error:  # tokenizers raises plain Exceptions
            raise WeightsError(
                f"{str(tokenizer)!r} is no tokenizer of Qwen2-VL: {error}. "
                "Take tokenizer.json as the base model has it."
            ) from error
        known = max([*self._tokenizer.get_vocab().values(), *controls.values()]) + 1
        for token in template.reward_tokens:  # new tokens come after all others, in this order
            controls.setdefault(token, known)
            known = max(known, controls[token] + 1)
        unknown = [token for token in (*template.pieces[1::2], _PADDING) if token not in controls]
        if unknown:
            raise WeightsError(
                f"{str(tokenizer)!r} lacks the tokens {unknown}: it is of another model. "
                "Take tokenizer.json of the Qwen2-VL that base names by default."
            )
        self.padding = controls[_PADDING]
        self.rows = known
        self._template = template
        self._controls = controls

    def encode(self, prompt: str, count: int) -> tuple[list[int], list[int]]:
        """Return the ids of one sequence, and the places of its reward tokens.

        Args:
            prompt: Any text; its first 4096 tokens are read. Lone surrogates, which no UTF-8 has,
                become question marks.
            count: Visual tokens of the picture or video.
        """
        prompt = self._shortened(prompt.encode("utf-8", "replace").decode("utf-8"))
        ids: list[int] = []
        asked: dict[str, int] = {}
        for index, piece in enumerate(self._template.pieces):
            if index % 2 == 0:
                ids += self._plain(piece.replace(_BLANK, prompt))
                continue
            if piece in self._template.reward_tokens:
                asked[piece] = len(ids)
            ids += [self._controls[piece]] * (count if piece == self._template.slot else 1)
        return ids, [asked[token] for token in self._template.reward_tokens]

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _shortened(self, prompt: str) -> str:
        """The prompt, or as much of it as fits."""
        if len(prompt.encode("utf-8")) <= MAX_PROMPT_TOKENS:  # a token is at least a byte
            return prompt
        encoded = self._tokenizer.encode(prompt, add_special_tokens=False)
        if len(encoded.ids) <= MAX_PROMPT_TOKENS:
            return prompt
        end = encoded.offsets[MAX_PROMPT_TOKENS][0]
        _log.warning(
            "a prompt of %d tokens is cut to its first %d, which end in %r",
            len(encoded.ids),
            MAX_PROMPT_TOKENS,
            prompt[max(0, end - 20) : end],
        )
        return prompt[:end]
