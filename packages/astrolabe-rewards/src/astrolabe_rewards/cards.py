"""What each reward is, as one table for a README; written from the classes, so it cannot be stale.

python -m astrolabe_rewards.cards packages/astrolabe-rewards/README.md
"""

import sys
from importlib.metadata import entry_points
from pathlib import Path

from astrolabe_rewards.reward import Reward

START, END = "<!-- rewards -->", "<!-- /rewards -->"


def offered() -> dict[str, type[Reward]]:
    """Return the rewards of this package by the names under which it offers them."""
    found = {}
    for entry in entry_points(group="astrolabe.rewards"):
        if entry.value.partition(".")[0] == "astrolabe_rewards":
            made = entry.load()
            if isinstance(made, type) and issubclass(made, Reward):
                found[entry.name] = made
    return dict(sorted(found.items()))


def table() -> str:
    """Return a Markdown table of the rewards that this package offers."""
    lines = [
        "| name | class | reads | measures | unit and range | licence | weights | memory |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, reward in offered().items():
        cells = (
            f"`{name}`",
            f"`{reward.__module__.removeprefix('astrolabe_rewards.')}.{reward.__name__}`",
            "video, prompt" if reward.needs_text else "video",
            reward.measures,
            reward.unit,
            reward.licence,
            reward.weights_from,
            reward.memory,
        )
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


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(put_table(file.read_text("utf-8")), "utf-8")
