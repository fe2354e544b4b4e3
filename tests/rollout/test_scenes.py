import pytest

from astrolabe_rollout.errors import PromptFileError
from astrolabe_rollout.geometry import Geometry
from astrolabe_rollout.scenes import Scene, parse_scenes, read_interactive

WAN = Geometry(480, 832)


def test_scenes_have_a_prompt_a_length_and_a_cut():
    assert parse_scenes(" a cat wakes [5s] | it runs[ 2.5 s # ] |it sleeps[#]| #3 ends") == [
        Scene("a cat wakes", 5.0),
        Scene("it runs", 2.5, cut=True),
        Scene("it sleeps", None, cut=True),
        Scene("#3 ends", None),  # only inside brackets is it a cut
    ]


def test_brackets_inside_a_prompt_belong_to_it():
    assert parse_scenes("a [red] cat[1s]") == [Scene("a [red] cat", 1.0)]


@pytest.mark.parametrize(
    ("seconds", "fps", "chunk", "chunks"),
    [(5, 16, 3, 6), (10.5, 16, 3, 14), (0.1, 16, 3, 1), (1, 16, 1, 4), (0.75, 16, 3, 1)],
)
def test_a_length_is_rounded_down_to_chunks(seconds, fps, chunk, chunks):
    geometry = Geometry(480, 832, chunk=chunk)
    assert Scene("a", seconds).chunks(geometry, fps, 99) == chunks
    assert Scene("a", None).chunks(geometry, fps, 99) == 99


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ("a cat[5x] | it runs", 7, "'5x' is no length"),
        ("a cat[5s] | | it runs", 12, "without a prompt"),
        ("a cat[5s] | [3s]", 12, "without a prompt"),
        ("a cat[0s]", 7, "longer than 0"),
        ("a cat[]x | b[-1s]", 14, "'-1s' is no length"),
        ("", 1, "without a prompt"),
    ],
)
def test_a_script_that_does_not_parse_is_marked(text, place, problem):
    with pytest.raises(ValueError, match=problem) as error:
        parse_scenes(text)
    assert f"character {place}:" in str(error.value)
    assert "\n" not in str(error.value)


def test_longlive_scripts_switch_at_given_frames(tmp_path):
    path = tmp_path / "scripts.jsonl"
    path.write_text('{"prompts": ["a", "b"]}\n\n{"prompts": ["c", "d"]}\n')
    assert read_interactive(path, [40]) == [[("a", 0), ("b", 40)], [("c", 0), ("d", 40)]]
    with pytest.raises(ValueError, match="line 1 has 2 prompts, but there are 2 switch frames"):
        read_interactive(path, [40, 80])
    with pytest.raises(ValueError, match="do not rise"):
        read_interactive(path, [0])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "holds no prompt"),
        (b'{"prompts": ["a", "b"]}\n{"prompts": []}', "line 2: it is no script"),
        (b'{"prompts": "a"}', "line 1: it is no script"),
        (b'{"prompts": ["a", null]}', "prompt 2 of the script, column 'prompt': it is null"),
        (b'{"prompts": ["a", "b"], "prompt": "c"}', "line 1: it is no script"),
        (b"not json", "line 1: it is no JSON"),
        (b"\xff\xfe", "is UTF-16"),
    ],
)
def test_a_script_file_of_another_form_is_refused(tmp_path, content, problem):
    path = tmp_path / "scripts.jsonl"
    path.write_bytes(content)
    with pytest.raises(PromptFileError, match=problem):
        read_interactive(path, [4])


def test_scripts_may_have_a_byte_order_mark_and_line_breaks_of_unicode(tmp_path):
    path = tmp_path / "SCRIPTS.JSONL"
    path.write_bytes('\ufeff{"prompts": ["a\u2028b", "c\x85d"]}\r\n'.encode())
    assert read_interactive(path, [40]) == [[("a\u2028b", 0), ("c\x85d", 40)]]


def test_a_missing_script_file_is_named(tmp_path):
    with pytest.raises(PromptFileError, match="there is no prompt file"):
        read_interactive(tmp_path / "none.jsonl", [4])
