"""Prompt lists by name or by file."""

from pathlib import Path

from astrolabe.registry import build, names
from astrolabe_rollout import world
from astrolabe_rollout.prompts import read_prompts


def prompt_list(source: str, where: str) -> list[str]:
    """Return the prompts that a setting names.

    Args:
        source: The name of a packaged list (an entry point of ``astrolabe.suites``), or the path of
            a text file with one prompt per line.
        where: The setting, for messages.

    Raises:
        PromptFileError: If the file is missing, empty or not UTF-8.
        LookupError: If it is neither a list nor looks like a path.
    """
    is_path = any(mark in source for mark in "/\\.") or Path(source).exists()
    if source in names("suites") or not is_path:
        return list(build("suites", source, {}, where=where))
    return read_prompts(source)


def tiny_train() -> list[str]:
    """Captions that the embedded model was trained on."""
    return world.prompts(held_out=False)


def tiny_heldout() -> list[str]:
    """Captions of combinations that the embedded model never saw."""
    return world.prompts(held_out=True)
