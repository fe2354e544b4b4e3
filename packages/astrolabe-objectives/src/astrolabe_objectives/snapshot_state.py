"""How copies of parameters are named in a state, and what of a saved state fits."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from astrolabe_objectives.errors import SnapshotError

#: Where torch keeps what is no tensor: the age of the reference, and the state of its rule.
EXTRA = "_extra_state"


def key_of(copy: str, parameter: str) -> str:
    """Name of one parameter of a copy in a state."""
    return f"{copy}.{parameter}"


def as_flat(state: Mapping[str, Any]) -> dict[str, Any]:  # Any: tensors, and the extra state
    """Return a state in today's form; an earlier one held a mapping for each copy."""
    if "copies" not in state:
        return dict(state)
    flat: dict[str, Any] = {
        key_of(copy, key): value
        for copy, values in state["copies"].items()
        for key, value in values.items()
    }
    return flat | {EXTRA: {key: value for key, value in state.items() if key != "copies"}}


def check_fit(
    state: Mapping[str, Any], names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse a state of other copies, or of other parameters.

    Args:
        state: In today's form.
        names: Of the copies that there are.
        shapes: Of the parameters, by name.

    Raises:
        SnapshotError: Names what differs first, and what to do.
    """
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    saved = {key.partition(".")[0] for key in tensors}
    if saved != set(names):
        raise SnapshotError(
            f"the saved snapshots are {sorted(saved)}, this run has {sorted(names)}. "
            "Resume with the settings that the run was started with."
        )
    for name in names:
        prefix = key_of(name, "")
        found = {
            key.removeprefix(prefix): tuple(value.shape)
            for key, value in tensors.items()
            if key.startswith(prefix)
        }
        if found != shapes:
            key, shape = sorted(set(shapes.items()) ^ set(found.items()))[0]
            raise SnapshotError(
                f"saved snapshot {name!r} does not fit the trained parameters, first at "
                f"{key!r} of shape {shape}. Resume with the model and LoRA rank of its run."
            )
