"""Whether what a setting names is a part of its kind, seen from its class or its annotation.

An entry point says by its group what it makes. What is named as ``module:attribute`` says nothing,
and a setting that names a function is a call of that function: it is looked at before it is called.
"""

import inspect
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any, get_args, get_origin, get_type_hints

import astrolabe_rewards
import astrolabe_rollout

#: What makes a part of each kind, for the message.
WANTED = {
    "models": "a subclass of VideoModel, or a function annotated with -> VideoModel",
    "rewards": "a subclass of Reward, a class whose __call__ or forward is annotated to take a "
    "TensorDictBase, or a function annotated to return one of these, such as -> Reward or "
    "-> Callable[[TensorDictBase], TensorDictBase]",
    "objectives": "a class with the methods seed, noise and forward, or a function annotated to "
    "return one",
    "suites": "a function annotated with -> list[str]",
}


def is_of_kind(kind: str, maker: Any) -> bool:  # Any: whatever a setting names
    """Whether it is a class of the kind, or a function that says that it returns one."""
    while isinstance(maker, partial):
        maker = maker.func
    if isinstance(maker, type):
        return _is(kind, maker)
    return callable(maker) and _is(kind, _hints(maker).get("return"))


def _is(kind: str, made: Any) -> bool:  # Any: a class, or the annotation of one
    """Whether a class, or what an annotation means, is that of a part."""
    origin, arguments = get_origin(made), get_args(made)
    if kind == "suites":
        listed = isinstance(origin, type) and issubclass(origin, Iterable)
        return listed and set(arguments) <= {str, Ellipsis}
    if kind == "rewards" and origin is Callable:
        return isinstance(arguments[0], Collection) and any(map(_is_batch, arguments[0]))
    made = origin or made
    if not isinstance(made, type):
        return False
    if kind == "models":
        return issubclass(made, astrolabe_rollout.VideoModel)
    if kind == "objectives":
        return all(hasattr(made, name) for name in _OBJECTIVE)
    return issubclass(made, astrolabe_rewards.Reward) or _takes_batch(made)


_OBJECTIVE = ("seed", "noise", "forward")


def _takes_batch(made: type) -> bool:
    methods = (getattr(made, name, None) for name in ("forward", "__call__"))
    hints = (_hints(method) for method in methods if inspect.isfunction(method))
    return any(_is_batch(hint) for found in hints for hint in found.values())


def _is_batch(hint: Any) -> bool:  # Any: an annotation
    return isinstance(hint, type) and any(c.__name__ == "TensorDictBase" for c in hint.__mro__)


def _hints(maker: Any) -> dict[str, Any]:  # Any: a function, and what it is annotated with
    """Annotations of a function; none where they cannot be read."""
    try:
        return get_type_hints(maker)
    except (TypeError, NameError, AttributeError):
        return {}
