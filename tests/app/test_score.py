import csv
import io
import json
import os
import re
from collections import Counter
from dataclasses import replace

import av
import numpy as np
import pytest
import torch

from astrolabe.cli import main
from astrolabe.compose_rewards import build_reward
from astrolabe.errors import ConfigError
from astrolabe.load import load
from astrolabe.reward_choice import choose_terms
from astrolabe.score import Request, perform
from astrolabe.video_list import find_prompts, find_videos
from astrolabe_eval import VideoError, encode_mp4, write_mp4
from astrolabe_rewards import Reward


def noise(seed=0, num_frames=5, side=48):
    shape = (num_frames, 3, side, side)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


class Recording(Reward):
    """Remembers what each call was given; cannot judge a video of 3 frames."""

    name = "recording"
    unit = "letters"
    needs_text = True
    may_fail = True
    calls = []  # noqa: RUF012

    def __init__(self, *, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain

    def score(self, pixels, prompts, fps):
        self.calls.append((tuple(pixels.shape), list(prompts), fps.tolist()))
        scores = torch.tensor([self.gain * len(prompt) for prompt in prompts])
        return scores if pixels.shape[1] != 3 else torch.full_like(scores, torch.nan)


@pytest.fixture
def recording(monkeypatch):
    """The calls of `Recording`, which a command finds under its module and name."""
    import sys

    monkeypatch.setattr(Recording, "calls", [])
    monkeypatch.setitem(sys.modules, "recording_reward", sys.modules[__name__])
    return Recording.calls


@pytest.fixture
def folder(tmp_path):
    """Three videos of one shape and one of another, in two folders."""
    for index, name in enumerate(("b.mp4", "a.mp4", "inner/c.MP4")):
        write_mp4(tmp_path / "videos" / name, noise(index), 8)
    write_mp4(tmp_path / "videos" / "d.mkv", noise(3, num_frames=7), 16)
    (tmp_path / "videos" / ".e.12.part.mp4").write_bytes(b"being written")
    (tmp_path / "videos" / "notes.txt").write_text("no video")
    return tmp_path / "videos"


def score(*videos, **options):
    """Run one command; return its exit code and the lines that it said."""
    said = []
    return perform(Request(videos=videos, **options), said.append), said


def audio_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


BROKEN = {
    "truncated": (lambda path: path.write_bytes(encode_mp4(noise(), 8)[:3000]), "is cut short"),
    "audio": (audio_only, "holds no video, only other streams"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read as a video"),
    "text": (lambda path: path.write_text("no video"), "cannot be read as a video"),
    "noise": (
        lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
        "cannot be read as a video",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_video_among_others_is_listed_and_skipped(folder, capsys, kind):
    make, message = BROKEN[kind]
    make(folder / "broken.mp4")
    code, said = score(folder, out=folder.parent / "scores.jsonl")
    assert code == 1
    assert len(said) == 5
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("skipped: ")
    assert "broken.mp4" in first
    assert message in first
    assert last == "1 of 5 videos could not be scored."
    rows = [json.loads(line) for line in (folder.parent / "scores.jsonl").read_text().splitlines()]
    assert [row["error"] is not None for row in rows] == [False, False, True, False, False]
    assert rows[2]["flow_mq"] is None


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_video_alone_ends_in_one_line(tmp_path, monkeypatch, capsys, kind):
    make, message = BROKEN[kind]
    make(tmp_path / "broken.mp4")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["score", "broken.mp4"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: 'broken.mp4'")
    assert message in line


def test_a_folder_without_videos_and_a_file_that_is_missing_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no video"):
        score(tmp_path)
    with pytest.raises(VideoError, match=r"There is no video file .*no\.mp4"):
        score(tmp_path / "no.mp4")


def test_folders_are_searched_by_name_and_unfinished_files_left_out(folder):
    names = [path.relative_to(folder).as_posix() for path in find_videos([folder])]
    assert names == ["a.mp4", "b.mp4", "d.mkv", "inner/c.MP4"]
    twice = find_videos([folder / "b.mp4", folder, folder / "b.mp4"])
    assert [path.name for path in twice] == ["b.mp4", "a.mp4", "d.mkv", "c.MP4"]


def test_videos_of_one_shape_are_scored_together(folder, recording):
    code, said = score(
        folder, prompts=["abc"], rewards=["recording_reward:Recording"], batch_size=3
    )
    assert code == 0
    assert sorted(call[0] for call in recording) == [(1, 7, 3, 48, 48), (3, 5, 3, 48, 48)]
    assert all("Recording 3.0000" in line for line in said)


def test_batches_change_no_score_and_few_videos_are_held(folder, recording):
    for index in range(4):
        write_mp4(folder / f"odd{index}.mp4", noise(index, num_frames=10 + index), 8)
    lines = [sorted(score(folder, batch_size=size)[1]) for size in (1, 2, 8)]
    assert lines[0] == lines[1] == lines[2]
    assert len(lines[0]) == 8


def test_csv_has_a_row_for_every_video_in_their_order(folder, recording):
    write_mp4(folder / "a3.mp4", noise(num_frames=3), 8)
    out = folder.parent / "new" / "scores.csv"
    rewards = ["recording_reward:Recording", "flow_mq"]
    code, _ = score(folder, prompts=['a "red", 球'], rewards=rewards, out=out)
    assert code == 1
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [path.name for path in find_videos([folder])]
    assert [os.path.basename(row["path"]) for row in rows] == names
    assert {row["prompt"] for row in rows} == {'a "red", 球'}
    failed = rows[names.index("a3.mp4")]
    assert failed["Recording"] == ""
    assert float(failed["flow_mq"]) >= 0
    assert failed["error"].endswith("could not be scored by Recording.")
    assert rows[0]["Recording"] == "10.0"


TABLES = {
    "p.JSON": '[{"Path": "b.mp4", "PROMPT": ""}, {"path": "a.mp4", "prompt": "a\u2028cat"}]',
    "p.Tsv": "Path\tPrompt\nb.mp4\t\na.mp4\ta\u2028cat\n",
    "p.jsonl": '{"path": "a.mp4", "prompt": "a\u2028cat"}\n\n{"path": "b.mp4", "prompt": ""}\n',
    "p.csv": "\ufeffprompt,seed,path\r\na\u2028cat,1,a.mp4\r\n,2,b.mp4\r\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_prompts_are_read_from_a_table(folder, name):
    (folder / name).write_text(TABLES[name], encoding="utf-8", newline="")
    videos = [folder / "b.mp4", folder / "a.mp4"]
    assert find_prompts(videos, [], folder / name) == ["", "a\u2028cat"]
    with pytest.raises(ConfigError, match=r"says nothing about .*d\.mkv.*Add a line"):
        find_prompts([folder / "d.mkv"], [], folder / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"path": "a.mp4"}', "line 1: there is no 'prompt' among 'path'"),
        (b'\n{"path": "a.mp4", "prompt": 7}', "line 2, column 'prompt': it is 7, not a text"),
        (b'{"path": "a.mp4", "prompt": null}', "line 1, column 'prompt': it is null"),
        (b'{"path": ["a.mp4"], "prompt": "a"}', "line 1, column 'path': it is a list"),
        (b'{"path": "", "prompt": "a"}', "line 1, column 'path': it is empty"),
        (b"[1, 2]", "line 1: it is a list"),
        (b"a red ball", "line 1: it is no JSON"),
        (b"caf\xe9", r"byte 4 of line 1 is 0xe9"),
        (
            b'{"path": "a.mp4", "prompt": "a"}\n{"path": "./a.mp4", "prompt": "b"}',
            "line 2: './a.mp4' has another prompt",
        ),
    ],
)
def test_a_table_of_prompts_that_is_wrong_is_named_with_its_line(folder, content, message):
    (folder / "p.jsonl").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        find_prompts([folder / "a.mp4"], [], folder / "p.jsonl")


def test_a_csv_without_the_columns_and_a_missing_table_are_refused(folder):
    (folder / "p.csv").write_text("file,text\na.mp4,a cat\n")
    with pytest.raises(ConfigError, match=r"line 2: there is no 'path' among 'file', 'text'"):
        find_prompts([folder / "a.mp4"], [], folder / "p.csv")
    with pytest.raises(ConfigError, match="there is no prompt file"):
        find_prompts([folder / "a.mp4"], [], folder / "no.csv")
    with pytest.raises(ConfigError, match="both given"):
        find_prompts([folder / "a.mp4"], ["x"], folder / "p.csv")


def test_what_generate_wrote_beside_its_videos_says_their_prompts(folder):
    def entry(name, *prompts):
        scenes = [{"prompt": prompt, "chunks": 3, "cut": False} for prompt in prompts]
        return json.dumps({"file": name, "settings": {"scenes": scenes, "seed": 0}, "figures": {}})

    lines = [entry("a.mp4", "a red ball"), entry("b.mp4", "a cat wakes", "it runs"), '{"file": "d']
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    (folder / "manifest-1.jsonl").write_text('{"file": "d.mkv", "settings": {"seed": 3}}\n')
    names = ["a.mp4", "b.mp4", "d.mkv", "inner/c.MP4"]
    prompts = find_prompts([folder / name for name in names], [], None)
    assert prompts == ["a red ball", "a cat wakes | it runs", "", ""]


def test_a_reward_that_reads_prompts_wants_one_for_every_video(folder):
    with pytest.raises(ConfigError, match=r"attribute_ta compares .*a\.mp4' has none"):
        score(folder, rewards=["attribute_ta"])
    code, _ = score(folder, rewards=["attribute_ta"], prompts=["a red ball"])
    assert code == 0


def test_a_cache_makes_the_second_time_cost_nothing(folder, recording):
    options = {
        "rewards": ["recording_reward:Recording", "flow_mq"],
        "prompts": ["abc"],
        "cache": folder.parent / "cache",
    }
    first = score(folder, **options)
    calls = len(recording)
    assert Counter(score(folder, **options)[1]) == Counter(first[1])
    assert len(recording) == calls > 0


def test_a_cache_that_cannot_be_written_is_refused(folder):
    (folder.parent / "file").write_text("")
    with pytest.raises(OSError, match=r"the score cache .* cannot be written"):
        score(folder, cache=folder.parent / "file")


def test_options_of_rewards_are_set_as_in_a_recipe():
    terms = choose_terms(["sharpness_vq", "flow_mq"], [], ["rewards.sharpness_vq.options.top=1.0"])
    assert list(terms) == ["sharpness_vq", "flow_mq"]
    assert terms["sharpness_vq"].options == {"top": 1.0}
    assert terms["flow_mq"].options == {}
    both = choose_terms(
        ["strict", "sharpness_vq"],
        [],
        ["rewards.strict.name=sharpness_vq", "rewards.strict.options.top=0.1"],
    )
    assert (both["strict"].name, both["strict"].options) == ("sharpness_vq", {"top": 0.1})
    assert list(choose_terms([])) == ["sharpness_vq", "flow_mq"]


def test_a_recipe_brings_its_rewards_and_judges_with_their_options(tmp_path):
    assert set(choose_terms([], ["tiny"])) == {
        *("sharpness_vq", "flow_mq", "tiny_ta", "pixel_check"),
    }
    assert list(choose_terms(["pixel_check", "attribute_ta"], ["tiny"])) == [
        *("pixel_check", "attribute_ta"),
    ]
    recipe = tmp_path / "mine.toml"
    recipe.write_text("[rewards.best]\nname = 'sharpness_vq'\noptions = { top = 0.2 }\n")
    assert choose_terms([], [str(recipe)])["best"].options == {"top": 0.2}


def test_a_reward_of_whole_videos_scores_the_file():
    overrides = ["rewards.flow_mq.scope=video"]
    assert choose_terms(["flow_mq"], [], overrides)["flow_mq"].scope == "window"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"overrides": ["train.steps=3"]}, ConfigError, "only rewards.NAME.options"),
        ({"overrides": ["rewards.flw_mq.options.x=1"]}, ConfigError, "'flw_mq' is not scored"),
        ({"overrides": ["rewards.flow_mq"]}, ConfigError, "this is no assignment"),
        ({"rewards": ["no such"]}, LookupError, "there is no 'no such' among"),
        ({"recipes": ["tiyn"]}, ConfigError, "Did you mean 'tiny'"),
    ],
)
def test_rewards_that_cannot_be_are_refused(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        choose_terms(**({"rewards": ["flow_mq"]} | arguments))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "scores.txt"}, r"ends in neither of \.csv, \.jsonl"),
        ({"report": "report", "rewards": ["flow_mq"]}, "1 rewards and 4 videos are too few"),
        ({"prompts": ["a", "b"]}, "2 prompts for 4 videos"),
        ({"rewards": ["flow_mq"], "overrides": ["rewards.flow_mq.options.x=1"]}, "no option 'x'"),
    ],
)
def test_what_cannot_end_well_is_refused_before_anything_is_scored(
    folder, monkeypatch, options, message
):
    monkeypatch.setattr("astrolabe.score.read_mp4", None)
    paths = {name: folder.parent / options[name] for name in ("out", "report") if name in options}
    with pytest.raises(ConfigError, match=message):
        score(folder, **(options | paths))


