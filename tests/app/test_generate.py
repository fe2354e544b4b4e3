"""astrolabe generate: scenes, beginnings, what is there already, many processes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from astrolabe.cli import main
from astrolabe.errors import ConfigError
from astrolabe.generate import _chunks
from astrolabe.generation import read_scripts
from astrolabe.jobs import Job, Manifest, Part, batches
from astrolabe_eval import Mp4Writer, read_mp4, write_mp4
from astrolabe_rollout.chunks import ChunkStream
from astrolabe_rollout.tiny import build_tiny


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def random_model(small):
    return ["--set", small[0], "--set", small[1]]


def run(*arguments):
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return end.value.code


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_scenes_have_their_lengths_and_are_in_the_manifest(folder, random_model):
    script = "a red circle bounces[1s] | a blue square spins[1.5s#] | a blue square pulses"
    assert run("generate", script, "--frames", "33", *random_model) == 0
    video = read_mp4(folder / "videos" / "000-a-red-circle-bounces.mp4")
    assert len(video.frames) == 9 + 12 * 5  # 1, 2 and 3 chunks
    entry = json.loads((folder / "videos" / "manifest.jsonl").read_text())
    assert entry["settings"]["scenes"] == [
        {"prompt": "a red circle bounces", "chunks": 1, "cut": False},
        {"prompt": "a blue square spins", "chunks": 2, "cut": True},
        {"prompt": "a blue square pulses", "chunks": 3, "cut": False},
    ]
    assert entry["settings"]["model"]["name"] == "tiny"
    assert entry["figures"]["frames"] == 69


def test_what_is_there_is_not_made_again_and_never_lost(folder, random_model, capsys):
    command = ["generate", "a red circle", "a blue square", "--frames", "9", *random_model]
    assert run(*command) == 0
    first, second = (folder / "videos" / name for name in files(folder / "videos")[:2])
    before = first.stat().st_mtime_ns
    second.unlink()
    capsys.readouterr()
    assert run(*command) == 0
    captured = capsys.readouterr()
    assert "1 of 2 videos are there already" in captured.err
    assert captured.out.splitlines() == [f"videos/{second.name}"]
    assert first.stat().st_mtime_ns == before
    assert run(*command, "--seed", "5") == 2
    assert "made with other settings" in capsys.readouterr().err
    assert run(*command, "--seed", "5", "--overwrite") == 0
    assert first.stat().st_mtime_ns > before


def test_a_seed_gives_the_same_video_in_any_batch_and_process(folder, random_model, monkeypatch):
    prompts = ["a red circle", "a blue square moves left on dark ground", "a triangle"]
    command = ["generate", *prompts, "--frames", "9", *random_model]
    assert run(*command, "--out", "one") == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):  # they share the work, and say nothing to each other
        monkeypatch.setenv("RANK", rank)
        assert run(*command, "--out", "two", "--batch-size", "1") == 0
    assert files(folder / "two") == [
        *files(folder / "one")[:3],
        "manifest-1.jsonl",
        "manifest.jsonl",
    ]
    names = files(folder / "one")[:3]
    one, two = (
        np.stack([read_mp4(folder / run_ / name).frames.astype(int) for name in names])
        for run_ in ("one", "two")
    )
    # The codec of the file makes more of rounding than the model does.
    assert abs(one - two).mean() < 0.1 * abs(one - np.roll(two, 1, axis=0)).mean()


def test_videos_go_on_from_a_picture_or_a_video(folder, random_model):
    assert run("generate", "a red circle", "--frames", "33", "--out", "made", *random_model) == 0
    source = folder / "made" / "000-a-red-circle.mp4"
    again = ["generate", "a red circle", "--frames", "9", "--begin", str(source), *random_model]
    assert run(*again) == 0
    frames = read_mp4(folder / "videos" / "000-a-red-circle.mp4").frames
    assert len(frames) == 21 + 12  # six latent frames fit beside a chunk
    write_mp4(folder / "picture.mp4", read_mp4(source).frames[:1], 16)
    begin = ["--begin", "picture.mp4", *random_model]
    assert run("generate", "a red circle", "--frames", "9", *begin, "--out", "still") == 0
    assert len(read_mp4(folder / "still" / "000-a-red-circle.mp4").frames) == 1 + 12


def test_interactive_scripts_change_their_prompt_at_chunks(folder, random_model, capsys):
    (folder / "scripts.jsonl").write_text('{"prompts": ["a red circle", "a blue square"]}\n')
    command = ["generate", "--file", "scripts.jsonl", "--switch-frames", "4", *random_model]
    assert run(*command, "--frames", "33") == 0
    entry = json.loads((folder / "videos" / "manifest.jsonl").read_text())
    assert [scene["chunks"] for scene in entry["settings"]["scenes"]] == [2, 1]
    assert run(*command, "--frames", "21", "--out", "short") == 2
    assert "no chunk is left for 'a blue square'" in capsys.readouterr().err


def test_videos_of_a_batch_have_scenes_and_cuts_of_their_own():
    model = replace(build_tiny(seed=0), switch="recache").freeze()
    still = Job("still", (Part("a red circle", 4, False),), 1)
    script = Job("script", (Part("a red circle", 2, False), Part("a blue square", 2, False)), 2)
    cut = Job("cut", (Part("a red circle", 3, True), Part("a red circle", 1, True)), 3)
    (batch,) = batches([still, script, cut], 8)

    def film(jobs):
        stream = ChunkStream(model, [job.seed for job in jobs], decode=False)
        return torch.cat([chunk.latents for chunk in _chunks(model, stream, jobs, None)], 1)

    together = film(batch)
    for row, job in enumerate(batch):
        torch.testing.assert_close(film([job])[0], together[row], rtol=0, atol=1e-3)
    uncut = film([Job("uncut", (Part("a red circle", 4, False),), 3)])[0]
    assert (uncut - together[2])[9:].abs().max() > 0.02
    assert (uncut - together[2])[:9].abs().max() < 1e-3


TABLES = {
    "p.CSV": 'prompt,id\n"a red circle, moving",1\na blue square,2\n',
    "p.jsonl": '\ufeff{"prompt": "a red circle, moving"}\n{"prompt": "a blue square"}\n',
    "p.json": '["a red circle, moving", {"prompt": "a blue square"}]',
}


@pytest.mark.parametrize("name", TABLES)
def test_prompts_of_a_table_are_filmed_and_not_its_header(tmp_path, name):
    (tmp_path / name).write_text(TABLES[name], encoding="utf-8")
    scenes, interactive = read_scripts([], tmp_path / name, [])
    assert [scene.prompt for (scene,) in scenes] == ["a red circle, moving", "a blue square"]
    assert interactive == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.csv", "prompt\na circle, moving\n", r"p\.csv', line 2: it has 2 cells for 1"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompts": ["b"]}\n', "line 1: it is no script"),
        ("p.txt", "a cat\n\na [3x] | b\n", r"p\.txt', line 3, column 'prompt': the scenes do not"),
        ("p.JSONL", '{"prompts": ["a", "b"]}', "line 1 has 2 prompts, but there are 0 switch"),
    ],
)
def test_a_list_that_does_not_fit_is_refused_before_the_model(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=words):
        read_scripts([], tmp_path / name, [])


def test_switches_need_interactive_scripts(tmp_path):
    (tmp_path / "p.txt").write_text("a\n")
    with pytest.raises(ValueError, match="--switch-frames belongs to --file"):
        read_scripts([], tmp_path / "p.txt", [4])


def test_many_seeds_of_a_prompt_have_names_of_their_own(folder, random_model):
    assert run("generate", "a", "--frames", "9", "--num-seeds", "2", *random_model) == 0
    assert files(folder / "videos")[:2] == ["000-a-s0.mp4", "000-a-s1.mp4"]


JOBS = [Job(f"{number:03d}-a", (Part("a", 1, False),), number) for number in range(3)]


def made(folder):
    """A folder in which all of `JOBS` are made; return its manifest."""
    manifest = Manifest(folder, {})
    for job in JOBS:
        (folder / f"{job.name}.mp4").touch()
        manifest.add(job, {})
    return manifest.path


def test_a_video_after_a_line_that_a_kill_cut_off_is_known(folder):
    path = made(folder)
    path.write_bytes(path.read_bytes()[:-9])
    assert Manifest(folder, {}).missing(JOBS[:2], overwrite=False) == []
    Manifest(folder, {}).add(JOBS[2], {})
    again = Manifest(folder, {})
    assert again.missing(JOBS, overwrite=False) == []
    assert [text.split(" (")[0] for text in again.damaged] == [f"line 3 of {path} is damaged"]


@pytest.mark.parametrize("bad", [b'\xff"file": 1}\n', b"[]\n", b'{"file": "001-a.mp4"}\n', b"\0\n"])
def test_a_damaged_line_of_the_manifest_is_named_where_it_is_in_the_way(folder, bad):
    path = made(folder)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + bad + lines[2])
    manifest = Manifest(folder, {})
    assert manifest.missing([JOBS[0], JOBS[2]], overwrite=False) == []
    told = r"001-a\.mp4' exists and nothing is known of it: line 2 of .*manifest\.jsonl is damaged"
    with pytest.raises(ConfigError, match=told):
        manifest.missing(JOBS, overwrite=False)


@pytest.mark.parametrize("change", [("\n", "\r\n"), ("\n", "\n\n")])
def test_a_manifest_that_went_through_an_editor_is_read(folder, change):
    path = made(folder)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_text().replace(*change).encode())
    again = Manifest(folder, {})
    assert again.missing(JOBS, overwrite=False) == []
    assert again.damaged == []


PROMPTS = ["a red circle", "a blue square moves left", "a triangle", "a red circle", "a cat"]


@pytest.fixture
def written(monkeypatch):
    """Frames of each file as they were made, before a codec."""
    frames = {}

    class Writer(Mp4Writer):
        def __enter__(self):
            frames[self.path] = []
            return super().__enter__()

        def add(self, video):
            frames[self.path].append(video)
            super().add(video)

    monkeypatch.setattr("astrolabe.generate.Mp4Writer", Writer)
    return lambda path: np.concatenate(frames[path])


def test_a_kill_in_the_middle_of_a_batch_changes_no_pixel(
    folder, random_model, monkeypatch, written
):
    command = ["generate", *PROMPTS, "--frames", "9", "--batch-size", "3", *random_model]
    assert run(*command) == 0
    paths = sorted(Path("videos").glob("*.mp4"))
    whole = [written(path) for path in paths]
    for path in paths[1:]:
        path.unlink()
    add, told = Manifest.add, []

    def dies(self, *arguments):
        if len(told) == 1:
            raise KeyboardInterrupt
        told.append(arguments)
        add(self, *arguments)

    monkeypatch.setattr(Manifest, "add", dies)
    assert run(*command) == 130
    monkeypatch.setattr(Manifest, "add", add)
    assert [path for path in paths if path.exists()] == paths[:1]
    assert run(*command) == 0
    for path, frames in zip(paths, whole, strict=True):
        assert (written(path) == frames).all()


def test_videos_that_were_changed_are_named_kept_and_made_again(
    folder, random_model, capsys, written
):
    command = ["generate", *PROMPTS, "--frames", "9", "--batch-size", "3", *random_model]
    assert run(*command) == 0
    paths = sorted(Path("videos").glob("*.mp4"))
    whole, other = [written(path) for path in paths], paths[4].read_bytes()
    paths[0].write_bytes(b"")
    paths[1].write_bytes(paths[1].read_bytes()[:-1] + b"x")
    paths[2].unlink()
    paths[2].mkdir()
    paths[3].write_bytes(other)
    capsys.readouterr()
    assert run(*command) == 0
    told = capsys.readouterr().err
    assert f"{str(paths[0])!r} does not hold what was written" in told
    assert f"{str(paths[2])!r} is a folder" in told
    assert told.count("made again.") == 4
    for path, frames in zip(paths, whole, strict=True):
        assert (written(path) == frames).all()
    kept = sorted(Path("videos/damaged").iterdir())
    assert len(kept) == 4
    assert kept[3].read_bytes() == other
    capsys.readouterr()
    assert run(*command) == 0
    assert "5 of 5 videos are there already" in capsys.readouterr().err


def test_videos_of_which_no_digest_was_noted_are_believed_and_that_is_said(folder):
    made(folder)
    manifest = Manifest(folder, {})
    assert manifest.missing(JOBS, overwrite=False) == []
    (note,) = manifest.notes
    assert "3 videos" in note
    assert "believed" in note
