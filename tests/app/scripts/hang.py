"""Runs that hang in several ways, each in processes of its own; run by test_watchdog.

All are forks of this process, so that torch is imported once.
"""

import ctypes
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from astrolabe.watchdog import Watchdog
from astrolabe.world import ALONE, World

TIMEOUT = 1.5
FOREVER = 600.0
place = Path(sys.argv[1])


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def sleep() -> None:
    time.sleep(FOREVER)


def meet() -> None:
    """Wait for the others, as every process does in the end."""


def together(name: str, *actions: Callable[[], None]) -> list[int]:
    """Start a process for each action; all then meet."""
    port = free_port()
    children = []
    for rank, action in enumerate(actions):
        if child := os.fork():
            children.append(child)
            continue
        sys.stderr = (place / f"{name}-{rank}.stderr").open("w", buffering=1)
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(len(actions)), "MASTER_PORT": port}
        os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
        world = World.start(60)
        with Watchdog(place / name, world, TIMEOUT) as watchdog:
            watchdog.phase("sample", 0.0)
            action()
            watchdog.phase("score", 0.0)
            world.barrier()
        os._exit(0)
    return children


def alone(name: str, action: Callable[[Watchdog], None], folder: str = "") -> list[int]:
    """Start a lone process."""
    if child := os.fork():
        return [child]
    sys.stderr = (place / f"{name}-0.stderr").open("w", buffering=1)
    with Watchdog(place / (folder or name), ALONE, TIMEOUT) as watchdog:
        watchdog.phase("sample", 0.0)
        action(watchdog)
    os._exit(0)


def pause(watchdog: Watchdog) -> None:
    with watchdog.pause():
        time.sleep(2 * TIMEOUT)
    time.sleep(TIMEOUT / 2)


def slow(watchdog: Watchdog) -> None:
    for tenth in range(4):
        time.sleep(TIMEOUT / 2)
        watchdog.phase("sample", tenth / 4)


def held(seconds: int = 600) -> None:
    """Sleep in native code that holds Python's lock."""
    library.sleep(seconds)


def paused_natively(watchdog: Watchdog) -> None:
    with watchdog.pause():
        held(int(6 * TIMEOUT))


def stopped_for_long(watchdog: Watchdog) -> None:
    stop()


(place / "no-folder").write_text("")
library = ctypes.PyDLL(None)  # which holds Python's lock while it is called
runs = {
    "hang": together("hang", meet, sleep, stop),
    "keeper": together("keeper", stop, meet),  # rank 0 keeps the store
    "lone": alone("lone", lambda watchdog: sleep()),
    "native": alone("native", lambda watchdog: held()),
    "paused natively": alone("paused natively", paused_natively),
    "unwritable": alone("unwritable", lambda watchdog: sleep(), "no-folder/run"),
    "pause": alone("pause", pause),
    "slow": alone("slow", slow),
    "continued": alone("continued", stopped_for_long),
}
time.sleep(6 * TIMEOUT)  # longer than one that holds Python's lock is let live
os.kill(runs["continued"][0], signal.SIGCONT)
codes: dict[str, list[int]] = {}
for name, children in runs.items():
    stopped = {"hang": [2], "keeper": [0]}.get(name, [])  # they end when somebody kills them
    going = [child for rank, child in enumerate(children) if rank not in stopped]
    codes[name] = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in going]
    for rank in stopped:
        os.kill(children[rank], signal.SIGKILL)
        os.waitpid(children[rank], 0)
sys.stdout.write(json.dumps(codes))
