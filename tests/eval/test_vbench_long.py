import json
from pathlib import Path

import numpy as np
import pytest

from astrolabe_eval import read_mp4, write_mp4
from astrolabe_eval.errors import VBenchError
from astrolabe_eval.vbench_clips import (
    CLIP_SECONDS,
    clip_name,
    clip_seconds,
    clip_spans,
    prompt_of,
    split_folder,
    split_video,
)
from astrolabe_eval.vbench_long import (
    DEFAULT_WEIGHTS,
    DEV_WEIGHTS,
    fuse_clips,
    fuse_consistency,
    map_quantile,
)
from astrolabe_eval.vbench_prompts import VBenchPrompt

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/vbench/long_golden.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["split"])
def test_clips_begin_and_end_where_those_of_vbench_do(case):
    spans = clip_spans(case["frames"], case["fps"], case["duration"])
    assert [list(span) for span in spans] == [clip[1:] for clip in case["clips"]]
    short = case["frames"] < case["fps"] * case["duration"]
    names = [clip_name("p-0", None if short else index) for index in range(len(spans))]
    assert names == [clip[0] for clip in case["clips"]]


@pytest.mark.parametrize(("name", "prompt"), GOLDEN["prompt_from_filename"])
def test_the_prompt_is_read_from_the_name_of_a_clip(name, prompt):
    assert prompt_of(name) == prompt


def test_a_video_takes_the_longest_clips_of_its_dimensions():
    assert GOLDEN["clip_length_mix"] == CLIP_SECONDS
    assert clip_seconds(["overall_consistency", "aesthetic_quality", "imaging_quality"]) == 10
    assert clip_seconds(["color"]) == 2


@pytest.mark.parametrize("case", GOLDEN["reorganize"])
def test_clips_are_averaged_as_the_public_code_does(case):
    result = fuse_clips(case["detailed"], case["dimension"])
    assert result.score == pytest.approx(case["overall"], abs=1e-15)
    assert result.clips == case["detailed"]
    assert result.videos == case["per_long_video"]


def test_by_video_each_long_video_counts_once():
    case = GOLDEN["reorganize"][0]
    result = fuse_clips(case["detailed"], grouping="video")
    rows = {}
    for clip in case["detailed"]:
        rows.setdefault(clip["video_path"].split("/")[3], []).append(clip["video_results"])
    assert [len(row) for row in rows.values()] == [15, 15, 4]
    assert result.score == pytest.approx(np.mean([np.mean(row) for row in rows.values()]))
    assert result.videos[0]["video_path"] == "/v/a prompt 0-0.mp4"


def test_filtered_clips_are_joined_by_name_up_to_the_underscore():
    clips = [("a-0_000", 1.0), ("a-0_001", 0.0), ("b-0_000", 1.0)]
    entries = [
        {"video_path": f"/v/filtered_clips/{name}.mp4", "video_results": score}
        for name, score in clips
    ]
    result = fuse_clips(entries)
    assert result.score == 0.75
    assert result.videos[0] == {"video_path": "/v/a-0.mp4", "video_results": 0.5}


@pytest.mark.parametrize("case", GOLDEN["fuse"])
def test_consistency_is_fused_as_in_vbench(case):
    weights = DEV_WEIGHTS if case["dev_flag"] else DEFAULT_WEIGHTS
    result = fuse_consistency(case["dimension"], case["inclip"], case["clip2clip"], weights=weights)
    assert result.score == pytest.approx(case["overall"], abs=1e-15)
    for video, expected in zip(result.videos, case["detail"], strict=True):
        assert video["video_path"] == expected["video_path"]
        for name in ("inclip_score", "clip2clip_score", "mapped_clip2clip_score", "video_results"):
            assert video[name] == pytest.approx(expected[name], abs=1e-15)


def test_mapping_tables_are_those_of_vbench():
    for short, name in (("sb", "subject_consistency"), ("bg", "background_consistency")):
        for score, mapped in GOLDEN["mapping_tables"][short].items():
            assert map_quantile(name, float(score)) == pytest.approx(mapped, abs=1e-15)
    with pytest.raises(VBenchError, match="no mapping for 'color'"):
        map_quantile("color", 0.5)


def test_nothing_to_average_is_refused():
    with pytest.raises(VBenchError, match="no clips"):
        fuse_clips([])
    with pytest.raises(VBenchError, match="no videos"):
        fuse_consistency("subject_consistency", [], [])


def _levels(path):
    return [round(float(frame.mean())) for frame in read_mp4(path).frames]


def test_a_video_is_cut_into_clips_and_the_last_one_overlaps(tmp_path):
    levels = [20 + 8 * index for index in range(21)]
    video = np.stack([np.full((3, 16, 16), level, np.uint8) for level in levels])
    write_mp4(tmp_path / "a cat-0.mp4", video, 4.5, crf=1)
    clips = split_video(tmp_path / "a cat-0.mp4", tmp_path / "split_clip", seconds=2, crf=1)
    assert [clip.relative_to(tmp_path).as_posix() for clip in clips] == [
        "split_clip/a cat-0/a cat-0_000.mp4",
        "split_clip/a cat-0/a cat-0_001.mp4",
        "split_clip/a cat-0/a cat-0_002.mp4",
    ]
    for clip, expected in zip(clips, (levels[:8], levels[8:16], levels[13:]), strict=True):
        assert _levels(clip) == pytest.approx(expected, abs=3)
    assert read_mp4(clips[0]).fps == 4  # decimals dropped


def test_a_folder_is_cut_by_the_dimensions_of_each_prompt(tmp_path, moving_square):
    for name in ("a cat-0.mp4", "a person runs-0.mp4"):
        write_mp4(tmp_path / name, moving_square(), 2)
    (tmp_path / "a cat-1.mp4").write_bytes(b"no video")
    prompts = [
        VBenchPrompt("a cat", ("color",)),
        VBenchPrompt("a person runs", ("human_action",)),
    ]
    result = split_folder(tmp_path, prompts)
    counts = {path.name: len(clips) for path, clips in result.clips.items()}
    assert counts == {"a cat-0.mp4": 3, "a person runs-0.mp4": 1}
    assert (tmp_path / "split_clip/a person runs-0/a person runs-0_full.mp4").is_file()
    assert [path.name for path in result.unreadable] == ["a cat-1.mp4"]
    own = split_folder(tmp_path)
    assert {len(clips) for clips in own.clips.values()} == {3}


def test_videos_of_other_prompts_are_refused_before_anything_is_cut(tmp_path, moving_square):
    with pytest.raises(VBenchError, match=r"no \.mp4"):
        split_folder(tmp_path)
    write_mp4(tmp_path / "a cat-0.mp4", moving_square(), 2)
    with pytest.raises(VBenchError, match="'a cat', which is no prompt"):
        split_folder(tmp_path, [VBenchPrompt("a dog", ("color",))])
    assert not (tmp_path / "split_clip").exists()


def test_clips_of_a_video_that_breaks_off_are_taken_away(tmp_path, moving_square, monkeypatch):
    path = tmp_path / "a-0.mp4"
    write_mp4(path, moving_square(), 2)
    whole = split_video(path, tmp_path / "out", seconds=2)
    assert len(whole) == 3
    monkeypatch.setattr("astrolabe_eval.vbench_clips.measure", lambda video: (2.0, 12))
    with pytest.raises(ValueError, match="announces 12 frames and holds 9"):
        split_video(path, tmp_path / "out", seconds=2)
    assert not any(clip.exists() for clip in whole[:2])
