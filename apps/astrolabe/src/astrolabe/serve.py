"""Rewards of this machine, served to others."""

import os
from collections.abc import Callable, Mapping

from astrolabe.compose_rewards import build_term
from astrolabe.config import RewardTerm
from astrolabe.errors import ConfigError
from astrolabe_rewards.scoring_service import MIB, Limits
from astrolabe_rewards.server import RewardServer


def serve_rewards(
    terms: Mapping[str, RewardTerm],
    *,
    host: str,
    port: int,
    token_variable: str,
    max_mib: int,
    max_memory_mib: int,
    queue_size: int,
    max_batch: int,
    max_wait: float,
    say: Callable[[str], None],
) -> None:
    """Serve rewards until Ctrl-C.

    Args:
        terms: Rewards by the names under which they are served.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        token_variable: Name of the environment variable that holds the token; empty asks for none.
        max_mib: Largest request, MiB.
        max_memory_mib: Most MiB of all requests that are held at once.
        queue_size: Most requests that are held at once.
        max_batch: Join requests up to this many videos; 1 joins none.
        max_wait: Seconds to wait for requests to join.
        say: Told one line, with the address, when the server is ready.

    Raises:
        ConfigError: If the token's variable is not set, the address is not to be had, a host other
            than loopback has no token, or a limit is out of its range.
        LookupError: If a reward is not installed.
        WeightsError: If a reward's weights are not there.
    """
    token = os.environ.get(token_variable, "").strip() if token_variable else None
    if token == "":
        raise ConfigError(
            f"the environment variable {token_variable!r} is not set. Put the token that clients "
            "must bring into it, or name no variable to ask for none."
        )
    try:
        limits = Limits(
            max_body=max_mib * MIB,
            max_memory=max_memory_mib * MIB,
            queue_size=queue_size,
            max_batch=max_batch,
            max_wait=max_wait,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    rewards = {name: build_term(name, term) for name, term in terms.items()}
    try:
        server = RewardServer(rewards, host=host, port=port, token=token, limits=limits)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        if error.filename or not error.strerror:  # of a file, such as weights that are missing
            raise
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}. Choose another host or port."
        ) from error
    with server:
        say(f"serving {', '.join(rewards)} on {server.url}")
        server.run()
