"""Weights by local path or by hub id; what is absent is said with the command that fetches it."""

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from astrolabe_rollout.errors import CheckpointError

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(/[\w./+-]+)?")


def locate(
    source: str | Path,
    what: str,
    option: str,
    parts: Sequence[str] = (),
    beside: Sequence[str] = (),
) -> Path:
    """Return the local path of a file or folder of weights; download it if need be.

    Args:
        source: A path; or ``owner/repository``, or ``owner/repository/path/to/file`` of the Hugging
            Face hub. A path that exists wins. The hub's own cache and its settings
            (``HF_HUB_OFFLINE``, ``HF_HOME``, tokens) apply.
        what: Its name in messages, such as "checkpoint".
        option: The setting that names it, for messages.
        parts: Subfolders that are needed of a folder; the rest is not downloaded.
        beside: Files that belong to it and are fetched too, where there are any; of a folder of a
            repository, all that it holds.

    Raises:
        CheckpointError: If it is not here and cannot be downloaded; says which file of which
            repository, the command that fetches it, and the setting for a local path.
    """
    path = Path(source).expanduser()
    if str(source) and path.exists():
        return _complete(path, what, option, parts)
    if not _HUB_ID.fullmatch(str(source)):
        raise CheckpointError(
            f"there is no {what} {str(source)!r}. Check the path that {option} gives, or name a "
            "file of the hub as owner/repository/path."
        )
    owner, name, *inside = str(source).split("/")
    repository, file = f"{owner}/{name}", "/".join(inside)
    extra = [f"{file}/*", *((Path(file).parent / name).as_posix() for name in beside)]
    wanted = [file, *(extra if beside else ())] if file else [f"{part}/*" for part in parts] or None
    try:
        folder = Path(snapshot_download(repository, allow_patterns=wanted))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CheckpointError(_absent(what, option, repository, file, parts, reason)) from error
    if not (folder / file).exists():
        reason = "the repository, as far as it is here, has no such file"
        raise CheckpointError(_absent(what, option, repository, file, parts, reason))
    return _complete(folder / file, what, option, parts)


def _complete(path: Path, what: str, option: str, parts: Sequence[str]) -> Path:
    missing = [part for part in parts if not (path / part).is_dir()]
    if missing:
        raise CheckpointError(
            f"the {what} {str(path)!r} lacks the folders {', '.join(missing)}. "
            f"Set {option} to a folder that holds {', '.join(parts)}."
        )
    return path


def _absent(
    what: str, option: str, repository: str, file: str, parts: Sequence[str], reason: str
) -> str:
    """Say what is missing and the two ways to it."""
    named = f"{file} of {repository}" if file else repository
    wanted = f" {file}" if file else "".join(f" --include '{part}/*'" for part in parts)
    there = f"DIR/{file}" if file else "DIR"
    return (
        f"the {what} ({named}) is not on this machine and cannot be downloaded: {reason}. "
        f"Fetch it with `hf download {repository}{wanted} --local-dir DIR` where there is a "
        f"network, then set {option}={there}."
    )
