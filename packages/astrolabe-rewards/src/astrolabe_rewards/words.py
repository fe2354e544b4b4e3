"""The words of the embedded model's world, and how they are found in a prompt.

The world shows one coloured shape that moves over a ground. Its captions read
``a red circle moves left on a black background``; close relatives of that sentence are understood
too.
"""

import re
from typing import Final

#: Every attribute with its values. The order is that of the outputs of the shipped classifier.
VOCABULARY: Final[dict[str, tuple[str, ...]]] = {
    "colour": ("red", "green", "blue", "yellow", "purple", "cyan"),
    "shape": ("circle", "square", "triangle"),
    "motion": (
        "moves left",
        "moves right",
        "moves up",
        "moves down",
        "bounces",
        "orbits",
        "spins",
        "pulses",
    ),
    "ground": ("black", "gray", "white", "checkered"),
}

_GROUND = re.compile(r"\b(black|gr[ae]y|white|checkered)\s+(?:back)?ground\b")
_COLOUR = re.compile(rf"\b({'|'.join(VOCABULARY['colour'])})\b")
_SHAPE = re.compile(rf"\b({'|'.join(VOCABULARY['shape'])})\b")
_DIRECTION = re.compile(
    r"\b(?:mov|slid|glid|driv|drift|roll|fly|fli|walk|run|pan)(?:e|es|s|n?ing)?"
    r"(?:\s+\w+){0,3}?\s+(left|right|up|down)(?:wards?)?\b"
)
_GESTURE = re.compile(r"\b(bounc|orbit|spin|puls)(?:e|es|s|n?ing)\b")
_GESTURES = {"bounc": "bounces", "orbit": "orbits", "spin": "spins", "puls": "pulses"}


def direction_of(prompt: str) -> str | None:
    """Return left, right, up or down if the prompt says that something moves there.

    Example:
        >>> direction_of("a car drives slowly to the left")
        'left'
        >>> direction_of("a tree on the left") is None
        True
    """
    match = _DIRECTION.search(prompt.lower())
    return match[1] if match else None


def named_attributes(prompt: str) -> dict[str, str]:
    """Find which attributes of the world a prompt names.

    Args:
        prompt: Any text. The first word of a kind counts.

    Returns:
        Attribute to value, both from ``VOCABULARY``; attributes that are not named are left out.

    Example:
        >>> named_attributes("A red circle moves left on a grey background")
        {'colour': 'red', 'shape': 'circle', 'motion': 'moves left', 'ground': 'gray'}
        >>> named_attributes("a cat")
        {}
    """
    text = prompt.lower()
    found = {}
    if match := _COLOUR.search(text):
        found["colour"] = match[1]
    if match := _SHAPE.search(text):
        found["shape"] = match[1]
    if direction := direction_of(text):
        found["motion"] = f"moves {direction}"
    elif match := _GESTURE.search(text):
        found["motion"] = _GESTURES[match[1]]
    if match := _GROUND.search(text):
        found["ground"] = match[1].replace("grey", "gray")
    return found
