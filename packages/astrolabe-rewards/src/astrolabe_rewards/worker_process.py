"""The process of a `ScoringWorker`: makes one scorer and scores what comes in.

``python -m astrolabe_rewards.worker_process`` is started by the worker and not by hand: standard
input is a socket. The process ends when the other end of it closes, that is, with the worker.
"""

import inspect
import json
import mmap
import os
import queue
import socket
import sys
import threading
import traceback
from dataclasses import asdict
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from torch import nn

from astrolabe_rewards.channel import ANSWER, ERROR, HELLO, receive_memory, send_reply
from astrolabe_rewards.reward import Reward
from astrolabe_rewards.scorer import Description, Scorer, load, scores_of
from astrolabe_rewards.wire import SCHEMA, Answer, Request


def main() -> None:
    """Serve one worker until it is gone."""
    channel = socket.socket(fileno=os.dup(0))
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)  # a library that asks the user something gets no answer
    arrived: queue.SimpleQueue[mmap.mmap] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(channel, arrived), daemon=True).start()
    setup = json.loads(arrived.get()[:])
    try:
        scorer = build(setup)
        description = Description.of(scorer, setup["name"])
    except Exception as error:
        send_reply(channel, ERROR, _told(error))
        return
    hello = {"schema": SCHEMA, "reward": asdict(description)}
    send_reply(channel, HELLO, json.dumps(hello).encode())
    while True:
        request = Request.unpack(arrived.get())
        try:
            scores = scores_of(scorer, setup["name"], request)
        except Exception as error:
            send_reply(channel, ERROR, _told(error))
        else:
            answer = Answer(scores, [None] * len(request), description.fingerprint)
            send_reply(channel, ANSWER, answer.pack())


def build(setup: dict[str, Any]) -> Scorer:  # Any: JSON
    """Make the scorer: import ``target``, call it with ``options``, move it to ``device``."""
    sys.path.extend(path for path in setup["path"] if path not in sys.path)
    made = _find(setup["target"])
    if not callable(made):
        raise TypeError(f"{setup['target']} is a {type(made).__name__}, which makes no scorer.")
    _check_call(setup["target"], made, setup["options"])
    scorer = made(**setup["options"])
    if not callable(scorer):
        raise TypeError(
            f"{setup['target']} made a {type(scorer).__name__}, which is no scorer. Return a "
            "Reward, or a callable that writes its score into a batch."
        )
    if not isinstance(scorer, Reward) and not setup["name"]:
        raise TypeError(
            f"{setup['target']} makes a callable without a name. Say with the option 'name' under "
            "which it writes ('score', name)."
        )
    if setup["device"] is not None:
        if not isinstance(scorer, nn.Module):
            raise TypeError(f"{setup['target']} makes no module: leave out the option 'device'.")
        scorer.to(setup["device"])
    load(scorer)
    result: Scorer = scorer
    return result


def _find(target: str) -> Any:  # Any: whatever a module holds
    """Import what a worker is to call."""
    module, _, attribute = target.partition(":")
    try:
        found: Any = import_module(module)  # Any: a module, then what is in it
    # Whatever the code of a module may raise when it is run, its own exit included.
    except (Exception, SystemExit) as error:
        gone = error.name if isinstance(error, ModuleNotFoundError) else None
        absent = gone is not None and f"{module}.".startswith(f"{gone}.")
        said = f"there is no module {gone!r}" if absent else f"importing it raised {error!r}"
        raise ValueError(
            f"the target {target!r} cannot be imported by {sys.executable}: {said}. Correct the "
            "name, or install there what holds it (options 'python' and 'requirements')."
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            close = get_close_matches(part, dir(found), n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"the target {target!r} cannot be found: {module} is there and has no "
                f"{attribute!r}.{hint} Correct the name."
            )
        found = getattr(found, part)
    return found


def _check_call(target: str, made: Any, options: dict[str, Any]) -> None:  # Any: from elsewhere
    """Refuse a target that cannot be called with its options, such as a bare scoring function."""
    try:
        signature = inspect.signature(made)
    except ValueError:  # something built in says nothing of itself
        return
    try:
        signature.bind(**options)
    except TypeError as error:
        scores = inspect.isfunction(made) and not options
        way_out = (
            f"If it is what scores, give a function that returns it: def make(): return "
            f"{made.__name__}"
            if scores
            else "Mend the options"
        )
        raise TypeError(
            f"{target}{signature} cannot be called with the options {options} ({error}); a target "
            f"makes the scorer. {way_out}."
        ) from None


def _listen(channel: socket.socket, arrived: "queue.SimpleQueue[mmap.mmap]") -> None:
    """Take in what comes; end the process, even in the middle of a batch, when nothing can come."""
    while True:
        try:
            arrived.put(receive_memory(channel))
        except (EOFError, OSError):
            os._exit(0)


def _told(error: Exception) -> bytes:
    """An error in JSON: the names of its classes, what it says, and where it was."""
    message = str(error.args[0]) if len(error.args) == 1 else str(error)
    kinds = [kind.__name__ for kind in type(error).__mro__]
    where = "".join(traceback.format_exception(error))
    return json.dumps({"kinds": kinds, "message": message, "where": where}).encode()


if __name__ == "__main__":
    main()
