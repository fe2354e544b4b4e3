import json
import os
import shutil
import sys

import pytest

from astrolabe_eval import write_mp4
from astrolabe_eval.errors import VBenchError
from astrolabe_eval.flicker import score_flickering
from astrolabe_eval.vbench import DIMENSIONS
from astrolabe_eval.vbench_actions import classes
from astrolabe_eval.vbench_environment import VERSION, are_standard
from astrolabe_eval.vbench_needs import SOURCES, WEIGHTS, describe, overview
from astrolabe_eval.vbench_run import run_vbench

# Stands where the wheel would be: same interface, same files, no networks. What the wheel itself
# does is tested below where it can be had.
STAND_IN = """
import json, os
from pathlib import Path

class VBench:
    def __init__(self, device, full_info_dir, output_path):
        self.info, self.out = json.loads(Path(full_info_dir).read_text()), Path(output_path)
        self.out.mkdir(parents=True, exist_ok=True)

    def evaluate(self, videos_path, name, prompt_list, dimension_list, local, mode):
        assert local and os.environ["VBENCH_CACHE_DIR"] and "VIRTUAL_ENV" not in os.environ
        files = sorted(os.listdir(videos_path))
        labels = [f.lower().split("-")[0].split("person is ")[-1].split("_")[0] for f in files]
        (self.out / "seen.json").write_text(json.dumps([mode, labels, prompt_list]))
        if mode == "custom_input":
            plan = [{"prompt_en": prompt_list.get(f, f), "dimension": dimension_list,
                     "video_list": [f"{videos_path}/{f}"]} for f in files]
        else:
            plan = [{**e, "video_list": [f"{videos_path}/{e['prompt_en']}-{i}.mp4" for i in range(5)
                     if f"{e['prompt_en']}-{i}.mp4" in files]} for e in self.info]
        (self.out / f"{name}_full_info.json").write_text(json.dumps(plan))
        if any("crash" in f for f in files):
            raise RuntimeError("the card fell off")
        videos = [v for e in plan for v in e["video_list"] if "broken" not in v]
        entry = [0.75, [{"video_path": v, "video_results": 0.75} for v in videos]]
        results = dict.fromkeys(dimension_list, entry)
        (self.out / f"{name}_eval_results.json").write_text(json.dumps(results))
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Folders for videos and results, and a Python that finds the stand-in."""
    package = tmp_path / "site/vbench"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    entries = [
        {"prompt_en": "a cat", "dimension": ["temporal_flickering"]},
        {"prompt_en": "A person is marching", "dimension": ["human_action"]},
    ]
    (package / "VBench_full_info.json").write_text(json.dumps(entries))
    # The driver asks torch for a device alone; the real one takes seconds to import.
    (tmp_path / "site/torch.py").write_text("def device(name):\n    return name\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    (tmp_path / "videos").mkdir()
    return tmp_path


@pytest.fixture
def weights(tmp_path):
    """A folder in which every file of weights seems to be."""
    for file in SOURCES:
        (tmp_path / "weights" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "weights" / file).touch()
    return tmp_path / "weights"


def _run(place, *names, **options):
    for name in names:
        (place / "videos" / name).write_bytes(b"video")
    settings = {"python": sys.executable, "device": "cpu", "mode": "custom_input"} | options
    dimensions = settings.pop("dimensions", ["temporal_flickering"])
    return run_vbench(place / "videos", place / "out", dimensions, **settings)


def test_results_come_back_with_what_was_left_out(place):
    run = _run(place, "a cat-0.mp4", "broken-0.mp4")
    assert run.results.scores == {"temporal_flickering": 0.75}
    assert run.missing == ()
    assert run.unscored == {"temporal_flickering": ("broken-0.mp4",)}


def test_missing_videos_of_the_standard_list_are_named(place):
    run = _run(place, "a cat-0.mp4", "a cat-3.mp4", mode="standard")
    assert run.missing[:3] == ("a cat-1.mp4", "a cat-2.mp4", "a cat-4.mp4")
    assert set(run.missing[3:]) == {f"A person is marching-{index}.mp4" for index in range(5)}


def test_prompts_may_be_given_for_any_names(place):
    _run(place, "0001.mp4", prompts={"0001.mp4": "a prompt of any length / with any letter"})
    plan = json.loads((place / "out/vbench_full_info.json").read_text())
    assert plan[0]["prompt_en"] == "a prompt of any length / with any letter"
    with pytest.raises(VBenchError, match=r"no prompt for '0002\.mp4'"):
        _run(place, "0002.mp4", prompts={"0001.mp4": "a"})


def test_a_failure_shows_the_end_of_what_vbench_said(place):
    _run(place, "a cat-0.mp4")
    with pytest.raises(VBenchError, match=r"code 1.*(?s:.)*the card fell off"):
        _run(place, "crash-0.mp4")
    # Results of the run before must not be taken for those of this one.
    assert not (place / "out/vbench_eval_results.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimensions": []}, "Give a list"),
        ({"dimensions": "color"}, "Give a list"),
        ({"dimensions": ["colour"]}, "'colour' is no dimension"),
        ({"dimensions": ["scene", "color"]}, "judges color, scene on its own prompts"),
        ({"dimensions": ["temporal_style"]}, "number of overall_consistency"),
        ({"dimensions": ["human_action"]}, r"'a' does not end in 'person is'"),
        ({"mode": "long"}, "mode is 'long'"),
        ({"mode": "standard", "prompts": {"a.mp4": "a"}}, "prompts are fixed"),
        ({"python": "/no/python"}, "no Python '/no/python'"),
    ],
)
def test_what_vbench_cannot_do_is_refused_before_it_starts(place, options, message):
    with pytest.raises(VBenchError, match=message):
        _run(place, "a.mp4", **options)
    assert not (place / "out").exists()


