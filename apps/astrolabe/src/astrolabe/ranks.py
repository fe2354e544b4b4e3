"""How ranks are named where a person reads of them."""

from collections.abc import Iterable, Mapping
from itertools import groupby


def name_ranks(ranks: Iterable[int]) -> str:
    """Name ranks, neighbours together.

    >>> name_ranks([7])
    'rank 7'
    >>> name_ranks([5, 0, 1, 2])
    'ranks 0-2, 5'
    """
    ordered = sorted(ranks)
    runs = [
        [rank for _, rank in run]
        for _, run in groupby(enumerate(ordered), key=lambda pair: pair[1] - pair[0])
    ]
    spans = [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
    return f"{'ranks' if len(ordered) > 1 else 'rank'} {', '.join(spans)}"


def tell_apart(texts: Mapping[int, str]) -> str:
    """Say which ranks have which text.

    >>> tell_apart({0: "a", 1: "a", 2: "b"})
    'ranks 0-1: a; rank 2: b'
    """
    holders: dict[str, list[int]] = {}
    for rank, text in sorted(texts.items()):
        holders.setdefault(text, []).append(rank)
    return "; ".join(f"{name_ranks(ranks)}: {text}" for text, ranks in holders.items())
