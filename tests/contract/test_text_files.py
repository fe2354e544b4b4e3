"""Rollout and eval each read lists of text, without knowing each other: they must agree."""

import pytest

from astrolabe_eval import SuiteError, load_suite
from astrolabe_rollout import PromptFileError, read_prompts

TEXTS = {
    "plain": b"a cat\n\n a dog \r\nlast",
    "mark": b"\xef\xbb\xbfa cat\n\xef\xbb\xbfa dog\n",
    "breaks of Unicode": "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\nlast".encode(),
    "scripts": b"a cat wakes[5s] | it runs[2s#]\n# no comment\n",
    "old line ends": b"a\rb\n",
    "doubled line ends": b"a\r\r\nb\r\r\n",
    "zero": b"a\0b\n",
    "latin": b"caf\xe9\n",
    "utf-16": "a cat".encode("utf-16"),
    "utf-16 without mark": "a cat".encode("utf-16-be"),
    "utf-32": "a cat".encode("utf-32"),
    "empty": b"",
    "blank": b" \n\t\r\n",
}


def outcome(read, path, error):
    try:
        return list(read(path))
    except error:
        return "refused"


@pytest.mark.parametrize("kind", TEXTS)
def test_both_readers_of_text_agree(tmp_path, kind):
    path = tmp_path / "list.txt"
    path.write_bytes(TEXTS[kind])
    mine = outcome(read_prompts, path, PromptFileError)
    assert mine == outcome(lambda path: load_suite(path).prompts, path, SuiteError)
    assert (mine == "refused") == (kind not in ("plain", "mark", "breaks of Unicode", "scripts"))


@pytest.mark.parametrize("ending", ["csv", "TSV", "json", "JSONL", "ndjson", "yaml"])
def test_a_suite_is_no_table(tmp_path, ending):
    path = tmp_path / f"list.{ending}"
    path.write_text("prompt\na cat\n")
    with pytest.raises(SuiteError, match="only text with one prompt on a line"):
        load_suite(path)
