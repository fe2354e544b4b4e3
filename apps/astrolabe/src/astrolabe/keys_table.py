"""The contract between the packages as one table, made from their ``keys.py``."""

from astrolabe_eval import keys as eval_keys
from astrolabe_objectives import keys as objectives_keys
from astrolabe_rewards import keys as rewards_keys
from astrolabe_rollout import keys as rollout_keys

START, END = "<!-- keys -->", "<!-- /keys -->"

Key = str | tuple[str, ...]

#: In the order in which a batch meets them.
PACKAGES: dict[str, tuple[dict[Key, str], dict[Key, str]]] = {
    name: (dict(module.READS), dict(module.WRITES))
    for name, module in (
        ("rollout", rollout_keys),
        ("rewards", rewards_keys),
        ("objectives", objectives_keys),
        ("eval", eval_keys),
    )
}
_SEED = objectives_keys.NOISE_SEED
#: What the training loop itself writes.
PACKAGES["app"] = ({}, {_SEED: objectives_keys.READS[_SEED]})


def table() -> str:
    """Return a Markdown table: key, meaning, which packages write it, which read it."""
    texts: dict[Key, str] = {}
    for reads, writes in PACKAGES.values():
        for key, text in {**writes, **reads}.items():
            texts.setdefault(key, text)
    lines = ["| key | meaning | written by | read by |", "| --- | --- | --- | --- |"]
    for key, text in texts.items():
        writers = [name for name, (_, writes) in PACKAGES.items() if key in writes]
        readers = [name for name, (reads, _) in PACKAGES.items() if key in reads]
        cells = f"`{_show(key)}`", f"`{text}`", ", ".join(writers), ", ".join(readers)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def put_table(document: str) -> str:
    """Return a Markdown document with the present table between its two marks.

    Raises:
        ValueError: If the marks are missing.
    """
    before, start, rest = document.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"the document has no {START} followed by {END}. Add both marks.")
    return f"{before}{START}\n{table()}{END}{after}"


def _show(key: Key) -> str:
    return key if isinstance(key, str) else "(" + ", ".join(f'"{part}"' for part in key) + ")"
