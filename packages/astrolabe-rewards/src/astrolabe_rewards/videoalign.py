"""VideoReward (VideoAlign): visual quality, motion quality and text alignment of a video.

Liu et al. 2025, "Improving Video Generation with Human Feedback" (arXiv 2501.13918): Qwen2-VL-2B
with LoRA on its language layers, one linear layer over the hidden states of three extra tokens. One
forward answers all three questions; Astrolabe asks for motion on the video in grey, so that colour
cannot be mistaken for it. All three rewards of a process share one copy of the weights and remember
each other's answers: together they cost one forward in colour and one in grey.
"""

import hashlib
from collections import OrderedDict
from typing import ClassVar, Final, Literal, get_args

import torch
from torch import Tensor

from astrolabe_rewards.frames import (
    TOKEN_SIDE,
    count_at_rate,
    evenly_spaced,
    fitted_size,
    grey,
    resized,
)
from astrolabe_rewards.needs import VIDEOREWARD, VIDEOREWARD_BASE
from astrolabe_rewards.placement import DType, shared
from astrolabe_rewards.qwen_prompt import PromptEncoder, load_template
from astrolabe_rewards.qwen_vl import (
    Quantization,
    Question,
    QwenPlacement,
    QwenReward,
    RewardVLM,
    locate_base,
)
from astrolabe_rewards.qwen_weights import Checkpoint
from astrolabe_rewards.videoalign_files import (
    DIMENSIONS,
    PREFIX,
    Settings,
    find_checkpoint,
    head_of,
)
from astrolabe_rewards.weights import TensorFiles

Sampling = Literal["reference", "native"]
Scale = Literal["normalised", "raw"]

REFERENCE_FRAMES: Final = 10
REFERENCE_SIZE: Final = (336, 588)
_LEAST_PIXELS: Final = 128 * TOKEN_SIDE * TOKEN_SIDE
_REMEMBERED: Final = 16384  # answers, three numbers each


class VideoReward:
    """One copy of the weights and what it has answered of late.

    Args:
        model: Backbone and head.
        settings: Of the checkpoint.
    """

    def __init__(self, model: RewardVLM, settings: Settings) -> None:
        self.model = model
        self.settings = settings
        self._answers: OrderedDict[bytes, Tensor] = OrderedDict()

    def raw(
        self,
        pixels: Tensor,
        prompts: list[str],
        fps: Tensor,
        *,
        sampling: Sampling,
        grayscale: bool,
        max_tokens: int,
    ) -> Tensor:
        """Return raw VQ, MQ and TA, float32 ``[N, 3]`` on the CPU; see ``VideoAlign``."""
        size = REFERENCE_SIZE
        if sampling == "native":
            height, width = pixels.shape[-2:]
            size = fitted_size(height, width, _LEAST_PIXELS, self.settings.most_pixels)
        fresh: dict[bytes, Question] = {}
        keys = []
        with self.model.lock:  # another thread may be about to answer the same
            for video, prompt, rate in zip(pixels, prompts, fps.tolist(), strict=True):
                frames = video[self._chosen(len(video), rate, sampling)].cpu()
                key = _key(frames, prompt, size, grayscale)
                keys.append(key)
                if key in self._answers:
                    self._answers.move_to_end(key)
                elif key not in fresh:
                    tokens = (len(frames) + 1) // 2 * size[0] * size[1] // TOKEN_SIDE**2
                    ids, asked = self.model.encoder.encode(prompt, tokens)
                    fresh[key] = Question(ids, asked, frames)
            found = {key: self._answers[key] for key in keys if key in self._answers}
            if fresh:

                def prepare(frames: Tensor) -> Tensor:
                    if grayscale:  # its channels are alike: one is scaled for all
                        return resized(grey(frames), size).expand(-1, 3, -1, -1)
                    return resized(frames, size)

                answers = self.model.answers(list(fresh.values()), prepare, max_tokens)
                if answers.shape[-1] == len(DIMENSIONS):  # an output for each dimension
                    answers = answers.diagonal(dim1=1, dim2=2)[..., None]
                found |= dict(zip(fresh, answers[..., 0], strict=True))
            self._answers |= found
            while len(self._answers) > _REMEMBERED:
                self._answers.popitem(last=False)
        return torch.stack([found[key] for key in keys])

    def _chosen(self, num_frames: int, fps: float, sampling: Sampling) -> list[int]:
        """The numbers of the frames that are looked at."""
        if sampling == "reference":
            return evenly_spaced(num_frames, REFERENCE_FRAMES)
        return evenly_spaced(num_frames, count_at_rate(num_frames, fps, self.settings.fps))


