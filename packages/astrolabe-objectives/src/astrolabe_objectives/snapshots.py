"""Named copies of the trained parameters: ``old`` samples the data, ``reference`` anchors the KL.

One frozen base serves policy, old and reference: only what is trained (a LoRA adapter, or all of a
small network) is copied. A copy is *used* by writing its values into the live parameters, in place,
and putting the live values back. In place has two virtues: it is exact under FSDP2, where
exchanging storages is silently ignored, and autograd itself refuses a swap between forward and
backward.

Copies are kept in float32 at least, whatever the parameters are: a moving average is a sum of large
and small numbers.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, Self

import torch
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from astrolabe_objectives import settings
from astrolabe_objectives.bound import Bound
from astrolabe_objectives.errors import SnapshotError
from astrolabe_objectives.live import LiveParameters, master, master_dtype
from astrolabe_objectives.schedules import OldDecay, ReferenceReset, StatefulRule
from astrolabe_objectives.shards import local, part, shared, total
from astrolabe_objectives.snapshot_state import EXTRA, as_flat, check_fit, key_of

OLD = "old"
REFERENCE = "reference"
BEHIND = "behind"

_OLD_DECAY = OldDecay()
_REFERENCE_RESET = ReferenceReset()


class Snapshots(nn.Module):
    """Named copies of the trainable parameters of one network, which it does not own.

    Every copy starts equal to the live parameters. Parameters that do not require a gradient when
    this object is made are neither copied nor touched. Under FSDP2 each rank holds the copies of
    its own shards; parameters that FSDP was told to ignore are copied whole.

    When the network goes to another device or precision, the copies go with it; in a precision
    below float32 they keep theirs, and what a pass sees of them is rounded as the network's own
    weights are. A swap also empties autocast's cache of cast weights, so all of this may happen
    under ``torch.autocast``.

    It is a module so that a loss that has it saves it: ``state_dict()`` holds the copies, the age
    of the reference and the state of its rule. Its tensors stay the same objects for good, so who
    writes into them, as TorchRL's target updaters do, writes into the copies.

    Args:
        parameters: The network, after `fully_shard` if it is used, or, if nothing of it is sharded,
            its parameters by name.
        names: Names of the copies, such as ``"old"`` and ``"reference"``; without dots.
        old_decay: ``γ(step)`` for ``old`` in `advance`.
        reference_reset: ``(kl, epochs) -> bool`` for ``reference`` in `advance`; if it has a
            ``state_dict()``, that is part of this object's.

    Raises:
        ValueError: If nothing is trainable, no name, a name with a dot or one name twice is given,
            or sharded parameters are given without their network.
        TypeError: If a name is no text, or a rule cannot be called.

    Example:
        >>> network = nn.Linear(2, 2)
        >>> snapshots = Snapshots(network, "old")
        >>> with torch.no_grad():
        ...     _ = network.bias.fill_(3.0)
        >>> with snapshots.use("old"):
        ...     bool((network.bias == 3.0).all())
        False
        >>> bool((network.bias == 3.0).all())
        True
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter] | nn.Module,
        *names: str,
        old_decay: Callable[[int], float] = _OLD_DECAY,
        reference_reset: Callable[[float, int], bool] = _REFERENCE_RESET,
    ) -> None:
        super().__init__()
        self._live = LiveParameters(parameters)
        for name in names:
            if not isinstance(name, str):
                raise TypeError(
                    f"Snapshots got the name {name!r}. Give names as single arguments of text: "
                    'Snapshots(network, "old", "reference").'
                )
            if not name or "." in name:
                raise ValueError(f"Snapshots got the name {name!r}. Give letters without a dot.")
        if not names:
            raise ValueError('Snapshots got no names. Name the copies, such as "old", "reference".')
        if len(set(names)) < len(names):
            raise ValueError(f"Snapshots got the names {names}, one of them twice. Name each once.")
        settings.rules("Snapshots", old_decay=old_decay, reference_reset=reference_reset)
        live = self._live.now()
        self._copies = {name: {key: master(live[key]) for key in live} for name in names}
        self._old_decay = old_decay
        self._reference_reset = reference_reset
        self._epochs = 0
        self._in_use: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the copies."""
        return tuple(self._copies)

    def live(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters themselves, by name."""
        return dict(self._live.now())

    @property
    def sharded(self) -> bool:
        """Whether the network, trained or frozen, lives on several ranks.

        They must then all run the same passes.
        """
        return self._live.sharded

    @contextmanager
    def use(self, name: str) -> Iterator[None]:
        """Run a block of code, without gradient, with the values of copy ``name``.

        The live values are back, bit for bit, when the block ends, also after an exception.

        Raises:
            SnapshotError: If there is no copy ``name``.
            RuntimeError: If a copy is in use already.
        """
        copy = self._copy(name)
        self._refuse_while_in_use(f"use {name!r}")
        with torch.no_grad():
            parameters = self._live.now()
            values = {key: local(value).clone() for key, value in parameters.items()}
            self._in_use = name
            try:
                self._live.write(parameters, copy)
                yield
            finally:
                self._live.write(parameters, values)
                self._in_use = None

    def bind(self, name: str, module: TensorDictModuleBase) -> TensorDictModuleBase:
        """Return a TensorDict module that runs ``module`` under ``use(name)``.

        Raises:
            SnapshotError: If there is no copy ``name``.
        """
        self._copy(name)
        return Bound(self, name, module)

    def refresh(self, name: str) -> None:
        """Set copy ``name`` to the live values."""
        self.ema(name, decay=0.0)

    @torch.no_grad()
    def ema(self, name: str, decay: float) -> None:
        """Move copy ``name`` towards the live values, ``copy ← γ copy + (1-γ) live``.

        Args:
            name: Which copy.
            decay: ``γ`` in [0, 1]; 0 sets the copy to the live values exactly, 1 leaves it.

        Raises:
            TypeError: If ``decay`` is no number.
            ValueError: If it is outside [0, 1].
        """
        settings.number(f"snapshot {name!r}", "decay", decay, least=0, most=1)
        copy = self._copy(name)
        self._refuse_while_in_use(f"update {name!r}")
        if decay == 1.0:  # not even what is not a number in the live values
            return
        for key, parameter in self._live.now().items():
            if decay == 0.0:
                copy[key].copy_(local(parameter))
            else:
                copy[key].lerp_(local(parameter).to(copy[key].dtype), 1.0 - decay)

    def values(self, name: str) -> dict[str, Tensor]:
        """Return what copy ``name`` holds, by parameter: this rank's part of a sharded one.

        The tensors are the copy itself, float32 at least: writing into them changes it.

        Raises:
            SnapshotError: If there is no copy ``name``.
        """
        return dict(self._copy(name))

    @torch.no_grad()
    def deviation(self, name: str) -> float:
        """Root mean square difference between the live values and copy ``name``, as each is used.

        All ranks that share the parameters must call this.
        """
        copy = self._copy(name)
        self._refuse_while_in_use(f"measure {name!r}")
        live = self._live.now()
        squares = [
            (local(parameter).double() - copy[key].to(parameter.dtype).double()).square().sum()
            for key, parameter in live.items()
        ]
        first, *_ = live.values()  # all are spread alike
        count = sum(parameter.numel() for parameter in live.values())
        return float((total(torch.stack(squares).sum(), first) / count).sqrt())

    def advance(self, step: int, kl: float | None) -> dict[str, float]:
        """Close an epoch: ``old`` follows the policy, ``reference`` is renewed if it is time.

        A copy ``behind`` becomes what ``old`` was before, for data that is sampled one epoch late.
        A copy of another name is left alone, as is a missing one.

        Args:
            step: Number of this epoch, from 0.
            kl: Mean KL term of this epoch, before its coefficient; the same on every rank. None:
                nothing was learned in it, so that only ``behind`` follows.

        Returns:
            Metrics: ``snapshot/old_decay``, ``snapshot/reference_reset`` (0 or 1) and
            ``snapshot/reference_epochs`` since the last reset.
        """
        settings.whole("Snapshots.advance", "step", step, least=0)
        metrics: dict[str, float] = {}
        if REFERENCE in self._copies and kl is not None:
            reset = self._reference_reset(kl, self._epochs + 1)
            if reset:
                self.refresh(REFERENCE)
            self._epochs = 0 if reset else self._epochs + 1
            metrics["snapshot/reference_reset"] = float(reset)
            metrics["snapshot/reference_epochs"] = float(self._epochs)
        if BEHIND in self._copies:
            behind = self._copy(BEHIND)
            for key, values in self._copy(OLD).items():
                behind[key].copy_(values)
        if OLD in self._copies and kl is not None:
            decay = self._old_decay(step)
            self.ema(OLD, decay)
            metrics["snapshot/old_decay"] = decay
        return metrics

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:  # torch's hook of `state_dict`
        """Write the copies, not the live parameters, and the age of the reference.

        Copies of sharded parameters are DTensors, which `torch.distributed.checkpoint` saves in
        parts and loads on any number of ranks.
        """
        live = self._live.now()
        for name in self._copies:
            for key, values in self._copy(name).items():
                destination[prefix + key_of(name, key)] = shared(values, live[key])
        destination[prefix + EXTRA] = self.get_extra_state()

    def get_extra_state(self) -> dict[str, Any]:  # torch's name; a counter and a rule's state
        """Return the age of the reference and the state of its rule, for ``state_dict()``."""
        state: dict[str, Any] = {"epochs": self._epochs}
        if isinstance(self._reference_reset, StatefulRule):
            state["reference_reset"] = dict(self._reference_reset.state_dict())
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Take back what ``state_dict()`` gave, bit for bit; whole tensors and DTensors alike.

        Ranks that share the parameters must all call this.

        Raises:
            SnapshotError: If names, parameters, shapes or the kind of rule differ from this
                object's.
        """
        self._load(as_flat(state))

    def _load_from_state_dict(  # torch's hook of the module that this is part of
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        state = {
            key.removeprefix(prefix): value
            for key, value in state_dict.items()
            if key.startswith(prefix)
        }
        if not state:
            missing_keys += [prefix + key for key in self.state_dict()]
            return
        try:
            self._load(state)
        except SnapshotError as error:
            error_msgs.append(str(error))

    @torch.no_grad()
    def _load(self, state: Mapping[str, Any]) -> None:
        live = self._live.now()
        shapes = {key: tuple(parameter.shape) for key, parameter in live.items()}
        check_fit(state, self.names, shapes)
        extra, rule = state.get(EXTRA, {}), self._reference_reset
        if "epochs" not in extra:
            raise SnapshotError(
                "the snapshots were saved without the age of the reference. Give the whole of what "
                "state_dict() returned."
            )
        if isinstance(rule, StatefulRule) and "reference_reset" not in extra:
            raise SnapshotError(
                "the snapshots were saved without the state of the reference's rule, which this "
                "run has. Resume with the settings that the run was started with."
            )
        for name in self._copies:
            for key, values in self._copy(name).items():
                values.copy_(part(state[key_of(name, key)], live[key]))
        self._epochs = extra["epochs"]
        if isinstance(rule, StatefulRule):
            rule.load_state_dict(extra["reference_reset"])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Copies go where the network goes, in a precision of their own.
        for name in self._copies:
            self._copy(name)
        return self

    def _copy(self, name: str) -> dict[str, Tensor]:
        """The values of a copy, brought to where the parameters are, in no less than float32."""
        if name not in self._copies:
            close = get_close_matches(name, self._copies, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise SnapshotError(
                f"there is no snapshot {name!r}.{hint} This run has {sorted(self._copies)}; "
                "name the missing one when you make Snapshots."
            )
        copy = self._copies[name]
        for key, parameter in self._live.now().items():
            if not parameter.is_meta:  # nothing comes back from there
                precision = torch.promote_types(copy[key].dtype, master_dtype(parameter))
                copy[key].data = copy[key].to(parameter.device, precision)
        return copy

    def _refuse_while_in_use(self, verb: str) -> None:
        if self._in_use is not None:
            raise RuntimeError(
                f"cannot {verb} while {self._in_use!r} is in use: the network does not hold the "
                "live values now. Leave the `with snapshots.use(...)` block first."
            )
