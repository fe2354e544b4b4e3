"""Scripts of scenes: what a video shows, for how long, and how one scene follows another.

    a cat wakes[5s] | it runs[10s#] | it sleeps

Scenes are parted by ``|``. ``[5s]`` at the end of one is its length in seconds, decimals allowed.
``#`` inside the brackets makes a hard cut at the START of that scene: ``it runs`` above begins with
one. This is what Infinity-RoPE's documentation says; its public code cuts at the end instead.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from astrolabe_rollout.geometry import Geometry
from astrolabe_rollout.prompt_files import PROMPT, SCRIPT, Row, read_rows

#: Seconds of a scene, far above what any machine makes.
LONGEST: Final = 1e5

_BRACKET = re.compile(r"\[([^\[\]]*)\]\s*$")
_LENGTH = re.compile(r"\s*(?:(\d+(?:\.\d+)?|\.\d+)\s*s)?\s*(#?)\s*")


@dataclass(frozen=True)
class Scene:
    """A part of a video with one prompt."""

    prompt: str
    seconds: float | None
    """Its length; None for what the caller thinks right."""
    cut: bool = False
    """Whether it begins with a hard cut; of no effect in the first scene."""

    def chunks(self, geometry: Geometry, fps: float, default: int) -> int:
        """Return its length in chunks: as many as end within its seconds, at least one.

        Args:
            geometry: Of the model.
            fps: Pixel frames per second.
            default: Chunks of a scene without a length.
        """
        if self.seconds is None:
            return default
        # A rounding error must not cost a chunk: 0.3 s * 10 fps is not quite 3.
        exact = self.seconds * fps / (geometry.temporal * geometry.chunk)
        return max(1, math.floor(exact + 1e-6))


def parse_scenes(text: str) -> list[Scene]:
    """Read a script of scenes; a plain prompt is a script of one.

    Raises:
        ValueError: If a scene is empty or what stands in its brackets is no length; the message
            marks the place.

    Example:
        >>> parse_scenes("a cat wakes[5s] | it runs[2.5s#]")[1]
        Scene(prompt='it runs', seconds=2.5, cut=True)
    """
    scenes: list[Scene] = []
    start = 0
    for part in text.split("|"):
        scenes.append(_scene(text, part, start))
        start += len(part) + 1
    return scenes


def read_interactive(path: str | Path, switch_frames: Sequence[int]) -> list[list[tuple[str, int]]]:
    """Read LongLive's interactive scripts: JSON objects ``{"prompts": ["...", ...]}``.

    Args:
        path: The file, ``.jsonl`` or ``.json``.
        switch_frames: Latent frame at which each prompt after the first begins, rising.

    Returns:
        For each script its prompts, each with the latent frame at which it begins.

    Raises:
        PromptFileError: If the file is missing, empty, not UTF-8, or an entry is of another form.
        ValueError: If the switch frames do not rise from above 0, or their number does not fit.
    """
    begins = [0, *switch_frames]
    if begins != sorted(set(begins)):
        raise ValueError(
            f"the switch frames {list(switch_frames)} do not rise from above 0. "
            "Give the latent frame at which each new prompt begins: 40,80,120."
        )
    scripts = []
    for row in read_rows(path):
        prompts = _prompts(row)
        if len(prompts) != len(begins):
            raise ValueError(
                f"{str(path)!r}, {row.place} has {len(prompts)} prompts, but there are "
                f"{len(switch_frames)} switch frames. Give one for each prompt after the first."
            )
        scripts.append(list(zip(prompts, begins, strict=True)))
    return scripts


def _scene(text: str, part: str, start: int) -> Scene:
    bracket = _BRACKET.search(part)
    prompt = (part[: bracket.start()] if bracket else part).strip()
    if not prompt:
        raise ValueError(_marked(text, start, "here is a scene without a prompt"))
    if bracket is None:
        return Scene(prompt, None)
    length = _LENGTH.fullmatch(bracket[1])
    inside = start + bracket.start(1)
    if length is None:
        raise ValueError(
            _marked(text, inside, f"{bracket[1]!r} is no length; write [5s], [2.5s#] or [#]")
        )
    seconds = float(length[1]) if length[1] else None
    if seconds is not None and not 0 < seconds <= LONGEST:
        problem = f"a scene must be longer than 0 seconds, and last {LONGEST:.0f} at most"
        raise ValueError(_marked(text, inside, problem))
    return Scene(prompt, seconds, bool(length[2]))


def _marked(text: str, position: int, problem: str) -> str:
    """Say what is wrong and show where, in one line."""
    before, after = text[max(0, position - 24) : position], text[position : position + 24]
    return (
        f"the scenes do not parse at character {position + 1}: {problem}. {before!r} >>> {after!r}"
    )


def _prompts(row: Row) -> list[str]:
    """The prompts of a script, each checked like a prompt that stands alone."""
    prompts = row.values.get(SCRIPT)
    if not isinstance(prompts, list) or not prompts or PROMPT in row.values:
        raise row.error('it is no script. Write {"prompts": ["first", "second"]}, one object each.')
    return [
        Row(row.path, f"{row.place}, prompt {number} of the script", {PROMPT: prompt}).text()
        for number, prompt in enumerate(prompts, start=1)
    ]