def test_a_report_shows_how_the_rewards_agree(folder, recording, capsys):
    write_mp4(folder / "a3.mp4", noise(num_frames=3), 8)
    (folder / "broken.mp4").write_bytes(b"")
    code, said = score(
        folder,
        rewards=["sharpness_vq", "flow_mq", "recording_reward:Recording"],
        prompts=["<b>abc</b>"],
        report=folder.parent / "report",
    )
    assert code == 1
    assert "2 of 6 videos could not be scored (1 by Recording)." in capsys.readouterr().err
    (line,) = [line for line in said if "a3.mp4" in line]
    assert line.endswith("Recording n/a")
    assert said[-1].endswith("agreement.html")
    report = json.loads((folder.parent / "report" / "agreement.json").read_text())
    assert report["videos"] == 5
    assert report["rewards"] == ["sharpness_vq", "flow_mq", "Recording"]
    assert report["details"]["Recording"] == "letters"
    missing = [sample["name"] for sample in report["samples"] if None in sample["scores"].values()]
    assert [os.path.basename(name) for name in missing] == ["a3.mp4"]


def test_the_command_passes_everything_on(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder.parent)
    (folder / "p.csv").write_text(
        "path,prompt\n" + "".join(f"{path},a red ball\n" for path in find_videos([folder]))
    )
    arguments = ["score", "videos", "--recipe", "tiny", "--reward", "flow_mq"]
    arguments += ["--reward", "attribute_ta", "--prompts", "videos/p.csv", "--batch-size", "2"]
    arguments += ["--cache", "cache", "--out", "scores.jsonl", "--report", "report"]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    assert printed.err == ""
    assert "flow_mq" in printed.out.splitlines()[0]
    assert len((folder.parent / "scores.jsonl").read_text().splitlines()) == 4
    assert (folder.parent / "report" / "agreement.html").is_file()
    assert (folder.parent / "cache").is_dir()