def test_folders_without_videos_or_with_other_files_are_refused(place):
    with pytest.raises(VBenchError, match=r"no \.mp4"):
        _run(place)
    (place / "videos/manifest.json").write_text("{}")
    with pytest.raises(VBenchError, match=r"also has 'manifest\.json'"):
        _run(place, "a cat-0.mp4", mode="standard")
    assert _run(place).results.scores  # custom input takes the videos alone
    with pytest.raises(VBenchError, match="no folder"):
        run_vbench(place / "absent", place / "out", ["temporal_flickering"])


def test_absent_weights_are_named_before_anything_starts(place):
    cache = place / "cache"
    wanted = ["imaging_quality", "temporal_flickering"]
    with pytest.raises(
        VBenchError, match=r"imaging_quality needs pyiqa_model/musiq_spaq"
    ) as caught:
        _run(place, "a.mp4", dimensions=wanted, cache=cache)
    assert str(cache) in str(caught.value)
    for file in WEIGHTS["imaging_quality"]:
        (cache / file).parent.mkdir(parents=True)
        (cache / file).touch()
    assert _run(place, dimensions=wanted, cache=cache).results.scores.keys() == set(wanted)
    assert WEIGHTS.keys() == DIMENSIONS.keys()


def test_the_recogniser_sees_the_action_of_each_prompt_in_the_name(place, weights):
    prompts = {
        "000.mp4": "A person is riding a bike",
        "001.mp4": "In a park - sunny_day - a Person is  marching.",
        "broken-2.mp4": "A person is riding a bike",
    }
    dimensions = ["human_action", "temporal_flickering"]
    run = _run(place, *prompts, prompts=prompts, dimensions=dimensions, cache=weights)
    _, labels, told = json.loads((place / "out/seen.json").read_text())
    assert sorted(labels) == ["marching", "riding a bike", "riding a bike"]
    assert sorted(told.values()) == sorted(prompts.values())
    # The results speak of the videos that were given.
    entries = json.loads((place / "out/vbench_eval_results.json").read_text())["human_action"][1]
    assert {entry["video_path"] for entry in entries} == {
        str(place / "videos" / name) for name in prompts
    }
    assert run.unscored == {}


@pytest.mark.parametrize(
    ("prompt", "near"),
    [
        ("a cat on a mat", "human_action judges"),
        ("A person is ridng a bike", "'riding a bike'"),
        ("A person is riding a bike in a park", "'riding a bike'"),
        ("A person is", "400 actions"),
    ],
)
def test_prompts_without_an_action_that_is_known_are_refused(place, weights, prompt, near):
    prompts = {"0.mp4": "A person is marching", "1.mp4": prompt}
    with pytest.raises(VBenchError, match=near) as caught:
        _run(place, *prompts, prompts=prompts, dimensions=["human_action"], cache=weights)
    assert repr(prompt) in str(caught.value)
    assert not (place / "out").exists()


