"""Weights by local path or by hub id; what is absent is said with the command that fetches it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from astrolabe_rollout.errors import CheckpointError
from astrolabe_rollout.extras import wan_extra

with wan_extra():
    from huggingface_hub import HfApi, constants, is_offline_mode, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
    )
    from huggingface_hub.utils._paths import filter_repo_objects

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
    repository, file = _in_repository(source)
    wanted = _patterns(file, parts)
    if file and beside:
        folder_of = Path(file).parent
        wanted += [f"{file}/*", *((folder_of / name).as_posix() for name in beside)]
    try:
        folder = Path(snapshot_download(repository, allow_patterns=wanted or None))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = _reason(error, repository)
        raise CheckpointError(_absent(what, option, repository, file, parts, reason)) from error
    if not (folder / file).exists():
        reason = "the repository, as far as it is here, has no such file"
        raise CheckpointError(_absent(what, option, repository, file, parts, reason))
    return _complete(folder / file, what, option, parts)


def lacking(
    source: str, what: str, option: str, parts: Sequence[str] = (), size: int = 0
) -> dict[str, Any] | None:
    """Describe what `locate` would have to download or refuse; None if it is here.

    Nothing is downloaded, and no network is asked.

    Args:
        source: As of `locate`.
        what: As of `locate`.
        option: Name of the option that names it.
        parts: As of `locate`.
        size: Bytes of what is published there, 0 if that is not known.

    Returns:
        See `astrolabe_rollout.needs.lacks`.
    """
    found: dict[str, Any] = {"what": what, "source": source, "option": option, "bytes": size}
    path = Path(source).expanduser()
    if source and path.exists():
        missing = _lacking(path, parts)
        return found | {"why": f"it lacks {', '.join(missing)}"} if missing else None
    if not _HUB_ID.fullmatch(source):
        return found | {"why": "there is no such path"}
    repository, file = _in_repository(source)
    wanted = _patterns(file, parts)
    try:
        folder = Path(snapshot_download(repository, allow_patterns=wanted, local_files_only=True))
    except (OSError, HfHubHTTPError, HFValidationError):
        pass
    else:
        if (folder / file).exists() and not _lacking(folder, parts):
            return None
    fetch, there = _way_to(repository, file, parts)
    return found | {
        "why": "it is not on this machine",
        "fetch": fetch,
        "value": there,
        "hub": repository,
        "files": wanted,
    }


def offered(repository: str, files: Sequence[str], timeout: float) -> tuple[int, str]:
    """Ask the hub whether files can be had from it.

    Args:
        repository: ``owner/repository``.
        files: Patterns; none stands for all files.
        timeout: Seconds that each of two questions may take.

    Returns:
        Their bytes, 0 if that is not known; and why they cannot be had, empty if they can.
    """
    if is_offline_mode():
        return 0, "and HF_HUB_OFFLINE forbids to ask the hub"
    api = HfApi()
    try:
        described = api.model_info(repository, files_metadata=True, timeout=timeout)
        if described.gated:
            api.auth_check(repository)
    except RepositoryNotFoundError as error:
        return 0, f"and {_reason(error, repository)}"
    except Exception as error:  # the client's errors of connection depend on its version
        return 0, f"and {constants.ENDPOINT} cannot be reached ({_reason(error, repository)})"
    sizes = {one.rfilename: one.size or 0 for one in described.siblings or []}
    chosen = list(filter_repo_objects(sizes, allow_patterns=list(files) or None))
    if not chosen:
        return 0, f"and {repository} has no {' or '.join(files)}"
    return sum(sizes[name] for name in chosen), ""


def _reason(error: BaseException, repository: str) -> str:
    """Say in one line why the hub gave nothing, and what to do where it wants to know who asks."""
    told = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    cause: BaseException | None = error
    while cause is not None:  # the client wraps what the hub answered
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(cause, GatedRepoError):
            return (
                f"its licence is not accepted by you: accept it at {constants.ENDPOINT}/"
                f"{repository}, then set HF_TOKEN or run `hf auth login`"
            )
        if isinstance(cause, RepositoryNotFoundError) or status in (401, 403):
            return (
                f"the hub shows no {repository} to you: correct the name or, if it is private, "
                f"set HF_TOKEN to a token that may read it or run `hf auth login` ({told})"
            )
        cause = cause.__cause__ or cause.__context__
    return told


def _in_repository(source: str | Path) -> tuple[str, str]:
    """Repository, and file in it or nothing."""
    owner, name, *inside = str(source).split("/")
    return f"{owner}/{name}", "/".join(inside)


def _patterns(file: str, parts: Sequence[str]) -> list[str]:
    """What of a repository is wanted; nothing stands for all of it."""
    return [file] if file else [f"{part}/*" for part in parts]


def _complete(path: Path, what: str, option: str, parts: Sequence[str]) -> Path:
    missing = _lacking(path, parts)
    if missing:
        raise CheckpointError(
            f"the {what} {str(path)!r} lacks the folders {', '.join(missing)}. "
            f"Set {option} to a folder that holds {', '.join(parts)}."
        )
    return path


def _lacking(path: Path, parts: Sequence[str]) -> list[str]:
    return [part for part in parts if not (path / part).is_dir()]


def _absent(
    what: str, option: str, repository: str, file: str, parts: Sequence[str], reason: str
) -> str:
    """Say what is missing and the two ways to it."""
    named = f"{file} of {repository}" if file else repository
    fetch, there = _way_to(repository, file, parts)
    return (
        f"the {what} ({named}) is not on this machine and cannot be downloaded: {reason}. "
        f"Fetch it with `{fetch}` where there is a network, then set {option}={there}."
    )


def _way_to(repository: str, file: str, parts: Sequence[str]) -> tuple[str, str]:
    """The command that fetches weights, and where they are then."""
    wanted = f" {file}" if file else "".join(f" --include '{part}/*'" for part in parts)
    there = f"DIR/{file}" if file else "DIR"
    return f"hf download {repository}{wanted} --local-dir DIR", there
