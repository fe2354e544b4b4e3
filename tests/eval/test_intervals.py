import json

import numpy as np
import pytest
import torch

from astrolabe_eval import VideoError, write_mp4
from astrolabe_eval.drift import drift_curves, first_last_consistency, thumbnails
from astrolabe_eval.interval_scores import TRUNCATED, score_intervals
from astrolabe_eval.intervals import Interval, fixed_intervals, sampled_frames, scene_intervals


def _video(levels):
    """One grey frame of each level."""
    levels = np.asarray(levels, dtype=np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (len(levels), 3, 16, 16)).copy()


def _level(batch):
    """Scores the mean level, and how many words the prompt has."""
    batch["score", "level"] = batch["video", "pixels"].float().mean((1, 2, 3, 4)).unsqueeze(-1)
    batch["score", "words"] = torch.tensor(
        [[len(text.split())] for text in batch["prompt", "text"]]
    )
    return batch


def test_frames_are_taken_by_time_and_none_outside_the_interval():
    second = Interval(10, 20, "a")
    indices = second.frame_indices(fps=16, num_frames=480, sample_fps=2)
    assert indices == list(range(160, 320, 8))
    # 23.976 frames per second: each frame begins at or after its time, and before the end.
    for start in (0.0, 10.0, 20.0):
        times = np.array(Interval(start, start + 10, "a").frame_indices(23.976, 720, 2)) / 23.976
        assert (times >= start - 1e-6).all()
        assert (times < start + 10).all()
        assert len(times) == 20
    assert Interval(0, 1, "a").frame_indices(fps=4, num_frames=100, sample_fps=30) == [0, 1, 2, 3]
    assert Interval(0, 10, "a").frame_indices(fps=4, num_frames=3, sample_fps=2) == [0, 2]
    # 0.3 s times 10 frames per second is not quite 3.
    assert Interval(0.3, 0.6, "a").frame_indices(fps=10, num_frames=9, sample_fps=10) == [3, 4, 5]


@pytest.mark.parametrize(
    ("seconds", "count", "end"),
    [(30.0, 3, 30), (30.0625, 3, 30), (25, 3, 25), (24.9, 2, 20), (3, 1, 3)],
)
def test_a_rest_of_half_an_interval_counts(seconds, count, end):
    parts = fixed_intervals(seconds, ["a"])
    assert len(parts) == count
    assert parts[-1].end == end


def test_each_scene_has_its_own_prompt():
    parts = fixed_intervals(59.8, list("abcdef"))
    assert [part.prompt for part in parts] == list("abcdef")
    assert parts[-1] == Interval(50, 59.8, "f")
    with pytest.raises(ValueError, match="ends before scene 6 begins, at 50 s"):
        fixed_intervals(50, list("abcdef"))
    parts = scene_intervals(81, 16, ["a", "b", "c"], [33, 45])
    assert [part.frame_indices(16, 81, 16) for part in parts] == [
        list(range(33)),
        list(range(33, 45)),
        list(range(45, 81)),
    ]


@pytest.mark.parametrize("borders", [[0, 5], [5, 5], [6, 5], [5, 81]])
def test_borders_must_rise_inside_the_video(borders):
    with pytest.raises(ValueError, match="do not rise"):
        scene_intervals(81, 16, ["a", "b", "c"], borders)


def test_wrong_requests_are_refused():
    with pytest.raises(ValueError, match="2 prompts"):
        scene_intervals(81, 16, ["a", "b"], [5, 9])
    with pytest.raises(ValueError, match="Give one for the video"):
        fixed_intervals(10, [])
    with pytest.raises(ValueError, match="above 0"):
        fixed_intervals(10, ["a"], length=0)


def test_intervals_are_scored_with_their_prompts_and_averaged():
    # At 4 frames per second two of them are looked at in each second: every other frame.
    falling = _video([100] * 40 + [80] * 40 + [60] * 24)
    steady = _video([50] * 80)
    prompts = {"falling": ["one", "one two", "one two three"], "steady": ["same"]}
    result = score_intervals(
        {"falling": falling, "steady": steady}, _level, prompts, model="mean level", fps=4
    )
    rows = result["videos"]["falling"]["intervals"]
    assert [row["scores"] for row in rows] == [
        {"level": 100, "words": 1},
        {"level": 80, "words": 2},
        {"level": 60, "words": 3},
    ]
    assert [row["frames"] for row in rows] == [20, 20, 12]
    assert rows[2]["end"] == 26
    falling_mean = (100 * 20 + 80 * 20 + 60 * 12) / 52
    assert result["videos"]["falling"]["overall"]["level"] == pytest.approx(falling_mean)
    assert result["overall"]["level"] == pytest.approx((falling_mean + 50) / 2)
    assert [row["videos"] for row in result["intervals"]] == [2, 2, 1]
    assert [row["scores"]["level"] for row in result["intervals"]] == [75, 65, 60]
    assert json.loads(json.dumps(result)) == result
    assert result["protocol"] == {
        "model": "mean level",
        "sample_fps": 2.0,
        "borders": "fixed",
        "interval_seconds": 10.0,
        "videos": 2,
        "truncated_prompts": None,
        "prompts": 4,
    }


