r"""Files of prompts, read one way: text, CSV, TSV, JSON and JSON Lines.

The ending of the name says which, in any case. What does not fit is refused with its place: a cell
that is guessed wrong is trained on for days. Lines end in ``\n`` or ``\r\n``; whatever else Unicode
calls a line break (U+2028, U+0085, form feeds) is part of a prompt.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from astrolabe_rollout.errors import PromptFileError, some
from astrolabe_rollout.input_files import check_depth, read_bytes

#: The column of a table that holds what to show.
PROMPT: Final = "prompt"
#: What an object of an interactive script calls its prompts.
SCRIPT: Final = "prompts"

_SEPARATORS: Final = {".csv": ",", ".tsv": "\t"}
_JSON_LINES: Final = (".jsonl", ".ndjson")
_READ: Final = (".txt", *_SEPARATORS, *_JSON_LINES, ".json")
#: Endings of tables and lists that would otherwise be taken for a text with a prompt on each line.
_UNREAD: Final = (
    *(".yaml", ".yml", ".toml", ".xml", ".html", ".json5", ".jsonc", ".tab", ".psv", ".ini"),
    *(".parquet", ".arrow", ".feather", ".pkl", ".npy", ".npz", ".xlsx", ".xls", ".ods", ".db"),
    *(".gz", ".bz2", ".xz", ".zst", ".zip", ".tar"),
)
#: Longest first: the mark of UTF-32 begins with that of UTF-16.
_OTHER_MARKS: Final = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


@dataclass(frozen=True)
class Row:
    """One entry of a file.

    Attributes:
        path: The file.
        place: Where in it: ``line 3``, or ``entry 2`` of a JSON array.
        values: Cells by the name of their column, in lower case; a line of text is one ``prompt``.
    """

    path: Path
    place: str
    values: dict[str, object]

    def text(self, column: str = PROMPT, *, empty: bool = False) -> str:
        """Return a cell without white space at its ends.

        Args:
            column: Its name, in lower case.
            empty: Whether it may be empty.

        Raises:
            PromptFileError: If it is missing, no text, empty, or not one line of text.
        """
        if column not in self.values:
            raise self._missing(column)
        value = self.values[column]
        if not isinstance(value, str):
            raise self.error(
                f"it is {_kind(value)}, not a text. Write one in quotes, or take the entry out.",
                column,
            )
        value = value.strip()
        if not empty and not any(sign.isprintable() and not sign.isspace() for sign in value):
            raise self.error("it is empty. Write what to show, or take the entry out.", column)
        if "\n" in value or "\r" in value:
            raise self.error("it has a line break. Put a space in its place.", column)
        if "\0" in value or any("\ud800" <= sign <= "\udfff" for sign in value):
            raise self.error("it holds what is no character. Write it again.", column)
        return value

    def error(self, problem: str, column: str | None = None) -> PromptFileError:
        """Make an error that says where it is."""
        where = "" if column is None else f", column {column!r}"
        return PromptFileError(f"{str(self.path)!r}, {self.place}{where}: {problem}")

    def _missing(self, column: str) -> PromptFileError:
        names = _shown([repr(name) for name in self.values])
        split = next((mark for mark in (";", "\t") if mark in "".join(self.values)), None)
        hint = f" Its cells seem to be separated by {split!r}, not by commas." if split else ""
        return self.error(
            f"there is no {column!r} among {names or 'its columns'}.{hint} "
            "The first line of a table names its columns; an object names its entries."
        )


def read_rows(path: str | Path) -> list[Row]:
    """Read a file of prompts.

    Args:
        path: ``.csv`` or ``.tsv`` whose first line names the columns, ``.jsonl`` (``.ndjson``) or
            ``.json`` with an array, of objects or of texts; any other ending: text in UTF-8 with
            one prompt a line, blank lines skipped. A byte order mark is dropped, and columns that
            nobody asks for are left alone.

    Returns:
        Its entries in order, never none.

    Raises:
        PromptFileError: If it cannot be read, or an entry has another form; with file and line.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending in _UNREAD:
        raise PromptFileError(
            f"{str(path)!r} ends in {ending}, which is not read. "
            f"Save the prompts as one of {', '.join(_READ)}."
        )
    text = read_text(path)
    if ending in _SEPARATORS:
        rows = list(_table(path, text, _SEPARATORS[ending]))
    elif ending in _JSON_LINES:
        rows = list(_json_lines(path, text))
    elif ending == ".json":
        rows = list(_json_array(path, text))
    else:
        rows = list(_lines(path, text))
    if not rows:
        raise PromptFileError(
            f"the prompt file {str(path)!r} holds no prompt. "
            "Write one a line, or one in each row under the names of the columns."
        )
    return rows


def read_text(path: Path) -> str:
    r"""Read UTF-8 text in which only ``\n`` and ``\r\n`` end a line.

    Raises:
        PromptFileError: If the file is missing, unreadable, of another encoding, or has a carriage
            return that ends no line.
    """
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        raise PromptFileError(
            f"there is no prompt file {str(path)!r}. Create it with one prompt per line."
        ) from None
    except IsADirectoryError:
        raise PromptFileError(
            f"{str(path)!r} is a directory, not a prompt file. Name one file in it."
        ) from None
    except OSError as error:
        raise PromptFileError(
            f"the prompt file {str(path)!r} cannot be read ({error.strerror}). "
            "Name a file that you may read."
        ) from error
    for mark, encoding in _OTHER_MARKS.items():
        if data.startswith(mark):
            raise PromptFileError(
                f"the prompt file {str(path)!r} is {encoding}, not UTF-8. "
                f"Convert it: `iconv -f {encoding} -t UTF-8 OLD > NEW`."
            )
    # Files that were joined have a byte order mark at the start of each part.
    text = _decode(data, path).removeprefix("\ufeff").replace("\n\ufeff", "\n")
    alone = text.replace("\r\n", "\n\n").find("\r")
    if alone >= 0:
        raise PromptFileError(
            f"the prompt file {str(path)!r} has a carriage return in line "
            f"{text.count(chr(10), 0, alone) + 1} that ends no line. Where it should end one: "
            r"`tr '\r' '\n' < OLD > NEW`; else put a space in its place."
        )
    return text


