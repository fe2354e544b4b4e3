import pytest

from astrolabe_rollout.errors import PromptFileError
from astrolabe_rollout.prompt_files import read_rows
from astrolabe_rollout.prompts import read_prompts


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


CATS = ["a cat, asleep", "a dog"]
#: Every form, with what programs put around it: the mark, Windows line ends, capitals, an index.
WELL_FORMED = {
    "text": ("p.txt", "\ufeffa cat, asleep\r\n\r\n  a dog  "),
    "text of no ending": ("p", "a cat, asleep\na dog\n"),
    "text that was joined": ("p.txt", "\ufeffa cat, asleep\n\ufeffa dog\n"),
    "csv": ("p.CSV", '\ufeffid, Prompt \r\n1,"a cat, asleep"\r\n2,a dog\r\n\r\n'),
    "csv of pandas": ("p.csv", ',prompt\n0,"a cat, asleep"\n1,a dog\n'),
    "csv with commas at its ends": ("p.csv", 'prompt,,\n"a cat, asleep",,\na dog,,\n'),
    "csv with spaces after commas": ("p.csv", 'id, prompt\n1, "a cat, asleep"\n2, a dog\n'),
    "csv with a number after a space": ("p.csv", 'prompt,id\n"a cat, asleep", 1\na dog, 2\n'),
    "tsv": ("p.tsv", "prompt\tid\na cat, asleep\t 1 or 2\na dog\t2\n"),
    "json lines": ("p.JSONL", '\ufeff{"PROMPT": "a cat, asleep", "n": [1]}\r\n\n"a dog"\n'),
    "ndjson": ("p.ndjson", '{"prompt": "a cat, asleep"}\n{"prompt": " a dog\\n"}'),
    "array of objects": ("p.Json", '\ufeff[{"Prompt": "a cat, asleep"},\n {"prompt": "a dog"}]'),
    "array of texts": ("p.json", '["a cat, asleep", "a dog"]'),
}


@pytest.mark.parametrize(("name", "content"), WELL_FORMED.values(), ids=WELL_FORMED)
def test_every_form_gives_the_same_prompts(tmp_path, name, content):
    assert read_prompts(written(tmp_path, name, content)) == CATS


#: Unicode calls these line breaks; none of them ends a prompt.
NO_LINE_ENDS = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "{}\nlast"),
        ("p.csv", "prompt\n{}\nlast\n"),
        ("p.tsv", "prompt\n{}\nlast\n"),
        ("p.jsonl", '{{"prompt": "{}"}}\n"last"\n'),
        ("p.json", '["{}", "last"]'),
    ],
)
def test_only_line_ends_end_a_line(tmp_path, name, content):
    # Inside JSON, control characters are written as escapes.
    signs = NO_LINE_ENDS if "json" not in name else "a\u2028b\u2029c\x85d"
    path = written(tmp_path, name, content.format(signs))
    assert read_prompts(path) == [signs, "last"]


def test_quotation_marks_and_scripts_are_kept_as_they_are(tmp_path):
    script = 'a "big" cat wakes[5s] | it runs, fast[2.5s#]'
    table = 'prompt\n"a ""big"" cat wakes[5s] | it runs, fast[2.5s#]"\n'
    assert read_prompts(written(tmp_path, "p.csv", table)) == [script]
    assert read_prompts(written(tmp_path, "p.txt", f"{script}\n# b\n")) == [script, "# b"]