class VideoAlign(QwenReward):
    """One of VideoReward's three scores; ``VideoAlignVQ``, ``VideoAlignMQ``, ``VideoAlignTA``.

    ``(raw - mean) / std`` with the training set's mean and deviation of the dimension (published
    checkpoint: VQ 3.6757 and 2.2476, MQ 1.1646 and 1.3811, TA 2.8105 and 2.5121).

    Args:
        weights: The folder with ``model_config.json`` and ``checkpoint-N`` (the newest is taken), a
            checkpoint's folder, or its ``model.pth`` or ``model.safetensors``; or where it is on
            the hub. Without ``model_config.json`` the published one's settings are taken.
        base: Folder or hub repository with ``config.json`` and ``tokenizer.json`` of
            Qwen2-VL-2B-Instruct; its weights are not needed.
        scale: "normalised", in deviations above the mean; or "raw", as the model says it.
        sampling: "reference" looks at 10 frames, squeezed to 336x588, as the public Astrolabe code
            does with any video; "native" takes 2 frames per second and keeps the shape, as the
            model was trained. Both are the same for 81 frames at 16 per second, 480x832.
        max_tokens: Tokens of one forward; a video of 10 frames is about 2100. More is faster and
            takes more memory; scores do not change.
        dtype: Of the backbone; head and normalisation are float32.
        device: Where the weights go; None takes the current CUDA device if there is one, else the
            CPU. Moving the module later has no effect.
        quantization: "8bit" or "4bit" holds the language layers so (needs bitsandbytes and
            accelerate); scores then differ a little.

    Raises:
        ModuleNotFoundError: If transformers or Pillow is not installed.
        ValueError: If an option is out of its range.
        WeightsError: If weights or base are absent, damaged or of another network. All of this is
            found out here; the weights themselves are read at the first score, or by ``load``.

    Example:
        ``VideoAlignTA(weights="/models/VideoReward", base="/models/Qwen2-VL-2B-Instruct")``
    """

    dimension: ClassVar[str]
    licence: ClassVar[str] = "MIT (VideoAlign), Apache-2.0 (Qwen2-VL-2B)"
    weights_from: ClassVar[str] = f"`{VIDEOREWARD.source}`, `{VIDEOREWARD_BASE.source}`"
    memory: ClassVar[str] = "4.1 GiB bf16, 8.2 fp32, 2.9 at 8 bit, 2.4 at 4 bit; one for all three"

    def __init__(
        self,
        *,
        weights: str = VIDEOREWARD.source,
        base: str = VIDEOREWARD_BASE.source,
        scale: Scale = "normalised",
        sampling: Sampling = "reference",
        max_tokens: int = 16384,
        dtype: DType = "bfloat16",
        device: str | None = None,
        quantization: Quantization | None = None,
    ) -> None:
        placement = QwenPlacement(dtype, device, self.name, quantization)
        super().__init__(placement, max_tokens)
        for option, value, choices in (
            ("scale", scale, get_args(Scale)),
            ("sampling", sampling, get_args(Sampling)),
        ):
            if value not in choices:
                raise ValueError(f"{option} is {value!r}. Choose from: {choices}.")
        self.scale = scale
        self.sampling: Sampling = sampling
        self.grayscale = False
        files, config = find_checkpoint(VIDEOREWARD.wanted(self.name, weights))
        base_config, tokenizer = locate_base(VIDEOREWARD_BASE, base, self.name)

        def build() -> VideoReward:
            settings, tensors = Settings.read(config), TensorFiles(files)
            checkpoint = Checkpoint(
                tensors, base_config, head_of(tensors), prefix=PREFIX, lora=settings.lora
            )
            encoder = PromptEncoder(tokenizer, load_template("videoreward"))
            return VideoReward(RewardVLM(checkpoint, encoder, placement, "video"), settings)

        self._files = [*files, *([config] if config else []), base_config, tokenizer]
        self._shared = shared("videoalign", self._files, placement, build)
        self._model = self._shared.model

    def score(self, pixels: Tensor, prompts: list[str], fps: Tensor) -> Tensor:
        """Return the score of each video, float32 ``[N]``; see ``Reward.score``."""
        index = DIMENSIONS.index(self.dimension)
        raw = self.raw_scores(pixels, prompts, fps)[:, index]
        if self.scale == "raw":
            return raw
        settings = self._shared.settings
        return (raw - settings.mean[index]) / settings.std[index]

    def raw_scores(self, pixels: Tensor, prompts: list[str], fps: Tensor) -> Tensor:
        """Return all three scores as the model says them.

        Args:
            pixels: uint8 ``[N, F, 3, H, W]``.
            prompts: N texts.
            fps: ``[N]``, used by ``sampling="native"`` only.

        Returns:
            float32 ``[N, 3]`` on the CPU: VQ, MQ, TA, of the video in grey if this reward looks at
            it so.

        Raises:
            ValueError: If ``sampling="native"`` meets a rate of 0 or a shape beyond 200 to 1.
        """
        return self._shared.raw(
            pixels,
            prompts,
            fps,
            sampling=self.sampling,
            grayscale=self.grayscale,
            max_tokens=self._max_tokens,
        )


