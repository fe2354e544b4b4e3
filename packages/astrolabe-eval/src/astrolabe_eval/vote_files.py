"""The two files of a vote: what the page saves, and the key that says which side was which."""

from pathlib import Path
from typing import Final, Literal, NamedTuple, TypedDict, cast

from astrolabe_eval.errors import DamageError, VoteError
from astrolabe_eval.sealed import read_sealed

Side = Literal["left", "right"]
Choice = Literal["left", "tie", "right"]

VOTES_FORMAT: Final = "astrolabe votes 1"
KEY_FORMAT: Final = "astrolabe votes key 1"


class Pair(TypedDict):
    """One question of the page: the sample, and on which side the second model is."""

    sample: int
    prompt: str
    seed: int
    after: Side


class Key(TypedDict):
    """The content of the key; ``page`` is the name that page and votes carry too."""

    format: str
    page: str
    labels: list[str]
    suite: str
    pairs: dict[str, Pair]


class Ballot(NamedTuple):
    """What one rater chose, by the name of the pair."""

    rater: str
    votes: dict[str, Choice]


def read_key(path: Path) -> Key:
    """Read the key of a page.

    Raises:
        VoteError: If it is missing, broken, or no key.
    """
    content = _read_json(path, KEY_FORMAT, "votes-key.json, which was written beside the page")
    pairs = content.get("pairs")
    labels = content.get("labels")
    if not (
        content.keys() == Key.__annotations__.keys()
        and isinstance(content["page"], str)
        and isinstance(labels, list)
        and [type(label) for label in labels] == [str, str]
        and isinstance(pairs, dict)
        and all(
            isinstance(pair, dict)
            and isinstance(pair.get("prompt"), str)
            and pair.get("after") in ("left", "right")
            for pair in pairs.values()
        )
    ):
        raise VoteError(f"{str(path)!r} has been changed and is no key any more. Copy it again.")
    return cast(Key, content)


def read_ballot(path: Path, key: Key) -> Ballot:
    """Read what a page saved for one rater.

    Raises:
        VoteError: If it is missing, broken, empty, or not of the page that ``key`` belongs to.
    """
    content = _read_json(path, VOTES_FORMAT, "a file that the page saved")
    if content.get("page") != key["page"]:
        raise VoteError(
            f"{str(path)!r} holds votes of page {content.get('page')!r}, the key is of "
            f"{key['page']!r}. Give the key that was written with that page."
        )
    rater, votes = content.get("rater"), content.get("votes")
    if not isinstance(rater, str) or not rater.strip():
        raise VoteError(f"{str(path)!r} names no rater. Write a name under 'rater'.")
    if not isinstance(votes, dict) or not votes:
        raise VoteError(f"{str(path)!r} holds no votes. Leave it out.")
    for name, choice in votes.items():
        if name not in key["pairs"]:
            raise VoteError(f"{str(path)!r} has a vote on {name!r}, which the page does not show.")
        if choice not in ("left", "tie", "right"):
            raise VoteError(
                f"{str(path)!r} says {choice!r} for {name!r}. Votes are 'left', 'tie' and 'right'."
            )
    return Ballot(rater.strip(), votes)


def _read_json(path: Path, expected: str, wanted: str) -> dict[str, object]:
    try:
        content, _ = read_sealed(path)  # the key is sealed, what browsers save is not
    except OSError as error:
        raise VoteError(
            f"{str(path)!r} cannot be read ({error.strerror}). Give {wanted}."
        ) from error
    except DamageError as error:
        raise VoteError(f"{str(path)!r} {error}. Give {wanted}.") from error
    found = content.get("format")
    if found != expected:
        raise VoteError(f"{str(path)!r} has format {found!r}, not {expected!r}. Give {wanted}.")
    return content