REFUSED = {
    "comma that is not quoted": ("p.csv", "prompt\na circle, on black\n", "line 2: it has 2 cells"),
    "row too short": ("p.csv", "id,prompt\n1,a cat\n2\n3,a dog\n", "line 3: it has 1 cells for 2"),
    "row too long": ("p.csv", "prompt,id\na cat, asleep,1\n", "line 2: it has 3 cells for 2"),
    "comma that hides in the next column": ("p.csv", "prompt,id\na cat, asleep\n", "was cut at a"),
    "comma that hides at the end": ("p.csv", "prompt,\na cat,asleep\n", "column without a name"),
    "empty cell": ("p.csv", "id,prompt\n1,\n", "line 2, column 'prompt': it is empty"),
    "cell of spaces": (
        "p.csv",
        "id,prompt\n1,\u00a0\u200b \n",
        "line 2, column 'prompt': it is em",
    ),
    "no column": ("p.csv", "id,text\n1,a cat\n", "line 2: there is no 'prompt' among 'id', 'text'"),
    "semicolons": ("p.csv", "id;prompt\n1;a cat\n", "separated by ';'"),
    "tabs in a csv": ("p.csv", "id\tprompt\n1\ta cat\n", r"separated by '\\t'"),
    "column twice": ("p.csv", "prompt,Prompt\na,b\n", "line 1: the column 'prompt' is there twice"),
    "quotation marks left open": ("p.csv", 'prompt\na\n"b\nc\n', "line 3: unexpected end of data"),
    "text after quotation marks": ("p.csv", 'prompt\n"a" b\n', "line 2: ',' expected after"),
    "line break in a cell": (
        "p.csv",
        'prompt\n"a\nb"\n',
        "line 2, column 'prompt': .*a line break",
    ),
    "place after a long cell": ("p.csv", 'n,prompt\n"a\nb",c\n1,\n', "line 4, column 'prompt'"),
    "huge cell": ("p.csv", f"prompt\n{'a' * 140_000}\n", "line 2: field larger than"),
    "head alone": ("p.csv", "prompt\n", "holds no prompt"),
    "null": ("p.jsonl", '"a"\n{"prompt": null}', "line 2, column 'prompt': it is null"),
    "list": ("p.jsonl", '{"prompt": ["a", "b"]}', "line 1, column 'prompt': it is a list"),
    "number": ("p.jsonl", '{"prompt": 17}', "line 1, column 'prompt': it is 17"),
    "true": ("p.jsonl", '{"prompt": true}', "line 1, column 'prompt': it is true"),
    "object": ("p.jsonl", '{"prompt": {"en": "a"}}', "line 1, column 'prompt': it is an object"),
    "empty text": ("p.jsonl", '\n{"prompt": ""}', "line 2, column 'prompt': it is empty"),
    "no name": ("p.jsonl", '{"text": "a"}', "line 1: there is no 'prompt' among 'text'"),
    "interactive script": ("p.jsonl", '{"prompts": ["a"]}', "no 'prompt' among 'prompts'"),
    "name twice": ("p.jsonl", '{"prompt": "a", "prompt": "b"}', "'prompt' is there twice"),
    "name in two cases": ("p.jsonl", '{"prompt": "a", "Prompt": "b"}', "'prompt' is there twice"),
    "line that is null": ("p.jsonl", "null", "line 1: it is null, not an object or a text"),
    "array in json lines": ("p.jsonl", '[{"prompt": "a"}]', "line 1: it is a list, not an object"),
    "object over several lines": ("p.jsonl", '{\n"prompt": "a"}', "line 1: it is no JSON"),
    "line break in json": ("p.jsonl", '"a\\nb"', "line 1, column 'prompt': it has a line break"),
    "zero in json": ("p.jsonl", r'"a\u0000b"', "what is no character"),
    "half a character": ("p.jsonl", r'"a\ud800b"', "what is no character"),
    "deep json": ("p.jsonl", "[" * 200_000, "line 1: it is no JSON"),
    "object in json": ("p.json", '{"prompt": "a"}', "it is an object, not an array"),
    "text in json": ("p.json", '"a"', "it is a text, not an array"),
    "lines in json": ("p.json", '{"prompt": "a"}\n{"prompt": "b"}', "is named .jsonl"),
    "null in json": ("p.json", '["a", null]', "entry 2: it is null"),
    "number in json": (
        "p.json",
        '[{"prompt": "a"}, {"prompt": 2}]',
        "entry 2, column 'prompt': .*2",
    ),
    "empty array": ("p.json", "[]", "holds no prompt"),
    "empty json": ("p.json", "", "holds no prompt"),
    "json in a text": ("p.txt", '\n{"Prompt": "a"}\n', "line 2: it is JSON in a file of text"),
    "line without a sign": ("p.txt", "a\n\x1a\n", "line 2, column 'prompt': it is empty"),
    "ending that is not read": ("p.YAML", "- a\n", "ends in .yaml, which is not read"),
    "old line ends": ("p.txt", "a cat\rb\n", "carriage return in line 1 that ends no line"),
    "old line ends in a table": ("p.csv", "prompt\n1\r2\r\n", "carriage return in line 2 that"),
    "zero bytes": ("p.csv", "prompt\na\0b\n", "byte 2 of line 2 is 0x00"),
}


@pytest.mark.parametrize(("name", "content", "words"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_with_its_place(tmp_path, name, content, words):
    with pytest.raises(PromptFileError, match=words) as error:
        read_prompts(written(tmp_path, name, content))
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_rows_keep_every_column_under_its_name_without_case(tmp_path):
    rows = read_rows(written(tmp_path, "p.csv", "Path,PROMPT\na.mp4,\n"))
    assert [(row.place, row.values) for row in rows] == [
        ("line 2", {"path": "a.mp4", "prompt": ""})
    ]
    assert rows[0].text("path") == "a.mp4"
    assert rows[0].text(empty=True) == ""
