"""The state of a run as files that hold no code: tensors as safetensors, all else as JSON.

    state.json                  counters, names, lists; a float reads back to the same bits
    tensors/*.safetensors       a file for each process that had something to write

Tensors go through torch.distributed.checkpoint. A sharded one is written part by part and read by
any other number of processes; one that all of them hold is written once. Its storage of safetensors
is used, as the default one unpickles a file to read it. TorchRL's ``Checkpoint`` is not the
container around all this: one process alone makes and names its folder, so others cannot write
their parts into it, and it keeps no digests, so it would take a damaged file for a whole one.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from astrolabe_eval.files import write_atomic
from astrolabe_eval.input_files import check_file, read_json
from astrolabe_rollout.errors import CheckpointError

#: Nested dicts with names as keys; in them tensors, and what JSON knows. Any: they nest.
State = dict[str, Any]

REST = "state.json"
TENSORS = "tensors"


def split(state: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Tensor], State]:
    """Take the tensors out of a state.

    Returns:
        The tensors by their path, as in ``optimizer/NAME/exp_avg``, and the state without.

    Raises:
        ValueError: If a key is no text, or holds a slash.
    """
    tensors: dict[str, Tensor] = {}
    rest: State = {}
    for key, value in state.items():
        if not isinstance(key, str) or "/" in key:
            raise ValueError(f"the state has the key {prefix}{key!r}. Use texts without a slash.")
        if isinstance(value, Tensor):
            tensors[prefix + key] = value
        elif isinstance(value, Mapping):
            deeper, rest[key] = split(value, f"{prefix}{key}/")
            tensors |= deeper
        else:
            rest[key] = value
    return tensors, rest


def to_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to the CPU; of a sharded one, this process's part."""
    return {
        path: value.detach().to("cpu", copy=True).contiguous() for path, value in tensors.items()
    }


def write_tensors(
    checkpoint: Path, tensors: Mapping[str, Tensor], group: ProcessGroup | None
) -> None:
    """Write this process's share of the tensors, and wait for the others.

    Args:
        checkpoint: Folder of the checkpoint, on a file system that all processes share.
        tensors: From `to_cpu`, the same names for every process.
        group: The processes that write; None: this one alone.

    Raises:
        OSError: On every process, if one of them cannot write; on the first, if it does not find
            what the others wrote.
    """
    writer = HuggingFaceStorageWriter(str(checkpoint / TENSORS), save_distributed=True)
    writer.per_thread_copy_ahead = 0  # nothing is on a GPU, so do not wake one from this thread
    _expect_no_group()
    try:
        written = save(
            dict(tensors), storage_writer=writer, process_group=group, no_dist=group is None
        )
    except CheckpointException as error:
        causes = _causes(error)
        full = next((cause for cause in causes if isinstance(cause, OSError)), None)
        if full is None:
            raise RuntimeError(f"the state cannot be written: {causes[0]}") from causes[0]
        raise OSError(full.errno, full.strerror, str(checkpoint)) from None
    if group is None or dist.get_rank(group) == 0:
        _check_complete(checkpoint, written)


def write_rest(checkpoint: Path, text: str) -> None:
    """Write what `split` left, as JSON text.

    Raises:
        OSError: If it cannot be written.
    """
    write_atomic(checkpoint / REST, text.encode())


def read_tensors(
    checkpoint: Path, parameters: Mapping[str, nn.Parameter] | None = None, under: str = ""
) -> dict[str, Tensor]:
    """Read tensors by their path, each process for itself.

    Args:
        checkpoint: Folder of the checkpoint.
        parameters: What is trained, by name. A tensor of a sharded one's name and shape is sharded
            as it is, and its other parts are not read; all others are whole, on the CPU.
        under: Beginning of the paths that are wanted.

    Raises:
        CheckpointError: If the files are none of ours.
    """
    reader = HuggingFaceStorageReader(str(checkpoint / TENSORS))
    try:
        for file in (checkpoint / TENSORS).glob("*"):
            check_file(file)
        tensors = {
            path: _room(path, stored.size, stored.properties.dtype, parameters or {})
            for path, stored in _stored(reader.read_metadata()).items()
            if path.startswith(under)
        }
        _expect_no_group()
        load(tensors, storage_reader=reader, no_dist=True)
    except (Exception, CheckpointException) as error:  # the latter is no Exception
        raise _unreadable(checkpoint / TENSORS, error) from error
    return tensors


def read_state(
    checkpoint: Path, parameters: Mapping[str, nn.Parameter] | None = None, under: str = ""
) -> State:
    """Read a state as it was before `split`; tuples have become lists.

    Args:
        checkpoint: See `read_tensors`.
        parameters: See `read_tensors`.
        under: Beginning of the paths of tensors that are wanted; the rest comes whole.

    Raises:
        CheckpointError: If the files are none of ours.
    """
    refuse_earlier(checkpoint)
    try:
        state: State = read_json(checkpoint / REST)
        for path, tensor in read_tensors(checkpoint, parameters, under).items():
            *parents, name = path.split("/")
            place = state
            for parent in parents:
                place = place[parent]
            place[name] = tensor
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise _unreadable(checkpoint / REST, error) from error
    return state


def refuse_earlier(checkpoint: Path) -> None:
    """Refuse a whole checkpoint of a version that pickled the state.

    Raises:
        CheckpointError: If it is one.
    """
    if (checkpoint / "state.pt").exists():
        raise CheckpointError(
            f"{str(checkpoint)!r} was made by an earlier version, whose state.pt this one does not "
            "read. End that run with the version it was begun with, or begin a new one from its "
            f"adapter: --set lora.start={checkpoint}/lora"
        )


def _room(
    path: str, size: torch.Size, dtype: torch.dtype, parameters: Mapping[str, nn.Parameter]
) -> Tensor:
    """An empty tensor to read into."""
    like = next((parameters[part] for part in path.split("/") if part in parameters), None)
    if isinstance(like, DTensor) and like.shape == size:
        return torch.empty_like(like, dtype=dtype, requires_grad=False)
    return torch.empty(size, dtype=dtype)


def _check_complete(checkpoint: Path, written: Metadata) -> None:
    """Refuse a folder that lacks what other processes wrote, as on a disk that is not shared."""
    found = _stored(HuggingFaceStorageReader(str(checkpoint / TENSORS)).read_metadata())
    for path, tensor in _stored(written).items():
        if path not in found or _chunks(found[path]) != _chunks(tensor):
            raise OSError(
                f"{path} is not found where another process wrote it. Choose an --out on a file "
                "system that all machines of the run share"
            )


def _stored(metadata: Metadata) -> dict[str, TensorStorageMetadata]:
    """What is stored by path: tensors alone, as anything else would be pickled."""
    stored = metadata.state_dict_metadata.items()
    return {path: one for path, one in stored if isinstance(one, TensorStorageMetadata)}


def _chunks(tensor: TensorStorageMetadata) -> dict[torch.Size, torch.Size]:
    """Sizes of the parts of a tensor by where they begin."""
    return {chunk.offsets: chunk.sizes for chunk in tensor.chunks}


def _expect_no_group() -> None:
    warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as we asked for


def _causes(error: CheckpointException) -> list[BaseException]:
    return [cause for cause, _ in error.failures.values()]


def _unreadable(path: Path, error: BaseException) -> CheckpointError:
    if isinstance(error, CheckpointException):
        error = _causes(error)[0]
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return CheckpointError(f"{str(path)!r} is no state of a run ({reason})")
