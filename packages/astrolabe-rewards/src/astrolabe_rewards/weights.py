"""Weights by local path or hub id, read tensor by tensor and never unpickled.

What is absent is said with the file, the hub repository, the command that fetches it and the option
for a local path, before anything is computed.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

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
    """

    source: str
    published: str
    what: str
    option: str
    files: tuple[str, ...]
    beside: tuple[str, ...] = ()

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
            raise self.absent("huggingface-hub is not installed (astrolabe-rewards[qwen] has it).")
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        repository, file = _parts(self.source)
        wanted = [file, *self.beside] if file else list(self.files)
        try:
            # Not hf_hub_download: without a network it retries for 20 seconds before it says so.
            folder = Path(snapshot_download(repository, allow_patterns=wanted))
        except (OSError, HfHubHTTPError, HFValidationError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise self.absent(f"they cannot be downloaded: {reason}") from error
        if not (folder / file).exists():
            raise self.absent("the repository, as far as it is here, has no such file.")
        return folder / file

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
        plain = not any("*" in pattern for pattern in wanted)
        arguments = "".join(f" {name}" if plain else f" --include '{name}'" for name in wanted)
        return WeightsError(
            f"the {self.what} ({' and '.join(wanted)} of {repository}) are not on this machine: "
            f"{reason} Fetch them with `hf download {repository}{arguments} --local-dir DIR` where "
            f"there is a network, then set {self.option}={f'DIR/{file}' if file else 'DIR'}."
        )

    def _on_hub(self) -> bool:
        """Whether the source can be meant as the hub's."""
        # Two parts that end in a file's suffix are a path: no repository is called so.
        path = self.source.count("/") == 1 and self.source.endswith(_SUFFIXES)
        return bool(_HUB_ID.fullmatch(self.source)) and not path


def _parts(source: str) -> tuple[str, str]:
    """Repository, and file in it or nothing."""
    owner, name, *rest = source.split("/")
    return f"{owner}/{name}", "/".join(rest)


def digest(paths: Iterable[Path]) -> str:
    """Return a digest of the bytes of files; a second or so per gigabyte."""
    total = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "blake2b").digest())
    return total.hexdigest()


class TensorFiles:
    """The tensors of one or several files by name, read when asked for.

    Args:
        paths: ``.safetensors`` files, or files of ``torch.save`` that hold a flat dict of tensors
            (or one under "model" or "state_dict"); the latter are memory-mapped and read with
            ``weights_only``.

    Attributes:
        shapes: Name to shape of every tensor.

    Raises:
        WeightsError: If a file cannot be read, or two files have a tensor of the same name.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._home: dict[str, Path] = {}
        for path in self.paths:
            for name, shape in self._shapes_of(path):
                if name in self.shapes:
                    raise WeightsError(
                        f"{name} is in {str(self._home[name])!r} and in {str(path)!r}. "
                        "Keep the files of one checkpoint in a folder of their own."
                    )
                self.shapes[name], self._home[name] = shape, path

    @contextmanager
    def opened(self) -> Iterator[Callable[[str], Tensor]]:
        """Give a function that reads a tensor by its name, onto the CPU."""
        with ExitStack() as stack:
            readers: dict[Path, Callable[[str], Tensor]] = {}
            for path in self.paths:
                if path.suffix == ".safetensors":
                    file = stack.enter_context(safe_open(path, framework="pt", device="cpu"))
                    readers[path] = file.get_tensor
                else:
                    readers[path] = self._unpacked(path).__getitem__
            yield lambda name: readers[self._home[name]](name)

    def names(self) -> str:
        """Return the files, for messages."""
        return " and ".join(repr(str(path)) for path in self.paths)

    def _shapes_of(self, path: Path) -> list[tuple[str, tuple[int, ...]]]:
        if path.suffix != ".safetensors":
            return [(name, tuple(value.shape)) for name, value in self._unpacked(path).items()]
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                # A safe_open is no mapping: it has keys() and nothing to iterate over.
                names = list(file.keys())
                return [(name, tuple(file.get_slice(name).get_shape())) for name in names]
        except (OSError, SafetensorError) as error:
            raise _unreadable(path, error) from error

    def _unpacked(self, path: Path) -> dict[str, Tensor]:
        """The tensors of a file of torch.save, memory-mapped."""
        try:
            state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except (OSError, RuntimeError, UnpicklingError, ValueError, EOFError) as error:
            raise _unreadable(path, error) from error
        for key in ("model", "state_dict"):
            if isinstance(state, dict) and isinstance(state.get(key), dict):
                state = state[key]
        if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
            raise WeightsError(
                f"{str(path)!r} is no flat dict of tensors. Take the file as it was published."
            )
        return state


def _unreadable(path: Path, error: Exception) -> WeightsError:
    return WeightsError(
        f"{str(path)!r} cannot be read as weights: {(str(error).splitlines() or ['damaged'])[0]}. "
        "It may be cut short or of another format: fetch it again."
    )
