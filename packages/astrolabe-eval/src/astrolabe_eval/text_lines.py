r"""Lists of prompts as text: one a line, where only ``\n`` and ``\r\n`` end a line."""

from pathlib import Path
from typing import Final

from astrolabe_eval.errors import SuiteError
from astrolabe_eval.input_files import read_bytes

#: Endings that say that a file is no plain text; its first line would be taken for a prompt.
_TABLES: Final = (
    *(".csv", ".tsv", ".tab", ".psv", ".json", ".jsonl", ".ndjson", ".json5", ".yaml", ".yml"),
    *(".toml", ".xml", ".html", ".parquet", ".arrow", ".xlsx", ".xls", ".gz", ".zip", ".zst"),
)
_MARKS: Final = {b"\xff\xfe": "UTF-16 or UTF-32", b"\xfe\xff": "UTF-16", b"\0\0\xfe\xff": "UTF-32"}


def read_lines(path: str | Path) -> list[str]:
    """Read every line of a text without white space at its ends, blank ones too.

    Raises:
        SuiteError: If the file is missing, cannot be read, is not UTF-8 text, has a carriage return
            that ends no line, or is a table by its name.
    """
    path = Path(path)
    if path.suffix.lower() in _TABLES:
        raise SuiteError(
            f"{str(path)!r} ends in {path.suffix}, but only text with one prompt on a line is read "
            "here. Make a Suite of its prompts, or save them as .txt."
        )
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        raise SuiteError(
            f"There is no prompt file {str(path)!r}. Give a text file with one prompt on a line."
        ) from None
    except OSError as error:
        raise SuiteError(
            f"The prompt file {str(path)!r} cannot be read ({error.strerror}). "
            "Name a file that you may read."
        ) from error
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            raise SuiteError(f"{str(path)!r} is {encoding}, not UTF-8. Save the file as UTF-8.")
    lines = (_decode(line, number, path) for number, line in enumerate(data.split(b"\n"), start=1))
    return [line.removeprefix("\ufeff").strip() for line in lines]


def _decode(line: bytes, number: int, path: Path) -> str:
    try:
        text = line.removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError as error:
        raise SuiteError(
            f"Line {number} of {str(path)!r} is not UTF-8 (byte {error.start}). "
            "Save the file as UTF-8."
        ) from error
    if "\0" in text or "\r" in text:
        what = "a carriage return that ends no line" if "\r" in text else "a zero byte"
        raise SuiteError(
            f"Line {number} of {str(path)!r} has {what}. Save the file as UTF-8 text whose lines "
            r"end in \n or \r\n."
        )
    return text
