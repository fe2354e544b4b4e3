"""Files of weights, read tensor by tensor and never unpickled."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from astrolabe_rewards.errors import WeightsError
from astrolabe_rewards.input_files import check_file


def digest(paths: Iterable[Path]) -> str:
    """Return a digest of the bytes of files; a second or so per gigabyte."""
    total = hashlib.blake2b(digest_size=16)
    for path in paths:
        check_file(path)
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
        """Give a function that reads a tensor by its name, onto the CPU.

        It raises `WeightsError` if a number of the tensor is not finite.
        """
        with ExitStack() as stack:
            readers: dict[Path, Callable[[str], Tensor]] = {}
            for path in self.paths:
                if path.suffix == ".safetensors":
                    file = stack.enter_context(safe_open(path, framework="pt", device="cpu"))
                    readers[path] = file.get_tensor
                else:
                    readers[path] = self._unpacked(path).__getitem__
            yield lambda name: self._finite(name, readers[self._home[name]](name))

    def names(self) -> str:
        """Return the files, for messages."""
        return " and ".join(repr(str(path)) for path in self.paths)

    def _finite(self, name: str, value: Tensor) -> Tensor:
        """The tensor, if all of its numbers are finite."""
        check_finite(self._home[name], name, value)
        return value

    def _shapes_of(self, path: Path) -> list[tuple[str, tuple[int, ...]]]:
        if path.suffix != ".safetensors":
            return [(name, tuple(value.shape)) for name, value in self._unpacked(path).items()]
        try:
            check_file(path)
            with safe_open(path, framework="pt", device="cpu") as file:
                # A safe_open is no mapping: it has keys() and nothing to iterate over.
                names = list(file.keys())
                return [(name, tuple(file.get_slice(name).get_shape())) for name in names]
        except (OSError, SafetensorError) as error:
            raise _unreadable(path, error) from error

    def _unpacked(self, path: Path) -> dict[str, Tensor]:
        """The tensors of a file of torch.save, memory-mapped."""
        try:
            check_file(path)
            state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        # Of what is no torch file, a byte is taken for an opcode of pickle and fails in its way.
        except Exception as error:
            raise _unreadable(path, error) from error
        for key in ("model", "state_dict"):
            if isinstance(state, dict) and isinstance(state.get(key), dict):
                state = state[key]
        if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
            raise WeightsError(
                f"{str(path)!r} is no flat dict of tensors. Take the file as it was published."
            )
        return state


def check_finite(path: Path, name: str, value: Tensor) -> None:
    """Refuse a tensor with a number that is NaN or infinite: every score would be NaN.

    Raises:
        WeightsError: Names file and tensor.
    """
    if not value.is_floating_point() or not value.numel():
        return
    # The ends are NaN if any number is; unlike `isfinite` this takes no memory.
    if not all(bool(end.isfinite()) for end in value.aminmax()):
        raise WeightsError(
            f"{str(path)!r}: the tensor {name!r} holds NaN or infinite numbers. "
            "Copy or download it again."
        )


def _unreadable(path: Path, error: Exception) -> WeightsError:
    return WeightsError(
        f"{str(path)!r} cannot be read as weights: {(str(error).splitlines() or ['damaged'])[0]}. "
        "It may be cut short or of another format: fetch it again."
    )