def test_grouped_rewards_are_summed_in_fixed_units_where_there_are_no_groups():
    run = load(["tiny"], ["composite.normalise=group"])
    assert build_reward(run).normalise == "group"
    alone = build_reward(run, grouped=False)
    assert alone.normalise == "fixed"
    assert alone.statistics["flow_mq"] == (0.74, 0.015)


@pytest.mark.parametrize("prompt", ["=1+1", "+1 (2)", "- a cat", "@SUM(A1)", "\tcat", " =1", "＝1"])  # noqa: RUF001
def test_no_cell_of_a_table_is_a_formula_and_the_prompt_comes_back(tmp_path, recording, prompt):
    write_mp4(tmp_path / "=a.mp4", noise(), 8)
    out, again = tmp_path / "scores.csv", tmp_path / "again.csv"
    request = Request([tmp_path / "=a.mp4"], [prompt], rewards=["recording_reward:Recording"])
    perform(replace(request, out=out), lambda line: None)
    (row,) = csv.DictReader(io.StringIO(out.read_bytes().decode(), newline=""))
    assert row["prompt"] == f"'{prompt}"
    assert not any(cell[:1] in set("=+-@\t\r＝") for cell in row.values() if cell)  # noqa: RUF001
    perform(replace(request, prompts=(), prompt_file=out, out=again), lambda line: None)
    assert recording[-1][1] == [prompt]
