"""How much a server gives to clients before they have asked for anything."""

import math
import resource
from dataclasses import dataclass
from ipaddress import ip_address


@dataclass(frozen=True)
class Bounds:
    """What connections may take, whoever opens them.

    Attributes:
        connections: Most that are open at once; never more than half of the files that this process
            may have open (``ulimit -n``), as it needs some itself.
        head_seconds: In which the head of a request must have come, from its first byte or, on a
            new connection, from its begin.
        body_seconds: In which the body must have come after it.
        stall_seconds: For which a client may leave its answer unread.

    Raises:
        ValueError: If one is not finite, or too small.
    """

    connections: int = 256
    head_seconds: float = 10.0
    body_seconds: float = 300.0
    stall_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not self.connections >= 1:
            raise ValueError(f"connections is {self.connections!r}. Give a number of at least 1.")
        for name in ("head_seconds", "body_seconds", "stall_seconds"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value!r}. Give finite seconds above 0.")

    def places(self) -> tuple[int, int]:
        """Return the connections there is room for, and how many to accept in one go.

        Accepted ones are counted only some turns of the event loop later: four times the second
        number may be open besides.
        """
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if files == resource.RLIM_INFINITY:
            return self.connections, 128
        return max(1, min(self.connections, files // 2)), max(1, min(128, files // 16))


def is_loopback(name: str) -> bool:
    """Tell if a name or address, without a port, is that of this machine to itself."""
    try:
        return name.lower() == "localhost" or ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
