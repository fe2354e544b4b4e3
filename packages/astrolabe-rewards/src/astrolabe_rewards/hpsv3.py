"""HPSv3: how much people prefer a picture for a prompt; a video gets the mean of its best frames.

Ma et al. 2025, "HPSv3: Towards Wide-Spectrum Human Preference Score" (arXiv 2508.03789): a fully
fine-tuned Qwen2-VL-7B with three linear layers over the hidden state of one extra token, which give
mean and log deviation of a preference. Taking the best 30 % of the frames is how the public
Astrolabe code scores videos with it.
"""

from typing import ClassVar

from torch import Tensor, nn

from astrolabe_rewards.frames import TOKEN_SIDE, fitted_size, resized_by_pillow
from astrolabe_rewards.needs import HPSV3, HPSV3_BASE
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
from astrolabe_rewards.weights import TensorFiles

#: Pixels of a picture after scaling: training set the least and the most to this same number.
PIXELS_PER_FRAME = 256 * TOKEN_SIDE * TOKEN_SIDE


def preference_head(width: int) -> nn.Sequential:
    """Return the head: hidden state of ``width`` numbers to (mean, log deviation)."""
    return nn.Sequential(
        nn.Linear(width, 1024),
        nn.ReLU(),
        nn.Dropout(0.05),
        nn.Linear(1024, 16),
        nn.ReLU(),
        nn.Linear(16, 2),
    )


def best_mean(scores: Tensor, share: float) -> Tensor:
    """Mean of the largest ``max(1, floor(share · F))`` of ``[N, F]`` scores, ``[N]``."""
    return scores.topk(max(1, int(share * scores.shape[1])), dim=1).values.mean(1)


class HPSv3(QwenReward):
    """How much people would prefer a video's frames, given its prompt: the mean of the best ones.

    Every ``frame_stride``-th frame is scored by itself; the score is the mean of the best share of
    them, in HPSv3's own raw unit (``mu``; it has no published normalisation).

    Args:
        weights: ``HPSv3.safetensors``, its folder, or where it is on the hub.
        base: Folder or hub repository with ``config.json`` and ``tokenizer.json`` of
            Qwen2-VL-7B-Instruct; its weights are not needed.
        top: Share of the scored frames that count, in (0, 1]. Astrolabe takes 0.3.
        frame_stride: Score every n-th frame, from the first. 1, all of them, is what Astrolabe
            does; 4 costs a quarter.
        max_tokens: Tokens of one forward; a frame is about 850. More is faster and takes more
            memory; scores do not change.
        dtype: Of the backbone; the head is float32.
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
        ``HPSv3(weights="/models/HPSv3.safetensors", base="/models/Qwen2-VL-7B-Instruct")``
    """

    name: ClassVar[str] = "hpsv3"
    measures: ClassVar[str] = "human preference for the best 30 % of frames, given the prompt"
    unit: ClassVar[str] = "HPSv3's mu, unbounded; good pictures reach about 10"
    licence: ClassVar[str] = "MIT (HPSv3), Apache-2.0 (Qwen2-VL-7B)"
    weights_from: ClassVar[str] = f"`{HPSV3.source}`, `{HPSV3_BASE.source}`"
    memory: ClassVar[str] = "14.4 GiB bf16, 28.9 fp32, 8.3 at 8 bit, 5.7 at 4 bit"

    def __init__(
        self,
        *,
        weights: str = HPSV3.source,
        base: str = HPSV3_BASE.source,
        top: float = 0.3,
        frame_stride: int = 1,
        max_tokens: int = 16384,
        dtype: DType = "bfloat16",
        device: str | None = None,
        quantization: Quantization | None = None,
    ) -> None:
        placement = QwenPlacement(dtype, device, self.name, quantization)
        super().__init__(placement, max_tokens)
        if not 0 < top <= 1:
            raise ValueError(f"top is {top!r}, not in (0, 1]. Take 1.0 for the mean of all frames.")
        if frame_stride < 1 or frame_stride != int(frame_stride):
            raise ValueError(
                f"frame_stride is {frame_stride!r}, not a whole number of at least 1. "
                "Take 1 for every frame, 4 for every fourth."
            )
        self.top = top
        self.frame_stride = int(frame_stride)
        file = HPSV3.wanted(self.name, weights).locate_file()
        config, tokenizer = locate_base(HPSV3_BASE, base, self.name)

        def build() -> RewardVLM:
            checkpoint = Checkpoint(TensorFiles([file]), config, preference_head)
            encoder = PromptEncoder(tokenizer, load_template("hpsv3"))
            return RewardVLM(checkpoint, encoder, placement, "image")

        self._files = [file, config, tokenizer]
        self._model = shared(self.name, self._files, placement, build)

    def score(self, pixels: Tensor, prompts: list[str], fps: Tensor) -> Tensor:
        """Return the mean of the best frames' ``mu``, float32 ``[N]``; see ``Reward.score``."""
        return best_mean(self.frame_scores(pixels, prompts)[..., 0], self.top)

    def frame_scores(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """Score single frames.

        Args:
            pixels: uint8 ``[N, F, 3, H, W]``.
            prompts: N texts.

        Returns:
            float32 ``[N, ceil(F / frame_stride), 2]`` on the CPU: ``mu`` and ``log sigma`` of the
            preference for every ``frame_stride``-th frame.

        Raises:
            ValueError: If one side of the frames is more than 200 times the other.
        """
        chosen = pixels[:, :: self.frame_stride]  # [N, f, 3, H, W]
        height, width = chosen.shape[-2:]
        size = fitted_size(height, width, PIXELS_PER_FRAME, PIXELS_PER_FRAME)
        tokens = size[0] * size[1] // TOKEN_SIDE**2
        questions = []
        for video, prompt in zip(chosen, prompts, strict=True):
            ids, asked = self._model.encoder.encode(prompt, tokens)
            questions += [Question(ids, asked, frame[None]) for frame in video]
        answers = self._model.answers(
            questions, lambda frames: resized_by_pillow(frames, size), self._max_tokens
        )
        return answers[:, 0].reshape(*chosen.shape[:2], 2)
