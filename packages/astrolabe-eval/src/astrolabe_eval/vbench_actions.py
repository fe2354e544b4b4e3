"""The action in a prompt, and names of files in which VBench's recogniser sees it.

``human_action`` compares what it recognises with a label that it cuts from the file's name: what
stands after ``person is `` and before the first ``-`` or ``_``, in small letters. It must be one of
the 400 classes of Kinetics-400 (Kay et al. 2017, "The Kinetics human action video dataset",
arXiv 1705.06950), whose names lie in ``kinetics400.txt``. A label that is no class is never right.
"""

import difflib
from collections import Counter
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Final

from astrolabe_eval.errors import VBenchError

_LEAD: Final = "person is "


def action_of(prompt: str) -> str:
    """The class of Kinetics-400 that a prompt asks for.

    Args:
        prompt: Ends in ``person is`` and the class, as VBench's own do.

    Raises:
        VBenchError: If it does not.

    Example:
        >>> action_of("A person is riding a bike")
        'riding a bike'
    """
    text = " ".join(prompt.lower().split()).rstrip(".!")
    _, found, label = text.rpartition(_LEAD)
    if found and label in classes():
        return label
    near = difflib.get_close_matches(label if found else text, sorted(classes()), n=3)
    hint = f" Near ones: {', '.join(map(repr, near))}." if near else ""
    raise VBenchError(
        f"human_action judges one of the 400 actions of Kinetics-400, and {prompt[:60]!r} does not "
        f"end in 'person is' and one of them.{hint} Write such prompts, or leave human_action out."
    )


def names_with_actions(prompts: Mapping[str, str]) -> dict[str, str]:
    """A name for each video in which the recogniser sees the action of its prompt.

    Args:
        prompts: Name of a file to its prompt.

    Returns:
        The same names to ``{action}-{number}.mp4``.

    Raises:
        VBenchError: As in :func:`action_of`.

    Example:
        >>> names_with_actions({"0.mp4": "A person is marching", "1.mp4": "a person is marching"})
        {'0.mp4': 'marching-0.mp4', '1.mp4': 'marching-1.mp4'}
    """
    seen: Counter[str] = Counter()
    names = {}
    for name, prompt in prompts.items():
        action = action_of(prompt)
        names[name] = f"{action}-{seen[action]}.mp4"
        seen[action] += 1
    return names


@cache
def classes() -> frozenset[str]:
    """The 400 classes in small letters."""
    text = files("astrolabe_eval").joinpath("kinetics400.txt").read_text(encoding="utf-8")
    return frozenset(text.splitlines())
