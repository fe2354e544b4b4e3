"""Which video files are meant, and what each should show."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from astrolabe.errors import ConfigError
from astrolabe.jobs import Manifest, Settings

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
        file: Or a table of them, see `read_prompts`. Without both, the manifests that `astrolabe
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
        table = read_prompts(file)
        for video in videos:
            if video.resolve() not in table:
                raise ConfigError(
                    f"{str(file)!r} says nothing about {str(video)!r}. Add a line for it; paths "
                    "are taken from the folder of that file, or else from the present one."
                )
        return [table[video.resolve()] for video in videos]
    manifests = {
        folder: Manifest(folder, {}).known
        for folder in {video.parent for video in videos if video.is_file()}
    }
    return [_made_from(manifests.get(video.parent, {}).get(video.name)) for video in videos]


def read_prompts(file: Path) -> dict[Path, str]:
    """Read a table of paths and prompts.

    Args:
        file: JSON Lines with ``{"path": ..., "prompt": ...}``, or CSV (``.csv``) with a first line
            that names the columns ``path`` and ``prompt``; further columns are left alone.

    Returns:
        Absolute path to prompt.

    Raises:
        ConfigError: Names the file and the line.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{str(file)!r} is not UTF-8 text (byte {error.start}). Save it as UTF-8."
        ) from error
    except OSError as error:
        raise ConfigError(f"--prompts: {str(file)!r} cannot be read ({error.strerror}).") from error
    table: dict[Path, str] = {}
    for number, row in _csv_rows(text) if file.suffix == ".csv" else _json_rows(text):
        path, prompt = (row.get("path"), row.get("prompt")) if isinstance(row, dict) else (0, 0)
        if not isinstance(path, str) or not path or not isinstance(prompt, str):
            raise ConfigError(
                f"line {number} of {str(file)!r} has no path and prompt. Write "
                '{"path": "a.mp4", "prompt": "a cat"}, or in a .csv the columns path and prompt.'
            )
        beside = file.parent / path
        found = (beside if beside.exists() else Path(path)).resolve()
        if table.setdefault(found, prompt) != prompt:
            raise ConfigError(
                f"line {number} of {str(file)!r} gives {path!r} another prompt than an earlier "
                "line. Keep one of them."
            )
    return table


def _json_rows(text: str) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError:
                yield number, None


def _csv_rows(text: str) -> Iterator[tuple[int, object]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error:
        yield reader.line_num, None


def _made_from(settings: Settings | None) -> str:
    """The prompts of a video's scenes; empty for one that no manifest knows."""
    try:
        return " | ".join(str(scene["prompt"]) for scene in (settings or {})["scenes"])
    except (KeyError, TypeError):
        return ""
