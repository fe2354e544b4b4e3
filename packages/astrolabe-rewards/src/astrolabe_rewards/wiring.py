"""Which entries of a batch a module reads and writes, and how its user names others."""

from collections.abc import Callable, Sequence
from typing import Any, Self, TypeAlias

from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase

from astrolabe_rewards.keys import FPS, PIXELS, SCORE, TEXT
from astrolabe_rewards.normalisation import nearest

#: A reward, or any callable that takes a batch and writes ``("score", name)`` into it.
Scorer: TypeAlias = Callable[[TensorDictBase], TensorDictBase]
#: What a callable that does not say what it reads may read.
UNDECLARED: tuple[NestedKey, ...] = (PIXELS, FPS, TEXT)


def checked_keys(
    who: str, what: str, given: Sequence[NestedKey] | None, defaults: Sequence[NestedKey]
) -> list[NestedKey]:
    """Return the keys of a module: those that were given, else its own.

    Args:
        who: The module, for messages.
        what: ``"in_keys"`` or ``"out_keys"``.
        given: One key for each default, in their order; None: the defaults.
        defaults: The module's own.

    Raises:
        TypeError: If they are no list of keys.
        ValueError: If there are more or fewer of them, or two outputs share one.
    """
    if given is None:
        return list(defaults)
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise TypeError(
            f"{who}: {what} is {given!r}. Give a list of keys, one for each of {list(defaults)}."
        )
    if len(given) != len(defaults):
        raise ValueError(
            f"{who}: {what} has {len(given)} entries. Give {len(defaults)} keys, for "
            f"{list(defaults)}, in this order."
        )
    return distinct(who, what, [_checked(who, what, key) for key in given])


def distinct(who: str, what: str, keys: list[NestedKey]) -> list[NestedKey]:
    """Refuse outputs of which one would replace another."""
    if what == "out_keys" and len(set(keys)) < len(keys):
        raise ValueError(f"{who}: out_keys {keys} names an entry twice. Give each its own.")
    return keys


def apart(who: str, read: Sequence[NestedKey], written: Sequence[NestedKey]) -> None:
    """Refuse two inputs that are one entry, and an output that would replace an input."""
    twice = [key for index, key in enumerate(read) if key in read[:index]]
    if twice:
        raise ValueError(
            f"{who}: in_keys {list(read)} names {twice[0]!r} twice. Give each its own entry."
        )
    if lost := [key for key in written if key in read]:
        raise ValueError(
            f"{who}: {lost[0]!r} is read and would be written over. Give the output another key."
        )


def reads(scorer: object) -> list[NestedKey] | None:
    """Return the entries that a scorer says it reads; None if it says nothing."""
    keys = getattr(scorer, "in_keys", None)
    return None if keys is None else [unravel_key(key) for key in keys]


def written_by(scorer: object, name: str) -> NestedKey:
    """Return where a scorer writes its score: its only output, else ``("score", name)``."""
    keys = list(scorer.out_keys) if isinstance(scorer, TensorDictModuleBase) else []
    return keys[0] if len(keys) == 1 else (SCORE, name)


def renamed(
    batch: TensorDictBase, own: Sequence[NestedKey], wanted: Sequence[NestedKey]
) -> TensorDictBase:
    """Return a shallow copy of a batch that also has its entries ``own`` as ``wanted``."""
    shown = batch.copy()
    for key, name in zip(own, wanted, strict=True):
        if key == name:
            continue
        value = batch.get(key, None)
        if value is not None:
            shown.set(name, value)
        elif name not in own and shown.get(name, None) is not None:
            del shown[name]  # it is another entry, which only has the usual name
    return shown


def name_of(key: NestedKey) -> str:
    """Return the aspect that a key names, as `Rewired.set_keys` calls it."""
    return key if isinstance(key, str) else str(key[-1])


class Rewired(TensorDictModuleBase):
    """A module whose entries can be named otherwise after it was made, as TorchRL's losses do.

    A subclass calls `_wire` in its constructor.
    """

    in_keys: list[NestedKey]
    out_keys: list[NestedKey]

    def _wire(
        self,
        who: str,
        reads: Sequence[NestedKey],
        writes: Sequence[NestedKey],
        in_keys: Sequence[NestedKey] | None = None,
        out_keys: Sequence[NestedKey] | None = None,
    ) -> None:
        """Set ``in_keys`` and ``out_keys``: ``reads`` and ``writes``, or what was given."""
        self._wired: tuple[str, tuple[NestedKey, ...], tuple[NestedKey, ...]]
        self._wired = (who, tuple(reads), tuple(writes))
        self.in_keys = checked_keys(who, "in_keys", in_keys, reads)
        written = checked_keys(who, "out_keys", out_keys, writes)
        apart(who, self.in_keys, written)
        self.out_keys = [*written, *self._accompanying(written)]

    def _accompanying(self, written: Sequence[NestedKey]) -> list[NestedKey]:
        """Entries that are written beside others and named after them."""
        return []

    def shown(self, batch: TensorDictBase) -> TensorDictBase:
        """Return a batch with the usual entries under the names that this module reads."""
        return renamed(batch, self._wired[1], self.in_keys)

    def set_keys(self, **keys: NestedKey) -> Self:
        """Name entries otherwise than they are named by default.

        Args:
            **keys: The last part of an entry's default key, such as ``pixels``, ``fps``, ``text``,
                ``reward``, ``valid`` or a score's name, to the key that it is to have.

        Returns:
            This module.

        Raises:
            TypeError: If a key is none.
            ValueError: If there is no such entry, or two would be one.

        Example:
            >>> from astrolabe_rewards import SharpnessVQ
            >>> SharpnessVQ().set_keys(pixels="clip", sharpness_vq="sharp").out_keys
            ['sharp']
        """
        who, reads, writes = self._wired
        places: dict[str, tuple[str, int]] = {}
        for what, defaults in (("in_keys", reads), ("out_keys", writes)):
            for index, key in enumerate(defaults):
                if places.setdefault(name_of(key), (what, index)) != (what, index):
                    places[name_of(key)] = ("", 0)
        new = {"in_keys": list(self.in_keys), "out_keys": list(self.out_keys)[: len(writes)]}
        for name, key in keys.items():
            if name not in places:
                raise ValueError(
                    f"{who}.set_keys: there is no entry {name!r}.{nearest(name, list(places))} "
                    f"Entries: {', '.join(places)}."
                )
            what, index = places[name]
            if not what:
                raise ValueError(
                    f"{who}.set_keys: {name!r} names several entries. Set in_keys or out_keys."
                )
            new[what][index] = _checked(who, name, key)
        written = distinct(who, "out_keys", new["out_keys"])
        apart(who, new["in_keys"], written)
        self.out_keys = [*written, *self._accompanying(written)]
        self.in_keys = new["in_keys"]
        return self


def _checked(who: str, what: str, key: Any) -> NestedKey:  # Any: what a user gave for a key
    parts = key if isinstance(key, tuple) else (key,)
    if not parts or not all(isinstance(part, str) and part for part in parts):
        raise TypeError(
            f"{who}: {what} holds {key!r}. A key is a text or a tuple of texts, such as "
            "('video', 'pixels')."
        )
    found: NestedKey = unravel_key(key)
    return found
