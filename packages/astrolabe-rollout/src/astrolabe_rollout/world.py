"""A procedural world of captioned videos: one coloured shape that moves over a ground.

The embedded model is trained on it (``tools/pretrain_tiny.py``), and its prompts come from it.
Videos are 48x48 pixels at 16 frames per second. A caption names colour, shape, motion and ground;
position, size and phase vary a little and are never named. One in five combinations of colour,
shape and motion is held out: it never occurs in training, each of its attributes does.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SIZE = 48
FPS = 16.0

COLOURS = {
    "red": (226, 54, 44),
    "green": (60, 180, 75),
    "blue": (50, 90, 220),
    "yellow": (245, 205, 50),
    "purple": (150, 60, 190),
    "cyan": (60, 200, 220),
}
SHAPES = ("circle", "square", "triangle")
MOTIONS = (
    "moves left",
    "moves right",
    "moves up",
    "moves down",
    "bounces",
    "orbits",
    "spins",
    "pulses",
)
#: Two grey levels of the ground's 8-pixel cells; equal levels make it plain.
GROUNDS = {"black": (16, 16), "gray": (110, 110), "white": (238, 238), "checkered": (45, 75)}
CELL = 8

TRAVEL_PER_FRAME = 0.7  # pixels; a linear motion crosses the picture in about 35 frames, then rests
HAZE = 0.32  # share of an object's contrast that the thickest haze takes
LINEAR = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True)
class Scene:
    """One video: what its caption names, and five numbers that it does not.

    ``jitter`` holds numbers in [-1, 1]: horizontal and vertical offset, size, phase. ``haze`` in
    [0, 1] is a flaw: the object loses contrast with its ground. Only the distilled student learns
    it (``tools/pretrain_student.py``).
    """

    colour: str
    shape: str
    motion: str
    ground: str
    jitter: tuple[float, float, float, float]
    haze: float = 0.0

    @property
    def caption(self) -> str:
        """The prompt that asks for this scene."""
        return caption(self.colour, self.shape, self.motion, self.ground)


def caption(colour: str, shape: str, motion: str, ground: str) -> str:
    """Return the one form of words of this world."""
    return f"a {colour} {shape} {motion} on a {ground} background"


def combinations(held_out: bool) -> list[tuple[str, str, str]]:
    """Return the (colour, shape, motion) triples of training, or those held out from it.

    A spinning circle cannot be told from a resting one, so it does not exist.
    """
    return [
        (colour, shape, motion)
        for i, colour in enumerate(COLOURS)
        for j, shape in enumerate(SHAPES)
        for k, motion in enumerate(MOTIONS)
        if ((i + j + k) % 5 == 0) == held_out and (shape, motion) != ("circle", "spins")
    ]


def prompts(held_out: bool) -> list[str]:
    """Return every caption of training (or held out from it), each once, in a fixed order."""
    return [caption(*triple, ground) for triple in combinations(held_out) for ground in GROUNDS]


def sample_scenes(count: int, generator: torch.Generator, held_out: bool = False) -> list[Scene]:
    """Draw clear scenes uniformly over combinations and grounds."""
    triples, grounds = combinations(held_out), list(GROUNDS)
    scenes = []
    for _ in range(count):
        triple = triples[int(torch.randint(len(triples), (), generator=generator))]
        ground = grounds[int(torch.randint(len(grounds), (), generator=generator))]
        dx, dy, size, phase = (torch.rand(4, generator=generator) * 2 - 1).tolist()
        scenes.append(Scene(*triple, ground, (dx, dy, size, phase)))
    return scenes


def trajectory(scene: Scene, frames: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return centre x and y (pixels), scale, angle (radians, clockwise) at given frame numbers."""
    dx, dy, _, phase = scene.jitter
    centre, zero = torch.full_like(frames, SIZE / 2), torch.zeros_like(frames)
    x, y, scale, angle = centre + 4 * dx, centre + 4 * dy, zero + 1, zero
    kind, _, towards = scene.motion.partition(" ")
    if kind == "moves":
        reach = 12.0
        along = (TRAVEL_PER_FRAME * frames - reach + phase).clamp(max=reach)
        horizontal, vertical = LINEAR[towards]
        x = centre + horizontal * along if horizontal else x
        y = centre + vertical * along if vertical else y
    elif kind == "bounces":
        hop = torch.sin(math.pi * (frames / 16 + 0.15 * phase)).abs()
        y = centre + 11 - 20 * hop
    elif kind == "orbits":
        turn = 2 * math.pi * frames / 32 - math.pi / 2 + 0.6 * phase
        x, y = centre + 11 * torch.cos(turn) + dx, centre + 11 * torch.sin(turn) + dy
    elif kind == "spins":
        angle = 2 * math.pi * frames / 48 + 0.5 * phase
    elif kind == "pulses":
        scale = 1 + 0.3 * torch.sin(2 * math.pi * frames / 24 + 0.6 * phase)
    return x, y, scale, angle


def _distance(shape: str, x: Tensor, y: Tensor, size: Tensor) -> Tensor:
    """Signed distance in pixels to the outline, negative inside; all shapes have similar areas."""
    if shape == "circle":
        return torch.hypot(x, y) - size
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.89 * size
    sides = (y, 0.866 * x - 0.5 * y, -0.866 * x - 0.5 * y)  # outward normals, apex at the top
    return torch.stack(sides).amax(0) - 0.74 * size


def draw_ground(name: str) -> Tensor:
    """Return the grey levels of a ground, float32 ``[48, 48]``."""
    cells = (torch.arange(SIZE) // CELL)[:, None] + (torch.arange(SIZE) // CELL)[None, :]
    return torch.tensor(GROUNDS[name], dtype=torch.float32)[cells % 2]


def render(scene: Scene, num_frames: int, start: int = 0) -> Tensor:
    """Draw a scene with smooth edges.

    Args:
        scene: What to draw.
        num_frames: Pixel frames to draw, 1 or more.
        start: Number of the first of them.

    Returns:
        uint8 ``[num_frames, 3, 48, 48]`` RGB.
    """
    frames = torch.arange(start, start + num_frames, dtype=torch.float32)
    cx, cy, scale, angle = (value[:, None, None] for value in trajectory(scene, frames))
    grid = torch.arange(SIZE, dtype=torch.float32) + 0.5
    u, v = grid[None, None, :] - cx, grid[None, :, None] - cy  # [F, H, W]
    x, y = u * torch.cos(angle) + v * torch.sin(angle), v * torch.cos(angle) - u * torch.sin(angle)
    inside = (0.5 - _distance(scene.shape, x, y, (9.5 + 0.8 * scene.jitter[2]) * scale)).clamp(0, 1)
    ground = draw_ground(scene.ground)
    colour = torch.tensor(COLOURS[scene.colour], dtype=torch.float32)[:, None, None]
    inside = inside[:, None] * (1 - HAZE * scene.haze)  # [F, 1, H, W]
    return (inside * colour + (1 - inside) * ground).round().to(torch.uint8)
