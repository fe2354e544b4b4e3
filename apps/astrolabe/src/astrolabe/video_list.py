"""Which video files are meant, and what each should show."""

import os
from collections.abc import Sequence
from pathlib import Path

from astrolabe.errors import ConfigError
from astrolabe.jobs import Manifest, Settings
from astrolabe_eval.tables import csv_text
from astrolabe_rollout.errors import PromptFileError
from astrolabe_rollout.prompt_files import read_rows

#: The column of a table that names a video.
PATH = "path"
#: What is looked for in a folder; a file that is named may end in anything.
ENDINGS = (".mp4", ".webm", ".mov", ".mkv", ".avi")


def find_videos(sources: Sequence[Path]) -> list[Path]:
    """List files as they are named, and the videos of folders and their folders by name.

    Hidden files are left out: they are videos that are still being written.

    Raises:
        ConfigError: If a folder holds no video.
    """
    found: dict[Path, None] = {}
    for source in sources:
        if not source.is_dir():
            found[source] = None
            continue
        inside = [
            path
            for path in sorted(source.rglob("*"))
            if path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()
        ]
        if not inside:
            raise ConfigError(
                f"the folder {str(source)!r} holds no video. Looked for: {', '.join(ENDINGS)}."
            )
        found.update(dict.fromkeys(inside))
    return list(found)


def find_prompts(videos: Sequence[Path], given: Sequence[str], file: Path | None) -> list[str]:
    """Return what each video should show; empty where nobody says.

    Args:
        videos: From `find_videos`.
        given: Prompts that were typed: one for all, or one for each.
        file: Or a table of them, see `read_table`. Without both, the manifests that `astrolabe
            generate` wrote beside its videos say it; scenes are joined by ``|``.

    Raises:
        ConfigError: If the number of prompts does not fit, the file cannot be read, or it says
            nothing about a video.
    """
    if given and file is not None:
        raise ConfigError("--prompt and --prompts are both given. Give one of them.")
    if given:
        if len(given) not in (1, len(videos)):
            raise ConfigError(
                f"{len(given)} prompts for {len(videos)} videos. Give one for all, or one for each."
            )
        return list(given) * len(videos) if len(given) == 1 else list(given)
    if file is not None:
        table = read_table(file)
        for video in videos:
            if os.path.realpath(video) not in table:
                raise ConfigError(
                    f"{str(file)!r} says nothing about {str(video)!r}. Add a line for it; paths "
                    "are taken from the folder of that file, or else from the present one."
                )
        return [table[os.path.realpath(video)] for video in videos]
    manifests = {
        folder: Manifest(folder, {}).known
        for folder in {video.parent for video in videos if video.is_file()}
    }
    return [_made_from(manifests.get(video.parent, {}).get(video.name)) for video in videos]


def read_table(file: Path) -> dict[str, str]:
    """Read a table of paths and prompts.

    Args:
        file: With ``path`` and ``prompt`` in each row or object, see `read_rows`; a prompt may be
            empty. What `astrolabe score --out` wrote is one.

    Returns:
        Absolute path to prompt.

    Raises:
        ConfigError: Names the file, the line and the column.
    """
    table: dict[str, str] = {}
    try:
        for row in read_rows(file):
            path, prompt = csv_text(row.text(PATH)), csv_text(row.text(empty=True))
            beside = file.parent / path
            found = os.path.realpath(beside if beside.exists() else path)
            if table.setdefault(found, prompt) != prompt:
                raise row.error(
                    f"{path!r} has another prompt than in an earlier one. Keep one of them."
                )
    except PromptFileError as error:
        raise ConfigError(f"--prompts: {error}") from error
    return table


def _made_from(settings: Settings | None) -> str:
    """The prompts of a video's scenes; empty for one that no manifest knows."""
    try:
        prompts = [scene["prompt"] for scene in (settings or {})["scenes"]]
    except (KeyError, TypeError):
        return ""
    return " | ".join(prompts) if all(isinstance(prompt, str) for prompt in prompts) else ""