def _decode(data: bytes, path: Path) -> str:
    """Decode UTF-8, naming the place of the first byte that is not."""
    try:
        text = data.decode("utf-8")
        offset = text.find("\0")  # UTF-16 of plain English is valid UTF-8 full of zeros
        start = len(text[:offset].encode()) if offset >= 0 else None
    except UnicodeDecodeError as error:
        start = error.start
    if start is None:
        return text
    line, column = data.count(b"\n", 0, start) + 1, start - data.rfind(b"\n", 0, start)
    raise PromptFileError(
        f"the prompt file {str(path)!r} is not UTF-8 text: byte {column} of line {line} is "
        f"0x{data[start]:02x}. Save it as UTF-8, for example with "
        "`iconv -f LATIN1 -t UTF-8 OLD > NEW` (UTF-16 for files of some Windows programs)."
    )


def _lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            row = Row(path, f"line {number}", {PROMPT: line})
            if _is_json_entry(line):
                raise row.error("it is JSON in a file of text. Name the file .jsonl.")
            yield row


def _is_json_entry(line: str) -> bool:
    try:
        entry = json.loads(line) if line.lstrip().startswith("{") else None
    except (ValueError, RecursionError):
        return False
    return isinstance(entry, dict) and bool({PROMPT, SCRIPT} & {name.lower() for name in entry})


def _table(path: Path, text: str, separator: str) -> Iterator[Row]:
    """Rows of a table; each must have a cell for each column, no more and no fewer."""
    spaced = f"{separator} " in text.partition("\n")[0]
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=spaced
    )
    names: list[str] = []
    while True:
        place = f"line {reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise Row(path, place, {}).error(
                f"{error}. Put a cell with commas or quotation marks into quotation marks, and "
                "double those inside it."
            ) from None
        if cells and not names:
            names = _columns(Row(path, place, {}), cells)
        elif cells:
            yield _row(Row(path, place, {}), names, cells, spaced or separator == "\t")


def _columns(row: Row, cells: Iterable[str]) -> list[str]:
    """Names of columns without case."""
    names = [cell.strip().lower() for cell in cells]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise row.error(f"the column {twice!r} is there twice. Remove or rename one.")
    return names


def _row(row: Row, names: list[str], cells: list[str], spaced: bool) -> Row:
    advice = "Put a prompt that has commas into quotation marks."
    if len(cells) != len(names):
        raise row.error(
            f"it has {len(cells)} cells for {len(names)} columns ({_shown(names)}). {advice}"
        )
    for place, (name, cell) in enumerate(zip(names, cells, strict=True)):
        # The first column may be without a name: pandas writes its index so.
        if place and not name and cell.strip():
            raise row.error(f"{cell.strip()[:40]!r} stands in a column without a name. {advice}")
        follows_prompt = place > 0 and names[place - 1] == PROMPT
        if follows_prompt and not spaced and cell.startswith(" ") and not _is_number(cell):
            raise row.error(
                f"{cell[:40]!r} after the prompt begins with a space, like the rest of a prompt "
                f"that was cut at a comma. {advice} Else remove the space."
            )
    return Row(row.path, row.place, dict(zip(names, cells, strict=True)))


def _json_lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            row = Row(path, f"line {number}", {})
            yield _entry(row, _parse(row, line, "Write one JSON object a line, each on one line."))


def _json_array(path: Path, text: str) -> Iterator[Row]:
    if not text.strip():
        return
    whole = Row(path, "as a whole", {})
    content = _parse(whole, text, "A file with one object a line is named .jsonl.")
    if not isinstance(content, list) or isinstance(content, _Object):
        raise whole.error(
            f'it is {_kind(content)}, not an array. Write [{{"prompt": "..."}}, ...], or texts.'
        )
    for number, value in enumerate(content, start=1):
        yield _entry(Row(path, f"entry {number}", {}), value)


class _Object(list[tuple[str, object]]):
    """A JSON object as its pairs, so that a name that occurs twice is seen."""


def _parse(row: Row, text: str, advice: str) -> object:
    try:
        value = json.loads(text, object_pairs_hook=_Object)
        check_depth(value)
    except (ValueError, RecursionError) as error:
        raise row.error(f"it is no JSON ({error}). {advice}") from None
    return value


def _entry(row: Row, value: object) -> Row:
    """A text, or an object by its names without case."""
    if isinstance(value, str):
        return Row(row.path, row.place, {PROMPT: value})
    if not isinstance(value, _Object):
        raise row.error(
            f'it is {_kind(value)}, not an object or a text. Write {{"prompt": "..."}}.'
        )
    names = [name.strip().lower() for name, _ in value]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise row.error(f"{twice!r} is there twice. Remove one.")
    return Row(row.path, row.place, dict(zip(names, (cell for _, cell in value), strict=True)))


def _kind(value: object) -> str:
    """What a JSON value is, in words."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, str):
        return "a text"
    return "an object" if isinstance(value, _Object) else "a list"


def _shown(names: Iterable[str]) -> str:
    """Names in a message, which a damaged file can make very long."""
    return some([name if len(name) <= 40 else f"{name[:40]}..." for name in names])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
