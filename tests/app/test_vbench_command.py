"""``astrolabe vbench`` over the videos of an evaluation, with a VBench that is told the truth."""

import json
import re
import sys

import numpy as np
import pytest

from astrolabe.cli import main
from astrolabe_eval import Evaluation, Suite, SuiteFolder
from astrolabe_eval.vbench_needs import SOURCES

# Recognises every action; compares it with the label as human_action of VBench 0.1.5 cuts it.
STAND_IN = """
import json, os

class VBench:
    def __init__(self, device, full_info_dir, output_path):
        self.out = output_path
        os.makedirs(output_path, exist_ok=True)

    def evaluate(self, videos_path, name, prompt_list, dimension_list, local, mode):
        files = sorted(os.listdir(videos_path))
        plan = [{"prompt_en": f, "dimension": dimension_list,
                 "video_list": [f"{videos_path}/{f}"]} for f in files]
        json.dump(plan, open(f"{self.out}/{name}_full_info.json", "w"))
        rows = []
        for f in files:
            seen = prompt_list.get(f, "").lower().split("person is ")[-1]
            label = f.lower().split("-")[0].split("person is ")[-1].split("_")[0]
            rows.append({"video_path": f"{videos_path}/{f}", "video_results": seen == label})
        score = sum(row["video_results"] for row in rows) / len(rows)
        results = {d: [score, rows] for d in dimension_list}
        json.dump(results, open(f"{self.out}/{name}_eval_results.json", "w"))
        json.dump(mode, open(f"{self.out}/mode.json", "w"))
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    package = tmp_path / "site/vbench"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    entries = [{"prompt_en": "a cat", "dimension": ["color"]}]
    (package / "VBench_full_info.json").write_text(json.dumps(entries))
    (tmp_path / "site/torch.py").write_text("def device(name):\n    return name\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    for file in SOURCES:
        (tmp_path / "weights" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "weights" / file).touch()
    return tmp_path


def _evaluated(place, prompts, name="actions", names=()):
    suite = Suite(name, tuple(prompts))
    made = SuiteFolder(place / "evaluation" / "before", suite, fps=8, names=names)
    for index in range(len(suite)):
        part = Suite(name, suite.prompts[index : index + 1], suite.seeds[index : index + 1])
        frames = np.zeros((2, 3, 16, 16), dtype=np.uint8)
        made.put(index, frames, Evaluation(suite=part, rewards={"total": np.zeros(1)}))
    return place / "evaluation"


def _call(place, folder, *dimensions, more=()):
    options = [word for name in dimensions for word in ("--dimension", name)]
    where = ["--python", sys.executable, "--device", "cpu", "--cache", place / "weights"]
    with pytest.raises(SystemExit) as ended:
        main(["vbench", str(folder), *options, *map(str, where), *more])
    return ended.value.code


def test_actions_of_own_prompts_are_recognised(place):
    folder = _evaluated(place, ["A person is riding a bike", "A person is marching"])
    assert _call(place, folder, "human_action") == 0
    assert json.loads((folder / "vbench.json").read_text()) == {"before": {"human_action": 1.0}}


def test_a_list_called_vbench_is_not_vbenchs(place):
    folder = _evaluated(place, ["A person is marching", "a dog"], name="vbench")
    assert _call(place, folder, "imaging_quality") == 0
    mode = folder / "vbench/before/mode.json"
    assert json.loads(mode.read_text()) == "custom_input"


def test_vbenchs_videos_are_known_whatever_the_suite_is_called(place):
    folder = _evaluated(place, ["a cat"] * 2, name="mine", names=("a cat-0.mp4", "a cat-1.mp4"))
    (place / "site/detectron2.py").touch()
    assert _call(place, folder, "color") == 0
    assert json.loads((folder / "vbench/before/mode.json").read_text()) == "vbench_standard"


def test_all_are_those_that_the_prompts_allow_and_the_rest_is_named(place, capsys):
    folder = _evaluated(place, ["A person is marching", "a dog"])
    assert _call(place, folder, "all") == 0
    found = json.loads((folder / "vbench.json").read_text())["before"]
    assert set(found) == {
        "subject_consistency", "background_consistency", "temporal_flickering", "motion_smoothness",
        "aesthetic_quality", "imaging_quality", "dynamic_degree", "overall_consistency",
    }  # fmt: skip
    shown = capsys.readouterr().out
    assert re.search(r"Left out: human_action \(.*'a dog' does not end", shown)
    assert "scene, appearance_style" in shown


def test_advice_names_options_that_the_command_has(place, capsys):
    folder = _evaluated(place, ["a dog"])
    with pytest.raises(SystemExit):
        main(["vbench", "--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    (place / "weights/amt_model/amt-s.pth").unlink()
    assert _call(place, folder, "motion_smoothness") == 2
    error = capsys.readouterr().err
    assert set(re.findall(r"--[a-z-]+", error)) == {"--cache", "--download"} <= known
    assert "amt_model/amt-s.pth (about 0.01 GB, https://" in error
    assert "=)" not in error
    # Following the advice works.
    assert _call(place, folder, "motion_smoothness", more=["--download"]) == 0
