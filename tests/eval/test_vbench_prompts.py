import json

import pytest

from astrolabe_eval import SuiteError
from astrolabe_eval.vbench_prompts import (
    find_full_info,
    name_seed,
    parse_script,
    read_vbench_prompts,
    script_suite,
    vbench_suite,
    video_name,
)

# The first entries of VBench's list in its own shape, and a text that occurs in two dimensions.
ENTRIES = [
    {"prompt_en": "In a still frame, a stop sign", "dimension": ["temporal_flickering"]},
    {
        "prompt_en": "The bund Shanghai, oil painting",
        "dimension": ["appearance_style"],
        "auxiliary_info": {"appearance_style": {"appearance_style": "oil painting"}},
    },
    {
        "prompt_en": "The bund Shanghai, oil painting",
        "dimension": ["overall_consistency", "aesthetic_quality", "imaging_quality"],
    },
]


@pytest.fixture
def prompts(tmp_path):
    folder = tmp_path / "env/lib/python3.11/site-packages/vbench"
    folder.mkdir(parents=True)
    (folder / "VBench_full_info.json").write_text(json.dumps(ENTRIES))
    return read_vbench_prompts(tmp_path / "env")


def test_the_list_is_found_in_an_environment_a_folder_or_by_its_name(tmp_path, prompts):
    path = find_full_info(tmp_path / "env")
    assert find_full_info(path) == path
    assert find_full_info(path.parent) == path
    assert [prompt.text for prompt in prompts] == [entry["prompt_en"] for entry in ENTRIES]


def test_a_list_that_is_not_there_or_not_vbenchs_is_refused(tmp_path):
    with pytest.raises(SuiteError, match=r"no VBench_full_info\.json"):
        read_vbench_prompts(tmp_path)
    path = tmp_path / "VBench_full_info.json"
    for content in ("{", "[{}]", "[1]", "[]"):
        path.write_text(content)
        with pytest.raises(SuiteError, match="VBench_full_info"):
            read_vbench_prompts(path)


def test_a_text_in_two_dimensions_is_generated_once(prompts):
    made = vbench_suite(prompts, samples=2)
    assert made.file_names == (
        "In a still frame, a stop sign-0.mp4",
        "In a still frame, a stop sign-1.mp4",
        "The bund Shanghai, oil painting-0.mp4",
        "The bund Shanghai, oil painting-1.mp4",
    )
    assert made.dimensions[2] == (
        "appearance_style",
        "overall_consistency",
        "aesthetic_quality",
        "imaging_quality",
    )
    assert len(vbench_suite(prompts).suite) == 10


def test_seeds_follow_from_the_name_of_the_video_alone(prompts):
    every = vbench_suite(prompts)
    part = vbench_suite(tuple(reversed(prompts)), samples=3, dimensions=["imaging_quality"])
    known = dict(zip(every.file_names, every.suite.seeds, strict=True))
    assert len(set(known.values())) == 10
    assert len(part.file_names) == 3
    for name, seed in zip(part.file_names, part.suite.seeds, strict=True):
        assert known[name] == seed
    # Written out: another number here would change the noise of every published evaluation.
    assert name_seed("a cat", 0) == 8005812795385319884


def test_augmented_prompts_keep_short_names_and_seeds(tmp_path, prompts):
    path = tmp_path / "long.txt"
    path.write_text("a long stop sign\na long bund\na longer bund\n")
    made = vbench_suite(prompts, augmented=path, samples=1)
    short = vbench_suite(prompts, samples=1)
    assert made.suite.prompts == ("a long stop sign", "a long bund")
    assert made.file_names == short.file_names
    assert made.suite.seeds == short.suite.seeds
    path.write_text("a long stop sign\na long bund\n")
    with pytest.raises(SuiteError, match="2 lines for 3 prompts"):
        vbench_suite(prompts, augmented=path)
    path.write_text("a long stop sign\n\na longer bund\n")
    with pytest.raises(SuiteError, match=r"Prompt 1 .*''"):
        vbench_suite(prompts, augmented=path, samples=1)


def test_dimensions_without_prompts_are_refused(prompts):
    with pytest.raises(SuiteError, match=r"belongs to scene.*appearance_style"):
        vbench_suite(prompts, dimensions=["scene"])
    with pytest.raises(SuiteError, match="samples is 0"):
        vbench_suite(prompts, samples=0)


def test_prompts_that_cannot_be_file_names_are_refused():
    assert video_name("a" * 229, 0) == "a" * 229 + "-0.mp4"
    with pytest.raises(SuiteError, match="file name of 236 bytes"):
        video_name("a" * 230, 0)
    with pytest.raises(SuiteError, match="file name of"):
        video_name("ü" * 120, 0)  # bytes count, not letters
    with pytest.raises(SuiteError, match="character that no file name"):
        video_name("either/or", 0)


def test_scripts_have_scenes_with_lengths():
    scenes = parse_script("a cat wakes [10s] | it runs [2.5s#] | it sleeps")
    assert [(scene.prompt, scene.seconds) for scene in scenes] == [
        ("a cat wakes", 10.0),
        ("it runs", 2.5),
        ("it sleeps", None),
    ]
    with pytest.raises(SuiteError, match="Scene 2"):
        parse_script("a cat | [10s]")


def test_a_file_of_scripts_is_a_suite(tmp_path):
    path = tmp_path / "interactive_benchmark.txt"
    lines = ["a [10s] | b [10s]", "c [10s] | d [10s]"]
    path.write_text("\n".join(lines) + "\n")
    suite = script_suite(path, samples=2)
    assert suite.name == "interactive_benchmark"
    assert suite.prompts == (lines[0], lines[0], lines[1], lines[1])
    assert len(set(suite.seeds)) == 4
    path.write_text("a [10s] | b [10s]\nc | | d\n")
    with pytest.raises(SuiteError, match=r"script 2: Scene 2"):
        script_suite(path)
    path.write_text("a\na\n")
    with pytest.raises(SuiteError, match="'a' twice"):
        script_suite(path)
    path.write_bytes("grün".encode("latin-1"))
    with pytest.raises(SuiteError, match="not UTF-8"):
        script_suite(path)
    with pytest.raises(SuiteError, match="no prompt file"):
        script_suite(tmp_path / "absent.txt")
