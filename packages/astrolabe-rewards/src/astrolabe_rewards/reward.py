"""The base of every reward: checks a batch once, so that subclasses only score."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from astrolabe_rewards.declared import check_declared, check_scores
from astrolabe_rewards.errors import RewardError, UnscoredError
from astrolabe_rewards.keys import FPS, PIXELS, SCORE, TEXT
from astrolabe_rewards.reward_fn import Portable
from astrolabe_rewards.rounding import rounding, rounding_key
from astrolabe_rewards.untouched import untouched


def check_pixels(pixels: Tensor, name: str) -> None:
    """Refuse what is not a batch of uint8 RGB videos.

    Args:
        pixels: To be uint8 ``[*B, F, 3, H, W]``, at least one batch dimension and one frame.
        name: Who asks, for the message.

    Raises:
        TypeError: If the dtype is not uint8.
        ValueError: If the shape is wrong.
    """
    if not isinstance(pixels, Tensor):
        raise TypeError(
            f"{name}: pixels are a {type(pixels).__name__}, not a tensor. Give uint8 "
            "[*B, F, 3, H, W]."
        )
    if pixels.dtype != torch.uint8:
        raise TypeError(
            f"{name}: pixels are {pixels.dtype}, not torch.uint8. Turn videos in [0, 1] into "
            "pixels by (video * 255).round().clamp(0, 255).to(torch.uint8)."
        )
    if pixels.ndim < 5:
        raise ValueError(
            f"{name}: pixels have shape {tuple(pixels.shape)}, not [*B, F, 3, H, W]. "
            "A single video becomes a batch by pixels[None]."
        )
    if pixels.shape[-3] != 3:
        way_out = (
            "Move the channels before height and width: pixels.movedim(-1, -3)."
            if pixels.shape[-1] == 3
            else "Repeat a grey channel three times."
        )
        raise ValueError(
            f"{name}: pixels have shape {tuple(pixels.shape)}: {pixels.shape[-3]} channels where "
            f"[*B, F, 3, H, W] has 3. {way_out}"
        )
    if 0 in pixels.shape[-4:]:
        raise ValueError(
            f"{name}: pixels have shape {tuple(pixels.shape)}: no frames or no area. "
            "Give at least one frame of one pixel."
        )


def checked_fps(fps: object, count: int, name: str) -> Tensor:
    """Return the frame rates of videos, float32 ``[count]``.

    Args:
        fps: To be one number above 0 for each video, frames per second.
        count: Videos.
        name: Who asks, for the message.

    Raises:
        TypeError: If it is no tensor of numbers.
        ValueError: If it has another number of entries, or one is not above 0.
    """
    if not isinstance(fps, Tensor) or fps.dtype == torch.bool or fps.is_complex():
        kind = fps.dtype if isinstance(fps, Tensor) else f"a {type(fps).__name__}"
        raise TypeError(f"{name}: fps are {kind}, not numbers. Give float32 [*B].")
    if fps.numel() != count:
        raise ValueError(
            f"{name}: fps have shape {tuple(fps.shape)} for {count} videos. Give one number for "
            "each, frames per second."
        )
    flat = fps.float().reshape(count)
    if wrong := [rate for rate in flat.tolist() if not 0 < rate < math.inf]:
        raise ValueError(f"{name}: fps has {wrong[0]}. Give frames per second, above 0.")
    return flat


@contextmanager
def _no_autocast() -> Iterator[None]:
    """Score in the precision that a reward was made for, whatever its caller computes in."""
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


class Reward(Portable):
    """One number per video: larger is better.

    Reads ``("video","pixels")``, ``("video","fps")`` and, if ``needs_text``, ``("prompt","text")``;
    writes ``("score", name)`` and, of scores that come in 16 bits, ``("rounding", "score", name)``:
    by how much two of them may differ and be equal. A subclass declares what it is by the class
    attributes below, of which it must give the first two, and writes ``score``. One with a
    constructor calls this one's. ``score`` runs without the autocast of its caller.

    Attributes:
        name: Second element of the key that is written.
        unit: What the number means, with its range.
        measures: What a large score means, in a few words.
        licence: Of the weights, or of the code if there are none.
        weights_from: Where the weights are, by default.
        memory: What they take.
        needs_text: Whether the score depends on the prompt; only then ``score`` gets prompts.
        deterministic: Whether equal input gives equal scores.
        may_fail: Whether ``score`` may answer with NaN for a video that it cannot judge, such as a
            judge whose answer could not be read. ``CompositeReward`` then leaves that video out
            (``on_error="invalid"``) or stops.

    Args:
        in_keys: Where pixels, fps and (if needed) text are, in this order. Rewards whose
            constructor takes no keys have `set_keys`.
        out_keys: Where the score goes; one key.

    Raises:
        RewardError: If an attribute is missing, of another type or misspelt, or ``score`` cannot be
            called as it will be.
        ValueError: If there are more or fewer keys than are read or written.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    measures: ClassVar[str] = ""
    licence: ClassVar[str] = "Apache-2.0"
    weights_from: ClassVar[str] = "none"
    memory: ClassVar[str] = "none"
    needs_text: ClassVar[bool] = False
    deterministic: ClassVar[bool] = True
    may_fail: ClassVar[bool] = False

    def __init__(
        self,
        *,
        in_keys: Sequence[NestedKey] | None = None,
        out_keys: Sequence[NestedKey] | None = None,
    ) -> None:
        super().__init__()
        check_declared(self, Reward)
        wanted: list[NestedKey] = [PIXELS, FPS, TEXT] if self.needs_text else [PIXELS, FPS]
        self._wire(self.name, wanted, [(SCORE, self.name)], in_keys, out_keys)

    # Any: subclasses that read prompts take a list[str], the others need not look at it.
    def score(self, pixels: Tensor, prompts: Any, fps: Tensor) -> Tensor:
        """Score videos; written by subclasses.

        Args:
            pixels: uint8 ``[N, F, 3, H, W]``, N at least 1; not to be changed.
            prompts: N texts if ``needs_text``, else None.
            fps: float32 ``[N]``, frames per second.

        Returns:
            Floating numbers ``[N]`` in the precision in which they were computed, finite
            (``may_fail``: or NaN), on any device.
        """
        raise NotImplementedError(f"{type(self).__name__} is a Reward without a score method.")

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the scores of a batch of any shape, float32 ``[*B, 1]``; NaN only if ``may_fail``.

        Raises:
            KeyError: If the batch lacks one of ``in_keys``.
            RewardError: If ``score`` returns anything but one floating number for each video,
                changes pixels or fps, or reads prompts that it does not declare to need.
            TypeError: If pixels are not uint8 or prompts are not texts.
            ValueError: If shapes are wrong or a score is not finite, NaN of ``may_fail`` excepted.
        """
        missing = [key for key in self.in_keys if tensordict.get(key, None) is None]
        if missing:
            raise KeyError(
                f"{self.name}: the batch lacks {missing}; this reward reads {self.in_keys}. "
                "Add them, or give other names with in_keys."
            )
        pixels = tensordict.get(self.in_keys[0])
        check_pixels(pixels, self.name)
        shape = pixels.shape[:-4]
        if tuple(tensordict.batch_size) != tuple(shape):
            raise ValueError(
                f"{self.name}: the batch has shape {tuple(tensordict.batch_size)}, its pixels hold "
                f"{tuple(shape)} videos. Give the TensorDict that batch_size."
            )
        count = shape.numel()
        fps = checked_fps(tensordict.get(self.in_keys[1]), count, self.name)
        prompts = self._prompts(tensordict, count) if self.needs_text else None
        if count == 0:
            scores = torch.zeros(0)
        else:
            given = untouched(self.name, tensordict, self.in_keys[:2])
            with given, torch.inference_mode(), _no_autocast():
                scores = self._call_score(pixels.flatten(0, len(shape) - 1), prompts, fps)
        if scores.dtype.itemsize < 4:
            blur = rounding(scores, scores.dtype).to(pixels.device, torch.float32).clone()
            tensordict.set(rounding_key(self.out_keys[0]), blur.reshape(*shape, 1))
        # The copy is an ordinary tensor: one made in inference mode cannot take part in a loss.
        scores = scores.to(device=pixels.device, dtype=torch.float32).clone()
        return tensordict.set(self.out_keys[0], scores.reshape(*shape, 1))

    def _score_keys(self) -> dict[str, NestedKey]:
        return {self.name: self.out_keys[0]}

    def _needed(self) -> list[NestedKey]:
        return self.in_keys

    def fingerprint(self) -> str:
        """Return a short digest of class, settings and weights: equal digests score equally.

        Settings are public attributes: numbers, texts, and tuples, lists and dicts. A subclass that
        keeps others, or loads its weights late, adds them.
        """
        digest = hashlib.blake2b(digest_size=8)
        settings = {
            key: value
            for key, value in vars(self).items()
            if isinstance(value, (int, float, str, tuple, list, dict))
            and not key.startswith("_")
            and key not in ("training", "in_keys", "out_keys")
        }
        kind = f"{type(self).__module__}.{type(self).__qualname__}"
        digest.update(repr((kind, sorted(settings.items()))).encode())
        for key, value in sorted(self.state_dict().items()):
            digest.update(repr((key, value.dtype, tuple(value.shape))).encode())
            flat = value.detach().cpu().contiguous().reshape(-1)  # no dimension has no bytes view
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _prompts(self, tensordict: TensorDictBase, count: int) -> list[str]:
        """The texts of a batch as a flat list, in the order of its flattened videos."""
        if count == 0:
            return []
        entry = tensordict.get(self.in_keys[2])
        texts = entry.tolist() if hasattr(entry, "tolist") else entry
        flat: list[object] = [texts]
        for _ in range(len(tensordict.batch_size)):
            flat = [
                text for row in flat for text in (row if isinstance(row, (list, tuple)) else [row])
            ]
        if len(flat) != count:
            raise ValueError(
                f"{self.name}: {len(flat)} prompts for {count} videos. Give one prompt per video."
            )
        wrong = [text for text in flat if not isinstance(text, str)]
        if wrong:
            raise TypeError(
                f"{self.name}: a prompt is {wrong[0]!r}, a {type(wrong[0]).__name__}. "
                "Prompts are texts (str)."
            )
        return [str(text) for text in flat]

    def _call_score(self, pixels: Tensor, prompts: list[str] | None, fps: Tensor) -> Tensor:
        """The checked scores of videos, ``[N]``."""
        try:
            scores = self.score(pixels, prompts, fps)
        except (TypeError, AttributeError) as error:
            if prompts is None and "NoneType" in str(error):
                raise RewardError(
                    f"{self.name}: score failed ({error}). It gets no prompts, as the class does "
                    "not declare needs_text: write needs_text = True into it if it reads them."
                ) from error
            raise
        return self._check_scores(scores, len(pixels))

    def _check_scores(self, scores: object, count: int) -> Tensor:
        """Scores as they came; refused if of another shape, or not finite without leave."""
        found = check_scores(f"{self.name}: score", scores, count, flat=True)
        refused = found.isinf() if self.may_fail else ~found.isfinite()
        bad = refused.nonzero().flatten().tolist()
        if bad:
            raise UnscoredError(
                f"{self.name}: scores of videos {bad[:8]} are not finite",
                found,
            )
        return found
