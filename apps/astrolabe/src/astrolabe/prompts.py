"""Prompt lists by name or by file."""

import csv
import io
import json
from pathlib import Path

from astrolabe.registry import build, names
from astrolabe_rollout import world
from astrolabe_rollout.errors import PromptFileError
from astrolabe_rollout.prompts import read_prompts


def prompt_list(source: str, where: str) -> list[str]:
    """Return the prompts that a setting names.

    Args:
        source: The name of a packaged list (an entry point of ``astrolabe.suites``), or the path of
            a file: text with one prompt per line, or .jsonl or .csv with an entry "prompt".
        where: The setting, for messages.

    Raises:
        PromptFileError: If the file is missing, empty or not UTF-8.
        LookupError: If it is neither a list nor looks like a path.
    """
    is_path = any(mark in source for mark in "/\\.") or Path(source).exists()
    if source in names("suites") or not is_path:
        return list(build("suites", source, {}, where=where))
    if Path(source).suffix in (".jsonl", ".csv"):
        return _column(Path(source), where)
    return read_prompts(source)


def _column(path: Path, where: str) -> list[str]:
    """The entries "prompt" of a table."""
    try:
        text = path.read_text("utf-8-sig")
        rows = (
            list(csv.DictReader(io.StringIO(text)))
            if path.suffix == ".csv"
            else [json.loads(line) for line in text.splitlines() if line.strip()]
        )
        prompts = [str(row["prompt"]).strip() for row in rows]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise PromptFileError(
            f"{where}: {str(path)!r} is no table of prompts ({error!r}). Give each row of a .csv, "
            'or line of a .jsonl, an entry "prompt".'
        ) from error
    if not prompts or not all(prompts):
        wrong = f"an empty prompt in row {prompts.index('') + 1}" if prompts else "no prompts"
        raise PromptFileError(f"{where}: {str(path)!r} has {wrong}. Mend the file.")
    return prompts


def tiny_train() -> list[str]:
    """Captions that the embedded model was trained on."""
    return world.prompts(held_out=False)


def tiny_heldout() -> list[str]:
    """Captions of combinations that the embedded model never saw."""
    return world.prompts(held_out=True)