def test_scenes_of_other_lengths_take_their_borders():
    video = _video([200] * 10 + [40] * 30)
    result = score_intervals(
        {"a": video}, _level, {"a": ["x", "y"]}, model="m", fps=4, borders={"a": [10]}, sample_fps=4
    )
    assert [row["scores"]["level"] for row in result["videos"]["a"]["intervals"]] == [200, 40]
    assert result["protocol"]["borders"] == "scenes"
    assert result["protocol"]["interval_seconds"] is None


def test_a_file_and_its_pixels_score_alike(tmp_path):
    video = _video(range(40, 240, 5))
    path = tmp_path / "a.mp4"
    write_mp4(path, video, 4, crf=1)
    scores = [
        score_intervals({"a": source}, _level, {"a": ["x"]}, model="m", fps=4, length=5)
        for source in (path, video)
    ]
    levels = [[row["scores"]["level"] for row in each["intervals"]] for each in scores]
    assert len(levels[0]) == 2
    assert levels[0] == pytest.approx(levels[1], abs=2)
    np.testing.assert_allclose(sampled_frames(path, [3, 8]), video[[3, 8]], atol=3)
    with pytest.raises(VideoError, match="ends before its frame 40"):
        sampled_frames(path, [3, 40])


def test_a_scorer_may_tell_which_prompts_it_cut():
    def cutting(batch):
        _level(batch)
        batch[TRUNCATED] = batch["score", "words"].squeeze(-1) > 2
        return batch

    videos = {name: _video([9] * 80) for name in "ab"}
    prompts = {"a": ["one", "one two three"], "b": ["one", "one two three"]}
    result = score_intervals(videos, cutting, prompts, model="m", fps=4)
    assert result["protocol"]["truncated_prompts"] == 1
    assert result["protocol"]["prompts"] == 2


def test_what_cannot_be_scored_is_refused_with_its_name():
    videos, prompts = {"a": _video([9] * 40)}, {"a": ["x"]}
    with pytest.raises(ValueError, match="no videos"):
        score_intervals({}, _level, {}, model="m")
    with pytest.raises(ValueError, match="'a' has no prompt"):
        score_intervals(videos, _level, {}, model="m", fps=4)
    with pytest.raises(ValueError, match="'a' has no border"):
        score_intervals(videos, _level, prompts, model="m", fps=4, borders={})
    with pytest.raises(ValueError, match="fps is None"):
        score_intervals(videos, _level, prompts, model="m")
    with pytest.raises(ValueError, match="sample_fps is 0"):
        score_intervals(videos, _level, prompts, model="m", fps=4, sample_fps=0)
    with pytest.raises(ValueError, match=r"no frame in 0\.1 to 0\.2 s"):
        score_intervals(videos, _level, prompts, model="m", fps=4, length=0.1)

    def broken(batch):
        batch["score", "level"] = torch.full((len(batch), 1), torch.inf)
        return batch

    with pytest.raises(ValueError, match="'level' is inf"):
        score_intervals(videos, broken, prompts, model="m", fps=4)


def test_drift_is_the_change_from_the_first_clip_to_the_last():
    gains = (0, 4, 8, 2, 6, 1, 7, 4)
    videos = {
        str(number): _video(np.repeat([start, start - 10, start - 20 - gain], 8))
        for number, (gain, start) in enumerate(zip(gains, range(60, 220, 20), strict=True))
    }
    prompts = {name: [f"prompt {name}"] for name in videos}
    result = score_intervals(videos, _level, prompts, model="m", fps=4, length=2)
    curve = drift_curves(result)["level"]
    assert curve["index"] == [0, 1, 2]
    assert curve["videos"] == curve["prompts"] == [8, 8, 8]
    assert curve["mean"] == [130, 120, 106]
    assert (curve["change"], curve["change_prompts"]) == (-24, 8)
    low, high = curve["change_interval"]
    assert -28 <= low < -24 < high <= -20
    # The videos differ far more than they change: the pairs know better than the two means.
    assert high - low < (curve["interval"][0][1] - curve["interval"][0][0]) / 4


