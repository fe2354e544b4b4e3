"""Folders of video files as evaluations, and numbers in other forms than lists."""

import numpy as np
import pytest
import torch

from astrolabe_eval import (
    Evaluation,
    Suite,
    SuiteError,
    agree,
    bootstrap_interval,
    compare,
    keep_shared,
    score_suite,
    wilson_interval,
    win_rate,
    write_mp4,
)


def fill(folder, levels, fps=8.0):
    """Grey videos by name, as bright as is said."""
    for name, level in levels.items():
        side = 32 if "wide" in name else 16
        write_mp4(folder / name, np.full((3, 3, side, side), level, np.uint8), fps)
    return folder


def level(batch):
    return batch.set(("score", "level"), batch["video", "pixels"].float().mean((1, 2, 3, 4)))


def asked(batch):
    """A scorer that notes what it reads."""
    texts = batch.get(("prompt", "text"), None)
    asked.seen.append((texts if texts is None else texts.tolist(), batch["video", "fps"].tolist()))
    total = batch["video", "pixels"].float().mean((1, 2, 3, 4))[:, None]
    batch["score", "twice"] = 2 * total
    return batch.set(("next", "reward"), total)


@pytest.fixture
def seen():
    asked.seen = []
    return asked.seen


def rounded(scores):
    return {name: np.round(row, -1).tolist() for name, row in scores.items()}


def test_files_are_scored_in_the_order_of_their_names_and_say_their_prompts(tmp_path, seen):
    names = {"a cat-10.mp4": 100, "a cat-9.mp4": 90, "a dog.webm.mp4": 50, "wide.MP4": 20}
    fill(tmp_path, names | {".part.mp4": 7})
    (tmp_path / "notes.txt").write_text("no video")
    found = Evaluation.from_folder(tmp_path, asked, judges={"judge": level}, batch_size=2)
    assert found.suite.prompts == ("a cat", "a cat", "a dog.webm", "wide")
    assert rounded(found.rewards) == {"twice": [180, 200, 100, 40], "total": [90, 100, 50, 20]}
    assert rounded(found.judges) == {"judge": [90, 100, 50, 20]}
    assert found.videos[3].shape == (3, 3, 32, 32)
    assert found.fps == 8
    assert seen == [(["a cat"] * 2, [8.0] * 2), (["a dog.webm"], [8.0]), (["wide"], [8.0])]


def test_two_folders_pair_up_by_their_prompts_whatever_one_lacks(tmp_path):
    prompts = {f"{number}": f"prompt {number}" for number in range(8)}
    before = fill(tmp_path / "before", {f"{number}.mp4": 10 * number for number in range(8)})
    after = fill(tmp_path / "after", {f"{number}.mp4": 10 * number + 20 for number in range(8)})
    old = Evaluation.from_folder(before, level, prompts=prompts)
    (after / "3.mp4").write_bytes((after / "3.mp4").read_bytes()[:-60])  # cut short
    (after / "5.mp4").unlink()
    new = Evaluation.from_folder(after, level, prompts=prompts)
    assert list(new.missing) == ["3.mp4"]
    with pytest.raises(SuiteError, match="keep_shared"):
        compare(old, new)
    change = compare(*keep_shared({"old": old, "new": new}).values())["rewards"]["total"]
    assert change["prompts"] == 6
    assert change["difference"] == pytest.approx(20, abs=1)


def test_prompts_come_as_a_list_a_file_or_a_suite(tmp_path, seen):
    fill(tmp_path, {"2.mp4": 20, "10.mp4": 100})
    Evaluation.from_folder(tmp_path, asked)  # numbers are no prompts
    (tmp_path / "prompts.txt").write_text("two\nten\n")
    suite = Suite("mine", ["two", "ten"], [7, 8])
    for prompts in (["two", "ten"], tmp_path / "prompts.txt", suite):
        found = Evaluation.from_folder(tmp_path, asked, prompts=prompts)
        assert found.suite.prompts == ("two", "ten")
    assert found.suite == suite
    assert [texts for texts, _ in seen] == [None, *([["two", "ten"]] * 3)]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prompts": ["one"]}, SuiteError, "1 prompts for the 2 videos of"),
        ({"prompts": {"a.mp4": "a"}}, SuiteError, r"say nothing of 'b\.mp4'"),
        ({"prompts": [1, 2]}, SuiteError, "a prompt is 1, no text"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"folder": "nowhere"}, SuiteError, "is no folder"),
        ({"folder": "empty"}, SuiteError, "holds no video"),
        ({"folder": "broken"}, SuiteError, "no video of .* can be read"),
        ({"scorer": lambda batch: None}, TypeError, "returned a NoneType"),
        ({"scorer": lambda batch: batch.set("score", torch.ones(2))}, TypeError, "'score' itself"),
        (
            {"scorer": lambda batch: level(batch).set(("score", "b"), torch.ones(2))},
            ValueError,
            r"wrote \['b', 'level'\] and no \('next', 'reward'\)",
        ),
    ],
)
def test_folders_that_are_none_are_refused(tmp_path, options, error, message):
    fill(tmp_path / "good", {"a.mp4": 1, "b.mp4": 2})
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.mp4").write_bytes(b"no video")
    options = {"folder": "good", "scorer": level} | options
    folder = tmp_path / options.pop("folder")
    with pytest.raises(error, match=message):
        Evaluation.from_folder(folder, **options)


