"""A model of transformers in a folder: its settings, its tokenizer, and where its weights are."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astrolabe_rewards.errors import WeightsError
from astrolabe_rewards.input_files import read_json
from astrolabe_rewards.needs import (
    MODEL_SETTINGS,
    MODEL_WEIGHTS,
    VOCABULARIES,
    Published,
    require,
)
from astrolabe_rewards.pictures import Pictures

CONFIG, PICTURES = "config.json", "preprocessor_config.json"


class ModelFolder:
    """A model of transformers on this machine, downloaded if need be.

    Args:
        published: What it is; whether its weights are wanted, or only the files that describe it.
        source: Its folder, a file of weights in it, or its hub repository.
        asker: The reward, for messages.

    Attributes:
        weights: The files of tensors, one or several.

    Raises:
        ModuleNotFoundError: If transformers or Pillow is not installed.
        WeightsError: If it is absent.
    """

    def __init__(self, published: Published, source: str, asker: str) -> None:
        require("clip", asker)
        weights = MODEL_WEIGHTS[0] in published.files
        self._asker = asker
        self._wanted = published.wanted(asker, source)
        self.weights: list[Path] = []
        if weights:
            # Many repositories hold both formats: the older is fetched only if it is the only one.
            with suppress(WeightsError):
                self._settle(
                    replace(self._wanted, files=(*MODEL_SETTINGS, MODEL_WEIGHTS[0])).locate()
                )
        if not self.weights:
            self._settle(self._wanted.locate())
        if weights and not self.weights:
            raise self._wanted.absent(f"{str(self._folder)!r} has no {' or '.join(MODEL_WEIGHTS)}.")

    def file(self, name: str) -> Path:
        """Return a file of the folder.

        Raises:
            WeightsError: If it is not there.
        """
        return self._wanted.inside(self._folder, name)

    def config(self, *kinds: str) -> Any:  # Any: transformers ships no types
        """Return the configuration.

        Args:
            kinds: Values of ``model_type`` that are possible.

        Raises:
            WeightsError: If it is damaged or of another kind of model.
        """
        from transformers import CONFIG_MAPPING

        file = self.file(CONFIG)
        try:
            described = read_json(file)
            if described["model_type"] not in kinds:
                raise ValueError(f"its model_type is {described['model_type']!r}")
            return CONFIG_MAPPING[described["model_type"]].from_dict(described)
        except Exception as error:  # transformers has errors of its own for damaged settings
            reason = (str(error).strip().splitlines() or [""])[0]
            raise WeightsError(
                f"{str(file)!r} is no configuration of {' or '.join(kinds)} ({type(error).__name__}"
                f": {reason}). Name a model that {self._asker} can be."
            ) from error

    def pictures(self, side: int) -> Pictures:
        """Return how pictures are prepared.

        Args:
            side: Of the pictures that the network reads.

        Raises:
            WeightsError: If the file is damaged or of another network.
        """
        found = Pictures.read(self.file(PICTURES))
        if found.size != (side, side):
            raise WeightsError(
                f"{str(self.file(PICTURES))!r} gives pictures of {found.size}, the network reads "
                f"{(side, side)}. Take both files from one model."
            )
        return found

    def tokens(self, length: int, rows: int) -> "Texts":
        """Return the tokenizer.

        Args:
            length: Tokens that the network reads.
            rows: Tokens that the network knows.

        Raises:
            WeightsError: If it is absent, damaged or of another network.
        """
        if not self.vocabulary():
            # Without one, transformers makes a tokenizer of three tokens and says nothing.
            raise self._wanted.absent(f"{str(self._folder)!r} has no tokenizer.json.")
        return Texts(self._folder, length, rows)

    def vocabulary(self) -> list[Path]:
        """Return the files of the tokenizer that are there."""
        return [path for name in VOCABULARIES if (path := self._folder / name).is_file()]

    def _settle(self, place: Path) -> None:
        """Take a place, and the weights that are there."""
        self._folder = place.parent if place.is_file() else place
        single = [place] if place.is_file() else [self._folder / "model.safetensors"]
        parts = sorted(self._folder.glob("model-*-of-*.safetensors"))
        older = [self._folder / "pytorch_model.bin"]
        older_parts = sorted(self._folder.glob("pytorch_model-*-of-*.bin"))
        found = (files for files in (single, parts, older, older_parts) if files)
        self.weights = next((files for files in found if files[0].is_file()), [])


class Texts:
    """Prompts to token ids of one length, by a model's own tokenizer.

    What looks like a control token in a prompt is read as letters.

    Args:
        folder: Of the tokenizer.
        length: Tokens of a text, control tokens included; more are cut.
        rows: Tokens that the network knows.

    Attributes:
        padding: Id that fills short texts.
        end: Id that ends a text, if there is one.
        most: Largest id.

    Raises:
        WeightsError: If the tokenizer cannot be read or knows more tokens than the network.
    """

    def __init__(self, folder: Path, length: int, rows: int) -> None:
        from transformers import AutoTokenizer

        try:
            # To the right, as all were trained; some tokenizers of SigLIP 2 would pad to the left.
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, split_special_tokens=True, padding_side="right"
            )
        except Exception as error:  # tokenizers raises plain Exceptions
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise WeightsError(
                f"the tokenizer in {str(folder)!r} cannot be read: {reason} "
                "Take the tokenizer's files as they were published."
            ) from error
        most = max(self._tokenizer.get_vocab().values())
        if most >= rows:
            raise WeightsError(
                f"the tokenizer in {str(folder)!r} has tokens up to {most}, the network knows "
                f"{rows}. Take both from one model."
            )
        self.padding: int = self._tokenizer.pad_token_id
        self.end: int | None = self._tokenizer.eos_token_id
        self.most = most
        self._length = length

    def __call__(self, texts: list[str]) -> tuple[Tensor, int]:
        """Return ids ``[N, length]``, and how many texts were cut."""
        # All were trained on small letters; the tokenizers that SigLIP 2 is published with forgot.
        texts = [text.lower() for text in texts]
        whole = self._tokenizer(texts, verbose=False)["input_ids"]
        cut = sum(len(ids) > self._length for ids in whole)
        # All to one length: SigLIP was trained so, and reads padding like any other token.
        ids = self._tokenizer(
            texts, truncation=True, max_length=self._length, padding="max_length"
        )["input_ids"]
        return torch.tensor(ids), cut
