import json

import pytest

from astrolabe.cli import main
from astrolabe.evaluate import evaluate
from astrolabe.run_folder import RunFolder


@pytest.fixture(scope="module")
def evaluation(trained, tmp_path_factory):
    """The folder of an evaluation of four videos a model."""
    out = tmp_path_factory.mktemp("evaluated")
    folder, run = RunFolder.open(trained)
    evaluate(folder, run, lambda line: None, out=out)
    (place,) = (path for path in out.iterdir() if path.is_dir())
    return place


def call(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(part) for part in arguments])
    return ended.value.code


def test_people_vote_blindly_and_their_votes_are_counted(evaluation, tmp_path, capsys):
    assert call("votes", evaluation, "--pairs", 3) == 0
    page, key = evaluation / "votes.html", evaluation / "votes-key.json"
    assert "step-000002" not in page.read_text()
    answers = json.loads(key.read_text())
    assert answers["labels"] == ["before", "step-000002"]
    assert len(answers["pairs"]) == 3
    chosen = {name: pair["after"] for name, pair in answers["pairs"].items()}
    ballot = {"format": "astrolabe votes 1", "page": answers["page"], "rater": "ann"}
    (tmp_path / "ann.json").write_text(json.dumps(ballot | {"votes": chosen}))
    capsys.readouterr()
    assert call("count-votes", tmp_path / "ann.json", key) == 0
    assert "step-000002 over before: 100%" in capsys.readouterr().out


def test_scores_over_time_follow_each_model(evaluation, capsys):
    assert call("over-time", evaluation, "--reward", "sharpness_vq", "--seconds", 0.5) == 0
    assert "last minus first" in capsys.readouterr().out
    found = json.loads((evaluation / "over-time.json").read_text())
    assert found.keys() == {"before", "step-000002"}
    before = found["before"]
    assert before["protocol"]["model"] == "sharpness_vq"
    assert len(before["drift"]["sharpness_vq"]["mean"]) == 3  # 21 frames at 16 a second
    assert len(before["first_last_consistency"]) == 4


def test_scenes_are_scored_against_their_own_prompts(trained, tmp_path, capsys):
    scripts = tmp_path / "scripts.txt"
    scripts.write_text("a red circle[0.5s] | a blue circle[1s#]\na green square[1s] | it spins\n")
    arguments = ["--prompts", scripts, "--scenes", "--num-videos", 0, "--seconds", 0.5]
    assert call("eval", trained, *arguments, "--out", tmp_path / "out") == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["prompts"] == 2
    capsys.readouterr()
    (place,) = (path for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert call("over-time", place, "--reward", "tiny_ta") == 0
    found = json.loads((place / "over-time.json").read_text())["before"]
    assert found["protocol"]["borders"] == "scenes"
    first, second = found["videos"].values()
    assert [part["prompt"] for part in first["intervals"]] == ["a red circle", "a blue circle"]
    # Chunks of 3 latent frames, 4 pixel frames each, the first frame alone: 9 and then 12.
    assert [part["start"] for part in first["intervals"]] == [0, 9 / 16]
    assert first["intervals"][-1]["end"] == 21 / 16
    assert [part["prompt"] for part in second["intervals"]] == ["a green square", "it spins"]


def test_a_script_that_does_not_parse_is_refused_before_work(trained, tmp_path, capsys):
    scripts = tmp_path / "scripts.txt"
    scripts.write_text("a cat | \n")
    assert call("eval", trained, "--prompts", scripts, "--scenes", "--out", tmp_path / "out") == 2
    assert "script 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_evaluation_is_found_through_its_run(evaluation, capsys):
    assert call("votes", evaluation.parent, "--pairs", 2) == 2
    assert "holds no evaluation" in capsys.readouterr().err
    assert call("vbench", evaluation, "--dimension", "beauty") == 2
    error = capsys.readouterr().err
    assert "beauty" in error
    assert error.count("\n") == 1


def test_what_is_no_evaluation_ends_in_one_line(tmp_path, capsys):
    assert call("over-time", tmp_path) == 2
    error = capsys.readouterr().err
    assert "holds no evaluation. Make one: astrolabe eval RUN" in error
    (tmp_path / "x" / "before").mkdir(parents=True)
    (tmp_path / "x" / "before" / "manifest.json").write_text("{}")
    assert call("votes", tmp_path / "x") == 2
    assert "manifest.json" in capsys.readouterr().err


def test_several_evaluations_of_a_run_must_be_told_apart(trained, tmp_path, capsys):
    for name in ("one-1", "two-2"):
        (tmp_path / "evaluation" / name / "before").mkdir(parents=True)
        (tmp_path / "evaluation" / name / "before" / "manifest.json").write_text("{}")
    assert call("votes", tmp_path) == 2
    assert "holds several" in capsys.readouterr().err
