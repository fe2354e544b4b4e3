"""A text reward for the embedded model's world: a small classifier that saw the world's own videos.

It is *not* a general text-video model. It knows six colours, three shapes, eight motions and four
grounds (``words.VOCABULARY``), and it was trained by ``tools/train_tiny_reward.py`` on rendered
videos that were blurred, noisy, faint, deformed, shuffled or frozen, with targets that grow
uncertain as the video does. So its probabilities also tell how clearly a thing is shown.
"""

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from astrolabe_rewards.errors import WeightsError
from astrolabe_rewards.frames import evenly_spaced
from astrolabe_rewards.input_files import check_file
from astrolabe_rewards.reward import Reward
from astrolabe_rewards.weights import check_finite
from astrolabe_rewards.words import VOCABULARY, named_attributes

SIZE = 48
NUM_FRAMES = 9
NEUTRAL = 0.5


class TinyMatcher(nn.Module):
    """Predict colour, shape, motion and ground of a short clip; about 130 000 parameters.

    Every frame passes the same three convolutions. Colour, shape and ground are read from the
    features averaged over place and time; motion from where things are, by convolutions over time.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.frame = nn.Sequential(
            nn.Conv2d(3, width, 6, stride=4, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.SiLU(),
        )  # 48x48 -> 6x6
        self.place = nn.Sequential(nn.Conv2d(2 * width, 12, 1), nn.Flatten(), nn.Linear(432, 64))
        self.time = nn.Sequential(
            nn.SiLU(),
            nn.Conv1d(64, 96, 3),
            nn.SiLU(),
            nn.Conv1d(96, 96, 3),
            nn.SiLU(),
        )
        self.heads = nn.ModuleDict(
            {
                name: nn.Linear(96 * 5 if name == "motion" else 4 * width, len(values))
                for name, values in VOCABULARY.items()
            }
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Torch's way to move and cast a module: it moves, but stays in float32."""

        def moved(value: Tensor) -> Tensor:
            found = fn(value)
            return found if found.dtype == value.dtype else value.to(found.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]  # torch has no types there
        return self

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        """Return logits of every attribute.

        Args:
            clips: float ``[n, 9, 3, 48, 48]`` in [-1, 1].

        Returns:
            Attribute to float ``[n, values]``, in the order of ``VOCABULARY``.
        """
        features = self.frame(clips.flatten(0, 1))  # [n * 9, c, 6, 6]
        looks = torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)
        looks = looks.reshape(-1, NUM_FRAMES, looks.shape[1]).mean(1)
        places = self.place(features).reshape(-1, NUM_FRAMES, 64).transpose(1, 2)  # [n, 64, 9]
        moves = self.time(places).flatten(1)
        return {
            name: head(moves if name == "motion" else looks) for name, head in self.heads.items()
        }


def clips_of(pixels: Tensor) -> Tensor:
    """Prepare videos for the matcher.

    Args:
        pixels: uint8 ``[N, F, 3, H, W]``.

    Returns:
        9 evenly spaced frames, scaled, float ``[N, 9, 3, 48, 48]`` in [-1, 1].
    """
    chosen = pixels[:, evenly_spaced(pixels.shape[1], NUM_FRAMES)].float()
    if chosen.shape[-2:] != (SIZE, SIZE):
        flat = chosen.flatten(0, 1)
        flat = functional.interpolate(flat, size=(SIZE, SIZE), mode="bilinear", antialias=True)
        chosen = flat.reshape(*chosen.shape[:3], SIZE, SIZE)
    return chosen / 127.5 - 1


def load_matcher(path: str | Path | None = None) -> TinyMatcher:
    """Read the shipped matcher, or one trained elsewhere.

    Args:
        path: A file written by ``tools/train_tiny_reward.py``; None takes the one in the package.

    Raises:
        WeightsError: If the file is missing, is no safetensors file, or fits another network.
    """
    shipped = resources.files("astrolabe_rewards") / "weights" / "tiny_ta.safetensors"
    file = Path(str(shipped)) if path is None else Path(path)
    if not file.is_file():
        raise WeightsError(
            f"no weights of tiny_ta at {str(file)!r}. Leave path out to use the shipped ones, or "
            "make them with `uv run python tools/train_tiny_reward.py`."
        )
    matcher = TinyMatcher()
    try:
        check_file(file)
        state = load_file(file)
        matcher.load_state_dict({name: value.float() for name, value in state.items()})
        for name, value in state.items():
            check_finite(file, name, value)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise WeightsError(
            f"{str(file)!r} holds no weights of tiny_ta ({str(error).splitlines()[0]}). "
            "Leave path out to use the shipped ones."
        ) from error
    return matcher.eval().requires_grad_(False)


class TinyTextReward(Reward):
    """How clearly a video shows what its prompt names, in the embedded model's world.

    The mean, over the attributes that the prompt names (colour, shape, motion, ground), of the
    probability that a small classifier, always in float32, gives to the named value. A prompt that
    names none of them scores a neutral 0.5. Other worlds need another reward.

    Args:
        path: Weights made by ``tools/train_tiny_reward.py``; None takes the shipped ones.

    Raises:
        WeightsError: If the weights cannot be read.
    """

    name: ClassVar[str] = "tiny_ta"
    measures: ClassVar[str] = (
        "a small classifier of the embedded model's world: colour, shape, motion, ground"
    )
    unit: ClassVar[str] = "mean probability of the named attributes, 0 to 1"
    weights_from: ClassVar[str] = "in the package"
    memory: ClassVar[str] = "1 MiB"
    needs_text: ClassVar[bool] = True

    def __init__(self, *, path: str | None = None) -> None:
        super().__init__()
        self.matcher = load_matcher(path)

    def score(self, pixels: Tensor, prompts: list[str], fps: Tensor) -> Tensor:
        """Return the mean probability of what is named, ``[N]``; see ``Reward.score``."""
        device = next(self.matcher.parameters()).device
        logits = self.matcher(clips_of(pixels).to(device))
        probabilities = {name: value.softmax(-1).cpu() for name, value in logits.items()}
        scores = torch.full((len(prompts),), NEUTRAL, dtype=torch.float32)
        for i, prompt in enumerate(prompts):
            named = named_attributes(prompt)
            if named:
                found = [
                    probabilities[name][i, VOCABULARY[name].index(value)]
                    for name, value in named.items()
                ]
                scores[i] = torch.stack(found).mean()
        return scores
