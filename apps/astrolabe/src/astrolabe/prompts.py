"""Prompt lists by name or by file."""

from astrolabe.registry import build, looks_like_path, names
from astrolabe_rollout import world
from astrolabe_rollout.errors import PromptFileError
from astrolabe_rollout.prompt_files import Row, read_rows


def prompt_list(source: str, where: str) -> list[str]:
    """Return the prompts that a setting names.

    Args:
        source: The name of a packaged list (an entry point of ``astrolabe.suites``), or the path of
            a file, see `read_rows`.
        where: The setting, for messages.

    Raises:
        PromptFileError: If the file is missing, empty or not UTF-8, or one of its prompts does not
            fit.
        LookupError: If it is neither a list nor looks like a path.
    """
    rows = prompt_rows(source, where)
    if rows is None:
        found = build("suites", source, {}, where=where)
        if isinstance(found, str) or not all(isinstance(text, str) for text in found):
            raise PromptFileError(f"{where}: the list {source!r} is no list of texts. Mend it.")
        return list(found)
    try:
        return [row.text() for row in rows]
    except PromptFileError as error:
        raise PromptFileError(f"{where}: {error}") from error


def prompt_rows(source: str, where: str) -> list[Row] | None:
    """Return the entries of the file that a setting names; None if it names a packaged list.

    Raises:
        PromptFileError: As in `prompt_list`.
    """
    if source in names("suites") or not looks_like_path(source):
        return None
    try:
        return read_rows(source)
    except PromptFileError as error:
        raise PromptFileError(f"{where}: {error}") from error


def tiny_train() -> list[str]:
    """Captions that the embedded model was trained on."""
    return world.prompts(held_out=False)


def tiny_heldout() -> list[str]:
    """Captions of combinations that the embedded model never saw."""
    return world.prompts(held_out=True)
