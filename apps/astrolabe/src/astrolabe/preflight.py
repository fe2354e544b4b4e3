"""What a run needs of this machine, found before anything is started: files, weights, libraries.

Every phase counts: training, the report at its end, what is kept. A package says what its parts
need in a module ``needs`` with a function ``lacks`` (`astrolabe_rollout.needs` and
`astrolabe_rewards.needs` do); what does not say so is not looked for. Light on purpose: neither
torch nor a model is imported, and nothing is left behind or downloaded.
"""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from threading import Thread
from typing import Any, Final, TypeAlias

from huggingface_hub import constants

from astrolabe.config import Part, RewardTerm, Run
from astrolabe.errors import MissingError
from astrolabe.registry import Kind, locate, looks_like_path, names
from astrolabe.trackers import tracker_lacks
from astrolabe_rewards.needs import SERVE
from astrolabe_rollout.hub import lacking, offered

#: Tells what a part, by its ``module:attribute``, lacks with these options.
Declaration: TypeAlias = Callable[[str, Mapping[str, Any]], Sequence[Mapping[str, Any]]]
#: A repository of the hub, and the patterns of what is wanted of it.
Wish: TypeAlias = tuple[str, tuple[str, ...]]
#: Seconds that the hub has to answer.
PATIENCE: Final = 5.0


@dataclass(frozen=True)
class Lack:
    """One thing that is missing.

    Attributes:
        what: Such as "weights of hpsv3".
        source: Where it was looked for.
        why: It counts as missing.
        settings: That name it, with the values to give them then; without one if there is none.
        fetch: The command that fetches it; empty if there is none.
        size: Bytes of it; 0: not known.
        hub: Repository of the Hugging Face hub that has it; empty: none.
        files: Patterns of what is wanted of the repository.
    """

    what: str
    source: str
    why: str
    settings: tuple[tuple[str, str], ...] = ()
    fetch: str = ""
    size: int = 0
    hub: str = ""
    files: tuple[str, ...] = ()

    def __str__(self) -> str:
        """What is missing and what to do, in two sentences."""
        size = f" ({_size(self.size)})" if self.size else ""
        text = f"{self.what} {self.source!r}{size}: {self.why}."
        places = [f"--set {name}={value}" for name, value in self.settings if value]
        if self.fetch and places:
            return f"{text} Get it: {self.fetch}; then {' '.join(places)}"
        if self.fetch or places:
            return f"{text} Do: {self.fetch or ' '.join(places)}"
        named = f" It is named by {', '.join(name for name, _ in self.settings)}."
        return text + (named if self.settings else "")


def check(run: Run, out: Path | None = None, *, training: bool = True) -> list[str]:
    """Find everything that any phase of a run will touch.

    Args:
        run: The settings.
        out: Folder of the run; None: not to be written.
        training: Whether it is trained, or only judged.

    Returns:
        What will be downloaded when the run is built, one line each.

    Raises:
        LookupError: If there is no part of a name.
        MissingError: Lists all that is missing.
    """
    judged = run.evaluation.at_end or not training
    trained = [*_started(run), *_trackers(run), *_folder(out)] if training else []
    needed = _merged([*_parts(run, judged), *_files(run, training, judged), *trained])
    missing, downloads = _ask_hub(needed)
    missing += _room(downloads)
    if missing:
        raise MissingError(told(missing))
    return [
        f"{one.source} ({_size(one.size) if one.size else 'size unknown'})" for one in downloads
    ]


def own_lacks(run: Run) -> list[Lack]:
    """Return what is absent of the files that only a person can provide: prompts and adapter.

    Raises:
        LookupError: If there is no packaged list of a name.
    """
    return [*_started(run), *_files(run, True, run.evaluation.at_end)]


def told(missing: Sequence[Lack]) -> str:
    """Return a message about all that is missing."""
    if len(missing) == 1:
        one = missing[0]
        verb = "are" if one.what.split(" ")[0] in ("weights", "config", "text") else "is"
        return f"there {verb} no {one}"
    lines = [f"{number:>4}. {one}" for number, one in enumerate(missing, start=1)]
    total = sum(one.size for one in missing)
    size = f", {_size(total)} as far as sizes are known" if total else ""
    return "\n".join(
        [f"{len(missing)} things are missing that this run needs{size}; nothing was begun:", *lines]
    )


def part_lacks(kind: Kind, name: str, options: Mapping[str, Any], where: str) -> list[Lack]:
    """Return what a part needs and does not find; nothing if its package does not say.

    Raises:
        LookupError: If there is no part of this name.
    """
    target = locate(kind, name, where)
    declared = declaration(target)
    found = declared(target, options) if declared is not None else []
    return [_lack(one, f"{where}.options", options) for one in found]


def declaration(target: str) -> Declaration | None:
    """Return what tells of the needs of a package's parts; None if it does not say.

    Args:
        target: ``module:attribute`` of a part.
    """
    package = target.partition(":")[0].partition(".")[0]
    try:
        declared: Declaration | None = getattr(import_module(f"{package}.needs"), "lacks", None)
    except ImportError:
        return None
    return declared


def _parts(run: Run, judged: bool) -> Iterator[Lack]:
    yield from part_lacks("models", run.model.name, run.model.options, "model")
    for name, term in run.rewards.items():
        yield from _term(name, term, "rewards")
    judges = run.evaluation.judges if judged else {}
    for name, term in judges.items():
        yield from _term(name, term, "evaluation.judges")


