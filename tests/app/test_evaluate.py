import json
from dataclasses import replace

import pytest

from astrolabe.cli import main
from astrolabe.evaluate import evaluate, make_suite
from astrolabe.run_folder import RunFolder
from astrolabe_rollout.errors import CheckpointError


def evaluated(trained, out, share=(0, 1), steps=(), **changes):
    folder, run = RunFolder.open(trained)
    run = replace(run, evaluation=replace(run.evaluation, **changes))
    return evaluate(folder, run, lambda line: None, steps=steps, out=out, share=share)


def numbers(comparison):
    return [(s["prompt"], s["seed"], s["before"], s["after"]) for s in comparison["samples"]]


@pytest.mark.slow
def test_no_number_depends_on_the_batch_or_on_how_many_processes_share_the_work(trained, tmp_path):
    alone = evaluated(trained, tmp_path / "one")
    together = evaluated(trained, tmp_path / "eight", batch_size=8)
    assert numbers(together) == numbers(alone)
    assert evaluated(trained, tmp_path / "two", share=(0, 2)) is None
    assert not (tmp_path / "two" / "report.json").exists()
    shared = evaluated(trained, tmp_path / "two", share=(1, 2))
    assert numbers(shared) == numbers(alone)
    assert shared["rewards"] == alone["rewards"]
    assert (tmp_path / "two" / "report.html").exists()


def test_what_is_finished_is_not_made_again(trained, tmp_path, monkeypatch):
    first = evaluated(trained, tmp_path)
    monkeypatch.setattr("astrolabe.evaluate.evaluate_suite", None)
    assert numbers(evaluated(trained, tmp_path)) == numbers(first)


def test_several_checkpoints_go_into_one_table(trained, tmp_path):
    found = evaluated(trained, tmp_path, steps=(1, 2))
    assert list(found["checkpoints"]) == ["step-000001", "step-000002"]
    with pytest.raises(CheckpointError, match=r"step-000007\. There are: step-000001"):
        evaluated(trained, tmp_path, steps=(7,))


def test_other_prompts_get_a_folder_of_their_own(trained, tmp_path):
    evaluated(trained, tmp_path)
    evaluated(trained, tmp_path, seed=5)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2


def test_noise_follows_from_the_prompt_and_not_from_its_place(trained, tmp_path):
    _, run = RunFolder.open(trained)
    lists = []
    for number, texts in enumerate((["a", "b", "c", "a"], ["c", "a", "a", "b"])):
        path = tmp_path / f"{number}.txt"
        path.write_text("\n".join(texts))
        evaluation = replace(run.evaluation, prompts=str(path), num_videos=0)
        suite, _ = make_suite(replace(run, evaluation=evaluation))
        lists.append(sorted(zip(suite.prompts, suite.seeds, strict=True)))
    assert lists[0] == lists[1]
    assert len({seed for _, seed in lists[0]}) == 4


def test_prompts_come_from_tables_and_from_vbench(trained, tmp_path):
    _, run = RunFolder.open(trained)

    def suite(path, count=0):
        return make_suite(
            replace(run, evaluation=replace(run.evaluation, prompts=str(path), num_videos=count))
        )

    table = tmp_path / "mine.csv"
    table.write_text('prompt,style\n"a cat, asleep",x\na dog,y\n')
    assert suite(table)[0].prompts == ("a cat, asleep", "a dog")
    lines = tmp_path / "mine.jsonl"
    lines.write_text('{"prompt": "a cat"}\n\n{"prompt": "a dog"}\n')
    assert suite(lines)[0].prompts == ("a cat", "a dog")
    array = tmp_path / "mine.json"
    array.write_text('["a cat", {"prompt": "a dog"}]')
    assert suite(array)[0].prompts == ("a cat", "a dog")
    vbench = tmp_path / "VBench_full_info.JSON"
    entries = [{"prompt_en": name, "dimension": ["color"]} for name in ("a cat", "a dog")]
    vbench.write_text(json.dumps(entries))
    whole, names = suite(vbench)
    assert len(whole) == 10
    assert names[:2] == ("a cat-0.mp4", "a cat-1.mp4")
    assert suite(vbench, 2)[1] == ("a cat-0.mp4", "a dog-0.mp4")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "text\na cat\n", "there is no 'prompt' among 'text'"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": " "}\n', "line 2, column 'prompt': it is empty"),
        ("a.jsonl", "", "holds no prompt"),
        ("a.jsonl", "{", "line 1: it is no JSON"),
        ("a.JSON", '{"a": 1}', "it is an object, not an array"),
        ("a.json", '[{"prompt_en": null, "dimension": ["color"]}]', "not VBench's list"),
        ("a.json", '[{"prompt_en": "a", "dimension": "color"}]', "not VBench's list"),
    ],
)
def test_a_bad_list_of_prompts_ends_in_one_line(trained, tmp_path, capsys, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(SystemExit) as ended:
        main(["eval", str(trained), "--prompts", str(tmp_path / name)])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