def test_the_actions_are_those_of_the_recogniser():
    assert len(classes()) == 400
    assert not [name for name in classes() if set(name) & set("-_/") or name != name.lower()]
    assert {"riding a bike", "massaging person's head", "petting animal (not cat)"} <= classes()


@pytest.mark.parametrize("name", ["0001.mp4", "a_cat_on_a_mat-0.mp4", "a-cat-on-a-mat.mp4"])
def test_a_name_that_is_no_prompt_is_not_read_as_one(place, weights, name):
    options = {"dimensions": ["overall_consistency"], "cache": weights}
    with pytest.raises(VBenchError, match=f"{name!r} has none"):
        _run(place, name, **options)
    _run(place, name, prompts={name: "a cat on a mat"}, **options)
    (place / "videos" / name).unlink()
    _run(place, "a cat on a well-kept mat-0.mp4", **options)
    _, _, told = json.loads((place / "out/seen.json").read_text())
    assert told == {"a cat on a well-kept mat-0.mp4": "a cat on a well-kept mat"}


def test_the_standard_suite_is_known_by_its_videos(place):
    def ours(*names):
        return are_standard(names, python=sys.executable)

    assert ours("a cat-0.mp4", "A person is marching-4.mp4")
    assert not ours("a cat-0.mp4", "a dog-0.mp4")
    assert not ours("a cat-7.mp4")
    assert not ours("000.mp4")
    assert not ours()


def test_videos_outside_the_standard_list_and_dimensions_without_videos_are_refused(place, weights):
    with pytest.raises(VBenchError, match=r"'a dog-0\.mp4' is no video of VBench's own prompts"):
        _run(place, "a cat-0.mp4", "a dog-0.mp4", mode="standard")
    (place / "videos/a dog-0.mp4").unlink()
    with pytest.raises(VBenchError, match="VBench judges human_action on"):
        _run(place, mode="standard", dimensions=["human_action"], cache=weights)


@pytest.mark.parametrize("name", ["b.gif", "b.MP4", "b.GIF"])
def test_a_file_that_vbench_would_take_for_a_video_is_refused(place, name):
    with pytest.raises(VBenchError, match=name):
        _run(place, "a.mp4", name)


def test_an_environment_without_what_is_needed_is_refused(place, weights, monkeypatch):
    (place / "videos/a cat-0.mp4").write_bytes(b"")
    info = place / "site/vbench/VBench_full_info.json"
    info.write_text(json.dumps([{"prompt_en": "a cat", "dimension": ["color"]}]))
    with pytest.raises(VBenchError, match=r"color need detectron2.*\(--python\)"):
        _run(place, mode="standard", dimensions=["color"], cache=weights, option=lambda n: f"--{n}")
    monkeypatch.delenv("PYTHONPATH")
    with pytest.raises(VBenchError, match=f"has no vbench. Install vbench=={VERSION}"):
        _run(place)


def test_every_file_of_weights_has_a_source_and_every_dimension_a_line():
    files = {file for needed in WEIGHTS.values() for file in needed}
    assert files == SOURCES.keys()
    assert all("https://" in describe(file) for file in files)
    assert [line.split()[0] for line in overview()] == list(DIMENSIONS)


def test_without_uv_the_way_out_is_told(place, monkeypatch):
    monkeypatch.setenv("PATH", str(place))
    with pytest.raises(VBenchError, match=r"no uv.*python="):
        _run(place, "a.mp4", python=None)


@pytest.mark.slow
def test_the_wheel_of_vbench_scores_our_folder_as_we_do(tmp_path, moving_square):
    """Needs uv and a package registry, or an environment's Python in ASTROLABE_VBENCH_PYTHON."""
    python = os.environ.get("ASTROLABE_VBENCH_PYTHON")
    if python is None and shutil.which("uv") is None:
        pytest.skip(f"there is neither uv nor an environment with vbench=={VERSION}")
    for index in range(2):
        path = tmp_path / "videos" / f"In a still frame, a stop sign-{index}.mp4"
        write_mp4(path, moving_square(shift=index), 8)
    run = run_vbench(
        tmp_path / "videos", tmp_path / "out", ["temporal_flickering"], python=python, device="cpu"
    )
    ours = score_flickering((tmp_path / "videos").iterdir()).score
    assert run.results.scores["temporal_flickering"] == pytest.approx(ours, abs=1e-6)
    assert len(run.missing) == 75 * 5 - 2
    assert run.unscored == {}