@pytest.mark.parametrize(
    "values",
    [
        [0.5, 1.0, 0.25],
        (0.5, 1.0, 0.25),
        np.array([[0.5], [1.0], [0.25]], np.float32),
        torch.tensor([0.5, 1.0, 0.25], requires_grad=True),
        torch.tensor([[0.5], [1.0], [0.25]], dtype=torch.bfloat16),
    ],
)
def test_scores_come_in_any_form(values):
    suite = Suite("demo", np.array(["a", "b", "c"]), torch.tensor([1, 2, 3]))
    assert suite.seeds == (1, 2, 3)
    evaluation = Evaluation(suite=suite, rewards={"total": values})
    assert evaluation.rewards["total"].tolist() == [0.5, 1.0, 0.25]
    assert evaluation.rewards["total"].dtype == np.float64
    assert win_rate(values, ["a", "b", "c"])["wins"] == 3
    assert agree({"x": values, "y": values})["pairs"][0]["spearman"] == 1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda suite: {"rewards": {"total": [[1, 2], [3, 4]]}}, ValueError, r"shape \(2, 2\)"),
        (lambda suite: {"rewards": {"total": ["a", "b"]}}, TypeError, r"\['total'\] holds <U1"),
        (lambda suite: {"rewards": {"total": [True, False]}}, TypeError, "holds bool"),
        (lambda suite: {"rewards": {"total": [[1], [2, 3]]}}, ValueError, "no row of numbers"),
        (lambda suite: {"rewards": [1.0, 2.0]}, TypeError, "rewards is a list"),
        (lambda suite: {"suite": ["a", "b"]}, TypeError, "suite is a list"),
        (lambda suite: {"fps": 0}, ValueError, "fps is 0"),
        (lambda suite: {"held_out": "total"}, TypeError, "Give a tuple of names"),
    ],
)
def test_an_evaluation_refuses_what_is_none(make, error, message):
    suite = Suite("demo", ("a", "b"))
    with pytest.raises(error, match=message):
        Evaluation(**({"suite": suite, "rewards": {"total": [1.0, 2.0]}} | make(suite)))


def test_seeds_are_whole_numbers():
    with pytest.raises(SuiteError, match=r"A seed of suite 'demo' is 1\.5"):
        Suite("demo", ("a",), (1.5,))


@pytest.mark.parametrize(
    "call",
    [
        lambda level: bootstrap_interval([1.0, 2.0, 4.0], level=level),
        lambda level: win_rate([1, -1], ["a", "b"], level=level),
        lambda level: wilson_interval(0.5, 10, level=level),
        lambda level: agree({"a": [1, 2, 3], "b": [1, 2, 3]}, level=level),
    ],
)
def test_a_level_in_percent_is_refused_with_the_share(call):
    with pytest.raises(ValueError, match=r"level is 95: it is a share.*Give 0\.95"):
        call(95)
    with pytest.raises(ValueError, match="level is 0"):
        call(0)


def test_a_rate_in_percent_is_refused():
    with pytest.raises(ValueError, match=r"rate is 62\.5.*Give 0\.625"):
        wilson_interval(62.5, 8)
    assert wilson_interval(1, 8)[1] == 1


def test_a_scorer_that_writes_no_tensor_is_refused():
    from tensordict import TensorDict

    def text(batch):
        return batch.set(("score", "kind"), ["good", "bad"])

    with pytest.raises(TypeError, match="Score 'kind' is a"):
        score_suite([TensorDict(batch_size=[2])], text)
