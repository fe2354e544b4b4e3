"""Checks of what is handed to this package, and the words for it; needs no model's library."""

from typing import Any

from torch import Tensor


def floating(value: Tensor) -> bool:
    """Whether its numbers are floats."""
    return value.is_floating_point()


def kind(value: Tensor) -> str:
    """Dtype and shape in words."""
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def require(part: object, protocol: Any, what: str) -> None:
    """Refuse a part that lacks what a protocol asks of it.

    Args:
        part: The part.
        protocol: The protocol.
        what: Its name in the message, such as "transformer".

    Raises:
        TypeError: Names what it lacks.
    """
    # Not isinstance: from Python 3.12 on it does not see what a wrapped module passes on.
    asked = [name for name in dir(protocol) if not name.startswith("_")]
    missing = [name for name in asked if getattr(part, name, None) is None]
    if missing:
        raise TypeError(
            f"the {what} is a {type(part).__name__} without {', '.join(missing)}. "
            f"Give it what {protocol.__module__}.{protocol.__name__} describes."
        )


def without_transforms(env: Any) -> Any:
    """Return the environment inside TorchRL's transforms; itself if there are none."""
    while inside := dict(env.named_children()).get("base_env"):
        env = inside
    return env