class VideoAlignVQ(VideoAlign):
    """How good a video looks; options as ``VideoAlign``.

    The prompt does not count: in the text it comes after the token at which this score is read.
    """

    name: ClassVar[str] = "videoalign_vq"
    dimension: ClassVar[str] = "VQ"
    measures: ClassVar[str] = "visual quality: plausible, clear, detailed, beautiful"
    unit: ClassVar[str] = (
        "deviations above VideoReward's mean, about -3 to 3; raw = 2.2476 z + 3.6757"
    )


class VideoAlignTA(VideoAlign):
    """How well a video shows what its prompt says; options as ``VideoAlign``."""

    name: ClassVar[str] = "videoalign_ta"
    dimension: ClassVar[str] = "TA"
    measures: ClassVar[str] = "text alignment: subject, motion, scene, style, camera"
    unit: ClassVar[str] = (
        "deviations above VideoReward's mean, about -3 to 3; raw = 2.5121 z + 2.8105"
    )


class VideoAlignMQ(VideoAlign):
    """How well things move; options as ``VideoAlign``, and one more.

    The prompt does not count: in the text it comes after the token at which this score is read.

    Args:
        grayscale: Look at the video in grey, as Astrolabe does; false for colour, as VideoReward
            was trained.
    """

    name: ClassVar[str] = "videoalign_mq"
    dimension: ClassVar[str] = "MQ"
    measures: ClassVar[str] = "motion quality, of the video in grey: stable, natural, fluid, enough"
    unit: ClassVar[str] = (
        "deviations above VideoReward's mean, about -3 to 3; raw = 1.3811 z + 1.1646"
    )

    def __init__(
        self,
        *,
        weights: str = VIDEOREWARD.source,
        base: str = VIDEOREWARD_BASE.source,
        scale: Scale = "normalised",
        sampling: Sampling = "reference",
        grayscale: bool = True,
        max_tokens: int = 16384,
        dtype: DType = "bfloat16",
        device: str | None = None,
        quantization: Quantization | None = None,
    ) -> None:
        super().__init__(
            weights=weights,
            base=base,
            scale=scale,
            sampling=sampling,
            max_tokens=max_tokens,
            dtype=dtype,
            device=device,
            quantization=quantization,
        )
        self.grayscale = grayscale


def _key(frames: Tensor, prompt: str, size: tuple[int, int], grayscale: bool) -> bytes:
    """What an answer depends on, as a digest."""
    digest = hashlib.blake2b(repr((prompt, tuple(frames.shape), size, grayscale)).encode())
    digest.update(frames.contiguous().numpy().tobytes())
    return digest.digest()
