"""Show runs in a browser while they train: the folder, the address, and the server between."""

import os
import socket
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path

from astrolabe.errors import ConfigError
from astrolabe.watch_app import make_app
from astrolabe.watch_data import find_runs
from astrolabe_rewards.web.bounds import Bounds, is_loopback
from astrolabe_rewards.web.connections import BoundedServer

LOCAL = "127.0.0.1"


def watch(
    path: Path,
    *,
    host: str = LOCAL,
    port: int = 0,
    open_browser: bool = False,
    say: Callable[[str], None],
) -> None:
    """Show the runs in a folder until Ctrl-C.

    Args:
        path: Folder of a run, or of several.
        host: Address to listen at; another than this machine's own lets others look too.
        port: Port to listen at; 0: any that is free.
        open_browser: Show the page in a browser of this machine.
        say: Is told the address of the page.

    Raises:
        ConfigError: If the folder holds no run, or the address cannot be had.
    """
    find_runs(path)
    listener = _listen(host, port)
    port = listener.getsockname()[1]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    say(f"Watching {path} at {url} (Ctrl-C ends)")
    local = is_loopback(host)
    if not local:
        say(
            f"WARNING: whoever can reach {host} can see these runs, their prompts and videos; "
            "there is no password. Safer: leave out --host, and elsewhere run "
            f"ssh -L {port}:{LOCAL}:{port} THIS-MACHINE"
        )
    if open_browser:
        # In a thread, as a browser inside the terminal returns only when it is left.
        threading.Thread(target=webbrowser.open, args=[url], daemon=True).start()
    server = BoundedServer(make_app(path, local=local), Bounds(), timeout_graceful_shutdown=1)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        pass  # how one usually ends it
    finally:
        listener.close()


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before anything else, so that one which is taken is told at once."""
    if not 0 <= port < 2**16:  # getaddrinfo would take the rest of a division
        raise ConfigError(f"there is no port {port}. Give one from 0 to {2**16 - 1}.")
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise ConfigError(f"--host is {host!r:.80}, which is no name of a machine.") from error
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except OSError as error:
        # Python adds to the words of the system, but not to those about a name, below 0.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror
        raise ConfigError(
            f"cannot listen at {host}, port {port}: {reason}. "
            "Give another --port, such as 0 for any that is free, or another --host."
        ) from error