def test_videos_of_one_prompt_say_little_of_others_over_time():
    videos = {str(start): _video([start] * 8 + [start - 9] * 8) for start in range(50, 170, 10)}
    prompts = {name: [f"prompt {int(name) % 20}"] for name in videos}
    result = score_intervals(videos, _level, prompts, model="m", fps=4, length=2)
    curve = drift_curves(result)["level"]
    assert (curve["videos"], curve["prompts"], curve["interval"]) == ([12, 12], [2, 2], [None] * 2)
    assert (curve["change"], curve["change_interval"], curve["change_prompts"]) == (-9, None, 2)


def test_a_clip_without_a_score_is_left_out_of_the_curve():
    videos = {str(index): _video([9 + index] * 16) for index in range(3)}
    prompts = {name: [name] for name in videos}
    result = score_intervals(videos, _level, prompts, model="m", fps=4, length=2)
    result["videos"]["1"]["intervals"][1]["scores"]["level"] = float("nan")
    curve = drift_curves(result)["level"]
    assert curve["videos"] == [3, 2]
    assert curve["mean"] == [10, 10]
    assert curve["change"] == 0


def test_an_interval_that_cannot_be_scored_is_null_counted_and_in_no_mean():
    def fails_on_dark(batch):
        level = batch["video", "pixels"].float().mean((1, 2, 3, 4)).unsqueeze(-1)
        return batch.set(("score", "level"), torch.where(level < 20, torch.nan, level))

    videos = {
        "a": _video([100] * 8 + [60] * 8 + [10] * 4),
        "b": _video([40] * 8 + [10] * 8),
        "c": _video([10] * 16),
    }
    prompts = {name: [name] for name in videos}
    result = score_intervals(videos, fails_on_dark, prompts, model="m", fps=4, length=2)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert [part["scores"]["level"] for part in result["videos"]["a"]["intervals"]] == [
        100,
        60,
        None,
    ]
    overall = [row["overall"]["level"] for row in result["videos"].values()]
    assert overall == [80, 40, None]
    assert (result["overall"], result["unscored"]) == ({"level": 60}, {"level": 1})
    found = [(part["videos"], part["unscored"]["level"]) for part in result["intervals"]]
    assert found == [(3, 1), (3, 2), (1, 1)]
    assert [part["scores"]["level"] for part in result["intervals"]] == [70, 60, None]
    curve = drift_curves(result)["level"]
    assert (curve["mean"], curve["videos"]) == ([70, 60, None], [2, 1, 0])
    assert curve["change"] == -40  # of the one video with two scored clips


def test_one_short_video_has_a_curve_without_intervals():
    result = score_intervals({"a": _video([9] * 8)}, _level, {"a": ["x"]}, model="m", fps=4)
    curve = drift_curves(result)["level"]
    assert (curve["mean"], curve["interval"]) == ([9.0], [None])
    assert (curve["change"], curve["change_interval"]) == (None, None)


def test_a_video_that_turns_into_its_negative_is_inconsistent():
    pattern = np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32), dtype=np.uint8)
    same = pattern.repeat(48, axis=0)
    turned = np.concatenate([same[:24], 255 - same[24:]])
    assert first_last_consistency(same, fps=8) == pytest.approx(1)
    assert first_last_consistency(turned, fps=8) == pytest.approx(-1)
    assert thumbnails(same[:2]).shape == (2, 768)


def test_consistency_takes_any_embedder_and_only_the_two_clips():
    seen = []

    def embed(frames):
        seen.append(frames[:, 0, 0, 0].tolist())
        angle = np.deg2rad(frames[:, 0, 0, 0].astype(float))
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)

    video = _video([0] * 16 + [200] * 16 + [60] * 16)
    assert first_last_consistency(video, fps=8, embed=embed) == pytest.approx(0.5)
    assert seen == [[0, 0, 0, 0, 60, 60, 60, 60]]
    with pytest.raises(ValueError, match="row of zeros"):
        first_last_consistency(video, fps=8, embed=lambda frames: np.zeros((len(frames), 2)))
    with pytest.raises(ValueError, match=r"embed gave \(3, 2\) for 8"):
        first_last_consistency(video, fps=8, embed=lambda frames: np.ones((3, 2)))
    with pytest.raises(ValueError, match="no two clips"):
        first_last_consistency(video, fps=8, seconds=4)
