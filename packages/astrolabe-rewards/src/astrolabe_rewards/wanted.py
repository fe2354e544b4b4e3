"""One thing that a reward needs from disk or hub: where it is, or how to get it.

What is absent is said with the file, the hub repository, the command that fetches it and the option
for a local path, before anything is computed. Light on purpose: torch is not imported.
"""

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from astrolabe_rewards.errors import WeightsError

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(/[\w./+-]+)?")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


@dataclass(frozen=True)
class Wanted:
    """One thing that a reward needs from disk or hub.

    Attributes:
        source: A path, or ``owner/repository``, or ``owner/repository/path/to/file`` of the Hugging
            Face hub.
        published: Where it is on the hub, as ``source``; for messages.
        what: Its name in messages, such as "weights of hpsv3".
        option: The option that names it.
        files: What is needed of a whole repository, as patterns of ``hf download``.
        beside: What is wanted too when ``source`` is a single file of a repository.
        groups: Patterns of which a folder must have one each; empty: all plain names of ``files``.
        size: Bytes of what is published, about; 0 if that is not known.
    """

    source: str
    published: str
    what: str
    option: str
    files: tuple[str, ...]
    beside: tuple[str, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()
    size: int = 0

    def locate(self) -> Path:
        """Return the local file or folder; download it if need be.

        A path that exists wins. The hub's cache and settings (``HF_HOME``, ``HF_HUB_OFFLINE``,
        tokens) apply. A folder may still lack a file: see ``inside``.

        Raises:
            WeightsError: If it is neither here nor to be downloaded.
        """
        path = Path(self.source).expanduser()
        if self.source and path.exists():
            return path
        if not self._on_hub():
            raise self.absent(f"there is nothing at {self.source!r}.")
        if find_spec("huggingface_hub") is None:
            raise self.absent("huggingface-hub is not installed (`pip install huggingface-hub`).")
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        repository, file = _parts(self.source)
        wanted = [file, *self.beside] if file else list(self.files)
        try:
            # Not hf_hub_download: without a network it retries for 20 seconds before it says so.
            folder = Path(snapshot_download(repository, allow_patterns=wanted))
        except (OSError, HfHubHTTPError, HFValidationError) as error:
            told = _refusal(error, repository)
            raise self.absent(f"they cannot be downloaded: {told}.") from error
        if not (folder / file).exists():
            raise self.absent("the repository, as far as it is here, has no such file.")
        return folder / file

    def locate_file(self) -> Path:
        """Return the only file that is wanted; see ``locate``.

        Raises:
            WeightsError: If it is neither here nor to be downloaded.
        """
        place = self.locate()
        return self.inside(place, self.files[0]) if place.is_dir() else place

    def lacking(self) -> dict[str, Any] | None:
        """Describe what ``locate`` would have to download or refuse; None if it is here.

        Nothing is downloaded and no network is asked. See `astrolabe_rewards.needs.lacks`.
        """
        known = self.source == self.published
        found: dict[str, Any] = {"what": self.what, "source": self.source, "option": self.option}
        found["bytes"] = self.size if known else 0
        path = Path(self.source).expanduser()
        if self.source and path.exists():
            missing = self._missing(path) if path.is_dir() else ""
            return found | {"why": f"it has no {missing}"} if missing else None
        fetch, value = self._way_to()
        if not self._on_hub():
            return found | {"why": "there is no such path", "fetch": fetch, "value": value}
        repository, file = _parts(self.source)
        files = [file, *self.beside] if file else list(self.files)
        if self._cached(repository, file, files):
            return None
        found |= {"hub": repository, "files": files, "fetch": fetch, "value": value}
        return found | {"why": "not on this machine"}

    def inside(self, folder: Path, file: str) -> Path:
        """Return a file of the folder that was located.

        Raises:
            WeightsError: If the folder does not have it.
        """
        path = folder / file
        if not path.is_file():
            raise self.absent(f"{str(folder)!r} has no {file}.")
        return path

    def absent(self, reason: str) -> WeightsError:
        """Return the error that says what is missing and the two ways to it."""
        repository, file = _parts(self.source if self._on_hub() else self.published)
        wanted = (file,) if file else self.files
        fetch, value = self._way_to()
        return WeightsError(
            f"the {self.what} ({' and '.join(wanted)} of {repository}) are not on this machine: "
            f"{reason} Fetch them with `{fetch}` where there is a network, then set "
            f"{self.option}={value}."
        )

    def _way_to(self) -> tuple[str, str]:
        """The command that fetches it, and the value that the option then gets."""
        repository, file = _parts(self.source if self._on_hub() else self.published)
        wanted = (file,) if file else self.files
        plain = not any("*" in pattern for pattern in wanted)
        arguments = "".join(f" {name}" if plain else f" --include '{name}'" for name in wanted)
        command = f"hf download {repository}{arguments} --local-dir DIR"
        return command, f"DIR/{file}" if file else "DIR"

    def _cached(self, repository: str, file: str, files: list[str]) -> bool:
        """Whether the hub's cache on this machine has it."""
        if find_spec("huggingface_hub") is None:
            return False
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        try:
            folder = snapshot_download(repository, allow_patterns=files, local_files_only=True)
        except (OSError, HfHubHTTPError, HFValidationError):
            return False
        return Path(folder, file).is_file() if file else not self._missing(Path(folder))

    def _missing(self, folder: Path) -> str:
        """What a folder lacks; empty if nothing."""
        groups = self.groups or [(file,) for file in self.files if "*" not in file]
        gaps = [group for group in groups if not any(any(folder.glob(name)) for name in group)]
        return " or ".join(gaps[0]) if gaps else ""

    def _on_hub(self) -> bool:
        """Whether the source can be meant as the hub's."""
        # Two parts that end in a file's suffix are a path: no repository is called so.
        path = self.source.count("/") == 1 and self.source.endswith(_SUFFIXES)
        return bool(_HUB_ID.fullmatch(self.source)) and not path


def _refusal(error: BaseException, repository: str) -> str:
    """Why the hub gave nothing, in one line; with what to do if it wants to know who asks."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    told = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    cause: BaseException | None = error
    while cause is not None:  # the client wraps what the hub answered
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(cause, GatedRepoError):
            return (
                f"{repository} has a licence that you have not accepted; accept it at "
                f"{constants.ENDPOINT}/{repository}, then set HF_TOKEN or run `hf auth login`"
            )
        if isinstance(cause, RepositoryNotFoundError) or status in (401, 403):
            return (
                f"the hub shows no {repository} to you; it may be private, then set HF_TOKEN to a "
                f"token that may read it or run `hf auth login` ({told})"
            )
        cause = cause.__cause__ or cause.__context__
    return told


def _parts(source: str) -> tuple[str, str]:
    """Repository, and file in it or nothing."""
    owner, name, *rest = source.split("/")
    return f"{owner}/{name}", "/".join(rest)
