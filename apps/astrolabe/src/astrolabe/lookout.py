"""Ends a process that stands still in native code which holds Python's lock, from outside of it.

No thread of such a process can look at a clock, so another process does. `faulthandler` writes the
stacks when a signal comes, for which it needs no lock. Its own timer would do without the other
process, but it goes on while a process is stopped, and ends it in the moment in which it goes on.

``python -m astrolabe.lookout`` is started by `Lookout` and not by hand. Linux only, as it must tell
what hangs from what was stopped.
"""

import faulthandler
import io
import json
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from astrolabe.masking import known_secrets, mask
from astrolabe.stacks import headline, place_for, stacks_path, way_on
from astrolabe_eval.files import write_atomic

log = logging.getLogger(__name__)

PAUSED = ""
"""In place of a phase: do not watch until the next one."""

_WRITING = 2.0  # seconds to wait for stacks


class Lookout:
    """Lets another process watch this one, from `start` to `end`.

    Args:
        folder: Of the run.
        rank: Of this process.
        tick: Seconds between two signs of life.
        limit: Seconds without one, while it is not stopped, after which this process is killed; its
            stacks are then in ``<folder>/crash/<UTC time>/stacks-rank-N.txt``.
    """

    def __init__(self, folder: Path, rank: int, tick: float, limit: float) -> None:
        self._told = json.dumps([str(folder.absolute()), rank, tick, limit])
        self._process: subprocess.Popen[bytes] | None = None
        self._line = -1

    def start(self) -> None:
        """Start it; where that cannot be, a line of the log says so."""
        if not Path("/proc/self/stat").exists():
            return
        self._stacks = tempfile.TemporaryFile()  # noqa: SIM115  # it is open until the end
        faulthandler.register(signal.SIGUSR2, self._stacks)
        theirs, self._line = os.pipe()
        os.set_blocking(self._line, False)  # whatever becomes of the other, this one goes on
        command = [sys.executable, "-m", "astrolabe.lookout", str(os.getpid())]
        descriptor = self._stacks.fileno()
        try:
            self._process = subprocess.Popen(
                [*command, str(descriptor), self._told],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=_descriptor(sys.stderr),
                pass_fds=[descriptor],
                start_new_session=True,  # Ctrl-C is not meant for it
            )
        except OSError as error:
            log.warning("a hang in native code would not be noticed: %s", error)
        finally:
            os.close(theirs)

    def tell(self, phase: str) -> None:
        """Give a sign of life: the present phase, or `PAUSED`."""
        if self._line >= 0:
            with suppress(OSError):
                os.write(self._line, f"{phase}\n".encode())

    def end(self) -> None:
        """Watch no longer."""
        if self._line < 0:
            return
        os.close(self._line)
        self._line = -1
        if self._process is not None:
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        faulthandler.unregister(signal.SIGUSR2)
        self._stacks.close()


def main() -> None:
    """Watch the process that started this one until it is silent for too long, or gone."""
    watched, descriptor = int(sys.argv[1]), int(sys.argv[2])
    folder, rank, tick, limit = json.loads(sys.argv[3])
    phase, silent = "start", 0.0
    while os.getppid() == watched:
        if select.select([0], [], [], tick)[0]:
            said = os.read(0, 2**16)
            if not said:
                return
            phase, silent = said.decode().removesuffix("\n").rpartition("\n")[2], 0.0
        elif phase != PAUSED and not _stopped(watched):
            silent += tick
        if silent > limit:
            _end(watched, descriptor, Path(folder), rank, phase, silent)
            return


def _end(watched: int, descriptor: int, folder: Path, rank: int, phase: str, silent: float) -> None:
    """Kill a process once it has written its stacks, and say why, whatever is broken."""
    place: Path | None = None
    try:
        written = _stacks_of(watched, descriptor)
        place = place_for(folder, rank)
        about = headline(rank, phase, silent, native=True)
        text = mask(f"{about}\n\n{written}", known_secrets(os.environ))
        write_atomic(stacks_path(place, rank), text.encode("utf-8", "backslashreplace"))
    except OSError:  # a full disk must not keep a run that hangs from ending
        place = None
    finally:
        with suppress(ProcessLookupError):  # the signal for the stacks let it go on, to its end
            os.kill(watched, signal.SIGKILL)
        sys.stderr.write(
            f"{headline(rank, phase, silent, native=True)}, so its process is killed. Its stacks: "
            f"{place or 'not written'}. {way_on(folder)}\n"
        )


def _stacks_of(watched: int, descriptor: int) -> str:
    """Let a process write its stacks, and return them when nothing more comes."""
    before = size = os.fstat(descriptor).st_size
    os.kill(watched, signal.SIGUSR2)
    deadline = time.monotonic() + _WRITING
    while time.monotonic() < deadline:
        time.sleep(_WRITING / 100)
        last, size = size, os.fstat(descriptor).st_size
        if size == last > before:
            break
    return os.pread(descriptor, size - before, before).decode(errors="replace")


def _stopped(watched: int) -> bool:
    """Whether a process was stopped, by a signal or a debugger."""
    try:
        state = Path(f"/proc/{watched}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # it is gone
        return True
    return state in ("T", "t")


def _descriptor(stream: object) -> int | None:
    """The file behind a stream, if there is one."""
    try:
        return stream.fileno() if isinstance(stream, io.IOBase) else None
    except OSError:
        return None


if __name__ == "__main__":
    main()
