"""An independent judge of the embedded model's world: rules on pixels, nothing learned.

It shares no weights and no training data with the other rewards, so it can tell whether optimising
them made videos better or only made them cheat. It relies on two facts of the world: grounds are
neutral grey, and there is one coloured object.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from astrolabe_rewards.frames import Floats
from astrolabe_rewards.needs import require
from astrolabe_rewards.reward import Reward
from astrolabe_rewards.tracks import Track, motion_of, net_direction
from astrolabe_rewards.words import named_attributes

SIZE = 48
#: The colours of the world, RGB 0 to 255.
PALETTE: Final[dict[str, tuple[int, int, int]]] = {
    "red": (226, 54, 44),
    "green": (60, 180, 75),
    "blue": (50, 90, 220),
    "yellow": (245, 205, 50),
    "purple": (150, 60, 190),
    "cyan": (60, 200, 220),
}
#: Levels between the largest and smallest channel; the palest palette colour has 120.
_LEAST_CHROMA = 50.0
#: Share of the picture; real objects cover 0.06 to 0.26, less where the border cuts them.
_AREA = (0.03, 0.35)
#: Least overlap with the ideal shape; renders reach 0.97, through the embedded codec 0.89.
_LEAST_FIT = 0.65
_EVERY = 3  # frames between two looks at the shape


@dataclass(frozen=True)
class Sighting:
    """What one frame shows of the object; lengths in pixels of a 48x48 picture."""

    colour: str
    coverage: Floats  # 0 to 1, the part of the frame around the object
    arm: NDArray[np.complex128]  # from the centre to each pixel of it, right + 1j down
    cut: bool  # touches the border
    area: float
    centre: tuple[float, float]
    turn3: complex  # direction of the corners, third and fourth power
    turn4: complex


def find_object(frame: Floats) -> Sighting | None:
    """Find the coloured object of one frame.

    Args:
        frame: ``[48, 48, 3]``, 0 to 255.

    Returns:
        What it is, or None if nothing coloured is there, it is too small or too large, or in
        pieces.
    """
    import cv2

    chroma = frame.max(-1) - frame.min(-1)
    peak = float(np.partition(chroma.ravel(), -69)[-69])  # reached by an object of the least area
    if peak < _LEAST_CHROMA:
        return None
    # On a grey ground chroma is proportional to coverage, whatever blur does to the edge.
    coverage = ((chroma / peak - 0.25) / 0.5).clip(0, 1)
    mask = (coverage > 0.5).astype(np.uint8)
    area = float(coverage.sum())
    sizes = cv2.connectedComponentsWithStats(mask)[2][1:, cv2.CC_STAT_AREA]
    if not _AREA[0] <= area / coverage.size <= _AREA[1] or sizes.max() < 0.8 * sizes.sum():
        return None
    rows, columns = (np.flatnonzero(coverage.any(axis)) for axis in (1, 0))
    top, left = max(0, rows[0] - 1), max(0, columns[0] - 1)
    coverage = coverage[top : rows[-1] + 2, left : columns[-1] + 2]
    inside = frame[top : rows[-1] + 2, left : columns[-1] + 2]
    down, across = np.ogrid[: coverage.shape[0], : coverage.shape[1]]
    down, across = down + top + 0.5, across + left + 0.5
    x, y = float((coverage * across).sum() / area), float((coverage * down).sum() / area)
    arm = (across - x) + 1j * (down - y)
    colour = inside[coverage >= min(0.99, coverage.max())].mean(0)
    border = mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()
    return Sighting(
        colour=min(PALETTE, key=lambda name: float(((colour - PALETTE[name]) ** 2).sum())),
        coverage=coverage,
        arm=arm,
        cut=bool(border),
        area=area,
        centre=(x, y),
        turn3=_turn(coverage, arm, 3),
        turn4=_turn(coverage, arm, 4),
    )


def _turn(coverage: NDArray[np.float64], arm: NDArray[np.complex128], fold: int) -> complex:
    """Complex moment whose argument turns ``fold`` times as fast as the shape; 0 for a circle."""
    power = coverage * arm**fold
    return complex(power.sum() / np.abs(power).sum())


def shape_of(sightings: list[Sighting]) -> str | None:
    """Name the shape that overlaps best with what was seen, or None if none does well.

    Ideal shapes of the seen area are laid on the object's centre and turned to fit, and overlaps
    are averaged over frames: a frayed edge or a stray pixel does not make a square of a circle.
    """
    whole = [sighting for sighting in sightings if not sighting.cut] or sightings
    fits = np.mean([_overlaps(sighting) for sighting in whole[::_EVERY]], axis=0)
    best = int(fits.argmax())
    return tuple(_TURNS)[best] if fits[best] >= _LEAST_FIT else None


#: Angles to try for each shape, up to its symmetry.
_TURNS: Final[dict[str, NDArray[np.float64]]] = {
    "circle": np.zeros(1),
    "square": np.deg2rad(np.arange(0, 90, 7.5)),
    "triangle": np.deg2rad(np.arange(0, 120, 7.5)),
}


def _overlaps(sighting: Sighting) -> list[float]:
    """Intersection over union with the best turned circle, square and triangle of equal area."""
    fits = []
    for shape, angles in _TURNS.items():
        turned = sighting.arm[None] * np.exp(-1j * angles)[:, None, None]
        ideal = (0.5 - _distance(shape, turned, sighting.area)).clip(0, 1)
        both = np.minimum(ideal, sighting.coverage).sum((1, 2))
        either = np.maximum(ideal, sighting.coverage).sum((1, 2))
        fits.append(float((both / either).max()))
    return fits


def _distance(shape: str, point: NDArray[np.complex128], area: float) -> NDArray[np.float64]:
    """Pixels from the outline of a shape of this area around 0, negative inside."""
    x, y = point.real, point.imag
    if shape == "circle":
        return np.abs(point) - math.sqrt(area / math.pi)
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - math.sqrt(area) / 2
    sides = np.stack([y, 0.866 * x - 0.5 * y, -0.866 * x - 0.5 * y])  # apex at the top
    farthest: NDArray[np.float64] = sides.max(0)
    return farthest - math.sqrt(area / (3 * math.sqrt(3)))


def judge(pixels: Tensor, prompt: str) -> dict[str, float]:
    """Check one video uint8 ``[F, 3, H, W]``; the result is a row of ``PixelCheck.check``."""
    frames = pixels.float()
    if frames.shape[-2:] != (SIZE, SIZE):
        frames = functional.interpolate(frames, (SIZE, SIZE), mode="bilinear", antialias=True)
    found = [find_object(frame) for frame in frames.permute(0, 2, 3, 1).cpu().numpy()]
    seen = [sighting for sighting in found if sighting is not None]
    present = len(seen) / len(found)
    named = named_attributes(prompt)
    result = {
        "present": present,
        **dict.fromkeys(("colour", "shape", "motion", "direction"), math.nan),
    }
    names = [name for name in ("colour", "shape", "motion") if name in named]
    towards = named.get("motion", "").partition("moves ")[2]
    if present < 0.5:  # too little to name anything
        result.update(dict.fromkeys(names, 0.0))
        return result | ({"direction": 0.0} if towards else {})
    shape = shape_of(seen)
    fold = {"square": 4, "triangle": 3}.get(shape or "", 0)
    track = Track(
        x=np.array([sighting.centre[0] for sighting in seen]),
        y=np.array([sighting.centre[1] for sighting in seen]),
        area=np.array([sighting.area for sighting in seen]),
        turn=np.array([sighting.turn3 if fold == 3 else sighting.turn4 for sighting in seen]),
        fold=fold,
    )
    colours = [sighting.colour for sighting in seen]
    truth = {
        "colour": max(dict.fromkeys(colours), key=colours.count),
        "shape": shape,
        "motion": motion_of(track),
    }
    result.update({name: float(truth[name] == named[name]) for name in names})
    if towards:
        result["direction"] = float(net_direction(track) == towards)
    return result


class PixelCheck(Reward):
    """Whether the object is there and is what the prompt says, by rules on pixels.

    The score is the mean of ``present`` and of ``colour``, ``shape`` and ``motion`` where the
    prompt names them; see ``check``. Made for the embedded model's world; other sizes are scaled to
    48x48.
    """

    name: ClassVar[str] = "pixel_check"
    measures: ClassVar[str] = "an independent judge of the embedded model's world: rules on pixels"
    unit: ClassVar[str] = "share of checks passed, 0 to 1"
    needs_text: ClassVar[bool] = True

    def __init__(self) -> None:
        require("opencv", self.name)
        super().__init__()

    def check(self, pixels: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        """Check every property by itself.

        Args:
            pixels: uint8 ``[N, F, 3, H, W]``.
            prompts: N texts.

        Returns:
            Float32 ``[N]`` each: ``present``, share of frames with one object of plausible size;
            ``colour``, ``shape``, ``motion``, 1 if right, 0 if not (or if the object is missing in
            half of the frames); ``direction``, 1 if the object ends on the right side of where it
            began, a looser test than ``motion``. NaN where the prompt does not name the property.
        """
        rows = [judge(video, prompt) for video, prompt in zip(pixels, prompts, strict=True)]
        names = ("present", "colour", "shape", "motion", "direction")
        return {name: torch.tensor([row[name] for row in rows]) for name in names}

    def score(self, pixels: Tensor, prompts: list[str], fps: Tensor) -> Tensor:
        """Return the share of checks passed, float32 ``[N]``; see ``Reward.score``."""
        checks = self.check(pixels, prompts)
        del checks["direction"]  # part of motion
        return torch.stack(list(checks.values())).nanmean(0)
