"""How a `worker` and its process talk: memory goes one way, short replies come back.

Over a pair of Unix sockets the worker hands over open files that live in memory and have no name.
So there is nothing that could be left behind: the memory is gone with the last process that has it
open, however that process ends. It does not count against the size of ``/dev/shm`` either, which
is 64 MiB in many containers.
"""

import mmap
import os
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Iterable
from typing import BinaryIO, Final

HELLO: Final = b"H"
ANSWER: Final = b"A"
ERROR: Final = b"E"

_SIZE: Final = struct.Struct("<Q")
_REPLY: Final = struct.Struct("<cQ")


class Memory:
    """Bytes in a file without a name, to be sent any number of times; use with ``with``.

    Args:
        parts: The bytes, one part after the other.
    """

    def __init__(self, parts: Iterable[bytes | memoryview]) -> None:
        self._file = _nameless()
        try:
            for part in parts:
                self._file.write(part)
            self._file.flush()
            self._size = self._file.tell()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Memory":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def send(self, channel: socket.socket) -> None:
        """Hand it to the process at the other end."""
        socket.send_fds(channel, [_SIZE.pack(self._size)], [self._file.fileno()])


def _nameless() -> BinaryIO:
    if sys.platform == "linux":
        return os.fdopen(os.memfd_create("astrolabe"), "w+b")
    return tempfile.TemporaryFile()


def receive_memory(channel: socket.socket) -> mmap.mmap:
    """Wait for memory; what is written into it stays with this process.

    Raises:
        EOFError: If the other end is gone.
    """
    message, descriptors, _, _ = socket.recv_fds(channel, _SIZE.size, 1)
    if not message or not descriptors:
        raise EOFError("the worker is gone")
    try:
        return mmap.mmap(descriptors[0], _SIZE.unpack(message)[0], access=mmap.ACCESS_COPY)
    finally:
        os.close(descriptors[0])


def send_reply(channel: socket.socket, kind: bytes, payload: bytes) -> None:
    """Send a reply: ``HELLO``, ``ANSWER`` or ``ERROR``."""
    channel.sendall(_REPLY.pack(kind, len(payload)) + payload)


def receive_reply(channel: socket.socket, seconds: float) -> tuple[bytes, bytearray]:
    """Wait for a reply, kind and payload.

    Raises:
        EOFError: If the other end is gone.
        TimeoutError: If it did not come in time.
    """
    deadline = time.monotonic() + seconds
    kind, size = _REPLY.unpack(_exactly(channel, _REPLY.size, deadline))
    return kind, _exactly(channel, size, deadline)


def _exactly(channel: socket.socket, size: int, deadline: float) -> bytearray:
    received = bytearray()
    while len(received) < size:
        channel.settimeout(max(deadline - time.monotonic(), 1e-3))
        more = channel.recv(size - len(received))
        if not more:
            raise EOFError("the process is gone")
        received += more
    return received
