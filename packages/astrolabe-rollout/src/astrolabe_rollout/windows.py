"""Which window of a long video a step trains, and what the video shows there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from astrolabe_rollout.scenes import parse_scenes
from astrolabe_rollout.seeds import noise_seed

Start = Literal["first", "last", "uniform", "choice"]


@dataclass(frozen=True)
class WindowSchedule:
    """Places the trained windows in a long video (Astrolabe, algorithm 2).

    The place depends on the seed and the number of the step alone, so it is the same on all
    processes and after a resume.

    Args:
        windows: Windows that are trained one after the other, at least 1.
        length: Windows of the whole video; what lies before the trained ones is only rolled out.
        start: ``first`` and ``last`` place them at the ends, ``uniform`` anywhere, ``choice`` at
            one of ``starts``.
        starts: Windows at which ``choice`` may start; those beyond the present length wait.
        curriculum: Pairs of a step and the length from then on, both rising, the first at step 0;
            takes the place of ``length``.
        seed: Of the choices.

    Raises:
        ValueError: If the windows do not fit into the video, the curriculum shrinks, or an option
            is unknown.
    """

    windows: int = 1
    length: int = 1
    start: Start = "first"
    starts: tuple[int, ...] = ()
    curriculum: tuple[tuple[int, int], ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.start not in get_args(Start):
            raise ValueError(f"start is {self.start!r}. Choose from: {', '.join(get_args(Start))}.")
        steps, lengths = [step for step, _ in self.curriculum], [n for _, n in self.curriculum]
        if steps != sorted(set(steps)) or lengths != sorted(lengths) or (steps and steps[0]):
            raise ValueError(
                f"the curriculum {[list(pair) for pair in self.curriculum]} does not grow from "
                "step 0. Give pairs of a step and a number of windows, such as [[0, 1], [50, 4]]."
            )
        shortest = lengths[0] if lengths else self.length
        if self.windows < 1 or shortest < self.windows:
            raise ValueError(
                f"{self.windows} windows are trained, but the video has {shortest}. "
                f"Make it {max(self.windows, 1)} windows or longer."
            )
        room = range(shortest - self.windows + 1)
        if self.start == "choice" and not any(start in room for start in self.starts):
            raise ValueError(
                f"none of the starts {list(self.starts)} leaves room for {self.windows} windows in "
                f"a video of {shortest}. Give one of 0 to {room[-1]}."
            )

    @property
    def begins_and_goes_on(self) -> bool:
        """Whether the trained windows can hold both the first window of a video and later ones."""
        lengths = [length for _, length in self.curriculum] or [self.length]
        begins = {
            "first": True,
            "uniform": True,
            "last": self.windows in lengths,
            "choice": 0 in self.starts,
        }
        return self.windows > 1 and begins[self.start]

    def length_at(self, step: int) -> int:
        """Windows of the video in a step."""
        reached = [length for begin, length in self.curriculum if begin <= step]
        return reached[-1] if reached else self.length

    @property
    def places(self) -> list[int]:
        """All windows at which a step may begin to train, rising."""
        lengths = [length for _, length in self.curriculum] or [self.length]
        found = {start for length in lengths for start in self._starts(length - self.windows)}
        return sorted(found)

    def start_at(self, step: int) -> int:
        """First trained window in a step."""
        allowed = self._starts(self.length_at(step) - self.windows)
        if len(allowed) == 1:
            return allowed[0]
        generator = torch.Generator().manual_seed(noise_seed(self.seed, step))
        return allowed[int(torch.randint(len(allowed), (), generator=generator))]

    def _starts(self, last: int) -> list[int]:
        """Where the trained windows may begin in a video that they fit into up to ``last``."""
        if self.start == "first":
            return [0]
        if self.start == "last":
            return [last]
        if self.start == "choice":
            return [start for start in self.starts if 0 <= start <= last]
        return list(range(last + 1))


def prompt_of_window(script: str, window: int, scene_windows: int) -> str:
    """Return what a video shows in a window.

    Args:
        script: A prompt; or several parted by ``|``, if ``scene_windows`` is given.
        window: Number of the window.
        scene_windows: Windows that each prompt of a script lasts, the last one longer; 0: there are
            no scripts.
    """
    if not scene_windows:
        return script
    scenes = parse_scenes(script)
    return scenes[min(window // scene_windows, len(scenes) - 1)].prompt


def prompts_of_window(scripts: Sequence[str], window: int, scene_windows: int) -> list[str]:
    """Return `prompt_of_window` of many scripts."""
    return [prompt_of_window(script, window, scene_windows) for script in scripts]
