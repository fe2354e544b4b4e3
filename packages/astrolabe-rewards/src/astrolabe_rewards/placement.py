"""Where and how the weights of a reward are held, and one copy of them in a process."""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar
from weakref import WeakValueDictionary

import torch

DType = Literal["bfloat16", "float32"]

_DTYPES: Final = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_Part = TypeVar("_Part")
_shared: "WeakValueDictionary[tuple[object, ...], Any]" = WeakValueDictionary()
_shared_lock = threading.Lock()


@dataclass(frozen=True)
class Placement:
    """Number format and device of a network; checked when made.

    Args:
        dtype: "bfloat16" or "float32".
        device: A device of torch; None takes the current CUDA device if there is one, else the CPU.

    Raises:
        ValueError: If the format is unknown or the device is not there.
    """

    dtype: DType
    device: str | None

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}. Choose from: {tuple(_DTYPES)}.")
        self.torch_device()

    def torch_dtype(self) -> torch.dtype:
        """Return the number format."""
        return _DTYPES[self.dtype]

    def torch_device(self) -> torch.device:
        """Return the device, with its index.

        Raises:
            ValueError: If there is no such device.
        """
        if self.device is None:
            cuda = torch.cuda.is_available()
            return (
                torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
            )
        try:
            device = torch.device(self.device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise ValueError(
                f"device is {self.device!r}: {reason}. Name a device that torch has here, such as "
                "'cpu' or 'cuda:0', or leave it out."
            ) from error
        return device


def shared(
    kind: str, files: Sequence[Path], placement: Placement, make: Callable[[], _Part]
) -> _Part:
    """Return what another reward of this process made of the same files, or make it.

    It lives as long as a reward holds it. A file that was written anew since is another file.

    Args:
        kind: What is made.
        files: What it is made of.
        placement: Where and how its weights are held.
        make: Makes it.
    """
    stamps = [
        (os.path.realpath(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files
    ]
    key = (kind, *stamps, placement, placement.torch_device())
    with _shared_lock:
        found: _Part | None = _shared.get(key)
        if found is None:
            found = make()
            _shared[key] = found
        return found
