"""A request for scores and its answer as bytes: safetensors, version ``SCHEMA``; never pickle.

The same bytes go through shared memory (`worker`) and over HTTP (`client`, `server`):

- request: ``fps`` float32 ``[n]``, ``pixels`` uint8 ``[n, F, 3, H, W]``; metadata ``schema`` and
  ``prompts``, a JSON list of n texts;
- answer: ``scores`` float32 ``[n]``, or the 16 bits in which they came, bit for bit; metadata
  ``schema``, ``fingerprint`` of the reward, and ``errors``, a JSON list with a text for each video
  that has no score, else null.

Any program that writes safetensors can ask. The files are read and written here and not by the
safetensors library, because that one copies every tensor and drops the metadata of what is in
memory; a video of 97 MB is worth to be left where it is.
"""

import json
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self, TypeGuard

import torch
from torch import Tensor

SCHEMA: Final = 1
#: Largest header, bytes; it holds the prompts.
HEADER_LIMIT: Final = 2**24
_DTYPES: Final = {
    "U8": torch.uint8,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}


class WireError(ValueError):
    """Bytes that are no request or answer of this schema."""


class UnavailableError(OSError):
    """A scorer outside this process gave no answer, and asking again did not help.

    No ``ConnectionError``: that one is a fault of the set-up to ``CompositeReward``, while a scorer
    that was there at the start and is lost for one batch costs that batch.
    """


@dataclass(frozen=True)
class Request:
    """Videos to be scored.

    Attributes:
        pixels: uint8 ``[n, F, 3, H, W]``, n at least 1.
        prompts: n texts.
        fps: float32 ``[n]``.
    """

    pixels: Tensor
    prompts: list[str]
    fps: Tensor

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, part: slice) -> "Request":
        return Request(self.pixels[part], self.prompts[part], self.fps[part])

    def pack(self) -> list[memoryview]:
        """Return the bytes in two parts, header first; pixels on the CPU are not copied."""
        metadata = {"schema": str(SCHEMA), "prompts": json.dumps(self.prompts)}
        return _pack({"fps": self.fps.float(), "pixels": self.pixels}, metadata)

    @classmethod
    def unpack(cls, data: bytearray | mmap.mmap) -> Self:
        """Read a request; its tensors are views of ``data``.

        Raises:
            WireError: If it is malformed or of another schema.
        """
        tensors, metadata = _unpack(data, {"fps": (torch.float32,), "pixels": (torch.uint8,)})
        pixels, fps = tensors["pixels"], tensors["fps"]
        if pixels.ndim != 5 or pixels.shape[2] != 3 or 0 in pixels.shape:
            raise WireError(f"pixels have shape {tuple(pixels.shape)}, not [n, F, 3, H, W].")
        count = len(pixels)
        if tuple(fps.shape) != (count,):
            raise WireError(f"fps has shape {tuple(fps.shape)} for {count} videos.")
        prompts = _texts(metadata, "prompts", count)
        if None in prompts:
            raise WireError(f"prompts holds null. Give {count} texts.")
        return cls(pixels, [str(text) for text in prompts], fps)


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    Attributes:
        scores: float32, float16 or bfloat16 ``[n]``; NaN for a video that could not be scored.
        errors: n times None, or why there is no score.
        fingerprint: Of the reward that gave them.
    """

    scores: Tensor
    errors: list[str | None]
    fingerprint: str

    def pack(self) -> bytes:
        """Return the bytes."""
        metadata = {
            "schema": str(SCHEMA),
            "fingerprint": self.fingerprint,
            "errors": json.dumps(self.errors),
        }
        return b"".join(_pack({"scores": self.scores}, metadata))

    @classmethod
    def unpack(cls, data: bytearray, count: int) -> Self:
        """Read the answer to a request of ``count`` videos.

        Raises:
            WireError: If it is malformed, of another schema, or for another number of videos.
        """
        tensors, metadata = _unpack(
            data, {"scores": (torch.float32, torch.float16, torch.bfloat16)}
        )
        if tuple(tensors["scores"].shape) != (count,):
            shape = tuple(tensors["scores"].shape)
            raise WireError(f"scores have shape {shape} for {count} videos.")
        errors = _texts(metadata, "errors", count)
        return cls(tensors["scores"], errors, metadata.get("fingerprint", ""))


def _pack(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> list[memoryview]:
    """A safetensors file in parts; the order of the tensors must keep them aligned."""
    header: dict[str, Any] = {"__metadata__": metadata}  # Any: JSON
    parts, end = [], 0
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        parts.append(flat.numpy().data)
        begin, end = end, end + flat.numel()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_LIMIT:
        raise WireError(
            f"prompts and errors take {len(text)} bytes, more than {HEADER_LIMIT}. "
            "Send fewer videos at once."
        )
    return [memoryview(len(text).to_bytes(8, "little") + text), *parts]


def _unpack(
    data: bytearray | mmap.mmap, wanted: Mapping[str, tuple[torch.dtype, ...]]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The wanted tensors as views of ``data``, and the metadata; the schema is checked first."""
    header, start = _header(data)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(x, str) for x in metadata.values()):
        raise WireError("the metadata is no mapping of texts.")
    if metadata.get("schema") != str(SCHEMA):
        raise WireError(
            f"the other side speaks schema {metadata.get('schema')!r} and this one '{SCHEMA}'. "
            "Install the same version of astrolabe-rewards on both."
        )
    if header.keys() != wanted.keys():
        raise WireError(f"there are tensors {sorted(header)}, not {sorted(wanted)}.")
    return {
        name: _view(data, start, name, header[name], dtypes) for name, dtypes in wanted.items()
    }, metadata