def _started(run: Run) -> Iterator[Lack]:
    locate("objectives", run.objective.name, "objective")
    if run.lora.start and (found := lacking(run.lora.start, "LoRA", "start")):
        yield _lack(found, "lora", {})


def _term(name: str, term: RewardTerm, table: str) -> list[Lack]:
    part = Part(term.name or name, term.options)
    return part_lacks("rewards", part.name, part.options, f"{table}.{name}")


def _files(run: Run, training: bool, judged: bool) -> Iterator[Lack]:
    wanted = {"rollout.prompts": run.rollout.prompts} if training else {}
    if judged:
        wanted["evaluation.prompts"] = run.evaluation.prompts
    for setting, source in wanted.items():
        if source in names("suites") or Path(source).is_file():
            continue
        if not looks_like_path(source):
            locate("suites", source, setting)
            continue
        why = "no such file is here; it is yours to write, one prompt on each line"
        yield Lack("prompt file", source, why, ((setting, "FILE"),))


def _folder(out: Path | None) -> Iterator[Lack]:
    """A folder that cannot be written into."""
    if out is None:
        return
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir() or not _writable(there):
        why = f"{str(there)!r} is {'not writable' if there.is_dir() else 'a file'}"
        yield Lack("folder to write into", str(out), f"{why}. Choose another --out")


def _writable(folder: Path) -> bool:
    """Whether files can be made there; permissions alone do not tell, root has all of them."""
    try:
        with TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _trackers(run: Run) -> Iterator[Lack]:
    """What the trackers of a run need and do not find."""
    for name in run.logging.backends:
        options = run.logging.tracker_options.get(name, {})
        for found in tracker_lacks(name, options):
            yield _lack(found, f"logging.tracker_options.{name}", options)


def _lack(found: Mapping[str, Any], table: str, options: Mapping[str, Any]) -> Lack:
    """What a package says is missing, in the words of the settings."""
    option, hub = str(found.get("option", "")), str(found.get("hub", ""))
    # Weights of several repositories in one folder would be taken for one model.
    place = f"weights/{hub.rpartition('/')[2]}" if hub else "DIR"
    value = str(found.get("value", "")).replace("DIR", place)
    why = str(found["why"])
    if option and option not in options and (near := get_close_matches(option, options, n=1)):
        why += f" (there is no option {near[0]!r}, which {table} has: did you mean {option!r}?)"
    return Lack(
        what=str(found["what"]),
        source=str(found["source"]),
        why=why,
        settings=((f"{table}.{option}", value),) if option else (),
        fetch=_command(str(found.get("fetch", ""))).replace("DIR", place),
        size=int(found.get("bytes", 0)),
        hub=hub,
        files=tuple(found.get("files", ())),
    )


def _command(fetch: str) -> str:
    """What a package would call in Python, as a command."""
    return "astrolabe serve-rewards NAME" if fetch == SERVE else fetch


def _merged(lacks: Iterable[Lack]) -> list[Lack]:
    """Each thing once, with all settings that name it."""
    merged: dict[tuple[str, str, tuple[str, ...]], Lack] = {}
    for one in lacks:
        # What one command installs is one thing.
        key = ("", one.fetch, ()) if one.what == "library" else (one.source, one.why, one.files)
        known = merged.get(key)
        if known is None:
            merged[key] = one
            continue
        what = known.what if one.what in known.what else f"{known.what} and {one.what}"
        source = known.source
        if one.what == "library" and one.source not in source.split(", "):
            source += f", {one.source}"
        settings = tuple(dict.fromkeys((*known.settings, *one.settings)))
        merged[key] = replace(known, what=what, source=source, settings=settings)
    return list(merged.values())


def _ask_hub(needed: Sequence[Lack]) -> tuple[list[Lack], list[Lack]]:
    """Part what is missing from what the hub gives when the run is built."""
    there = {(one.hub, one.files) for one in needed if one.hub}
    known = _answers(there)
    missing, downloads = [], []
    for one in needed:
        size, reason = known.get((one.hub, one.files), (0, ""))
        if one.hub and not reason:
            downloads.append(replace(one, size=size or one.size))
        else:
            missing.append(replace(one, why=", ".join(filter(None, (one.why, reason)))))
    return missing, downloads


def _answers(there: Iterable[Wish]) -> dict[Wish, tuple[int, str]]:
    """What the hub says of files of repositories: their bytes, and why they cannot be had."""
    silent = f"and {constants.ENDPOINT} does not answer within {PATIENCE:g} s"
    answers = dict.fromkeys(there, (0, silent))

    def ask(wish: Wish) -> None:
        answers[wish] = offered(*wish, PATIENCE)

    # Daemons, as looking up a name may take longer than any time limit of the client.
    threads = [Thread(target=ask, args=(wish,), daemon=True) for wish in answers]
    deadline = time.monotonic() + PATIENCE
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
    return dict(answers)


def _room(downloads: Sequence[Lack]) -> list[Lack]:
    """Disk space that the hub's cache lacks for what is to be downloaded."""
    cache = Path(constants.HF_HUB_CACHE)
    needed = sum(one.size for one in downloads)
    there = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free >= needed:
        return []
    why = f"{_size(free)} are free, and {_size(needed)} are to be downloaded"
    return [Lack("space for weights in", str(cache), f"{why}. Set HF_HOME to a larger disk")]


def _size(count: int) -> str:
    """Write bytes for a person.

    >>> _size(5_680_000_000)
    '5.7 GB'
    """
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 1000:.0f} kB"