def _header(data: bytearray | mmap.mmap) -> tuple[dict[str, Any], int]:  # Any: JSON
    """The header, and where the tensors start."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(HEADER_LIMIT, len(data) - 8):
        raise WireError("this is no safetensors file, or it is cut short.")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise WireError(f"the header is no JSON: {error}.") from error
    if not isinstance(header, dict):
        raise WireError("the header is no mapping.")
    return header, 8 + length


def _view(
    data: bytearray | mmap.mmap,
    start: int,
    name: str,
    entry: Any,  # Any: JSON
    dtypes: tuple[torch.dtype, ...],
) -> Tensor:
    """One tensor, after all that its entry says has been checked against the bytes there are."""
    dtype = _DTYPES.get(str(entry.get("dtype"))) if isinstance(entry, dict) else None
    if dtype is None or dtype not in dtypes:
        allowed = " or ".join(_NAMES[each] for each in dtypes)
        raise WireError(f"{name} is {entry!r:.200}, not of dtype {allowed}.")
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise WireError(f"{name} has shape {shape!r:.200} and data_offsets {offsets!r:.200}.")
    begin, end = offsets
    size = math.prod(shape) * dtype.itemsize
    if not 0 < size == end - begin or start + end > len(data):
        raise WireError(
            f"{name} of shape {shape} needs {size} bytes, and has {begin} to {end} of "
            f"{len(data) - start}."
        )
    flat = torch.frombuffer(data, dtype=torch.uint8, count=size, offset=start + begin)
    if dtype != torch.uint8:
        flat = flat.clone()  # small, and foreign files may have it where no float can lie
    return flat.view(dtype).reshape(shape)


def _counts(value: object) -> TypeGuard[list[int]]:
    """Whether it is a list of whole numbers of at least 0, none of them beyond an address."""
    return isinstance(value, list) and all(type(x) is int and 0 <= x < 2**62 for x in value)


def _texts(metadata: Mapping[str, str], name: str, count: int) -> list[str | None]:
    """A JSON list of texts and nulls, one for each video."""
    try:
        texts = json.loads(metadata.get(name, ""))
    except (ValueError, RecursionError):
        texts = None
    if not isinstance(texts, list) or not all(text is None or type(text) is str for text in texts):
        raise WireError(f"the metadata has no JSON list of texts under {name!r}.")
    if len(texts) != count:
        raise WireError(f"{name} has {len(texts)} entries for {count} videos.")
    return texts
