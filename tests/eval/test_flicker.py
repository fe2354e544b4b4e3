from pathlib import Path

import numpy as np
import pytest

from astrolabe_eval import VideoError, read_mp4, write_mp4
from astrolabe_eval.errors import VBenchError
from astrolabe_eval.flicker import score_flickering, temporal_flickering, write_flickering
from astrolabe_eval.frame_stream import measure, stream_frames
from astrolabe_eval.vbench import read_results, totals

GOLDEN = Path(__file__).parents[1] / "golden/vbench"


def test_one_video_scores_as_in_vbench():
    with np.load(GOLDEN / "temporal_flickering_golden.npz") as golden:
        frames, score = golden["frames"], float(golden["score"])
    assert temporal_flickering(frames.transpose(0, 3, 1, 2)) == pytest.approx(score, abs=1e-7)


def test_a_still_video_has_no_flicker_and_a_strobe_has_only_that():
    still = np.full((4, 3, 8, 8), 90, np.uint8)
    strobe = np.zeros_like(still)
    strobe[::2] = 255
    assert temporal_flickering(still) == 1
    assert temporal_flickering(strobe) == 0


def test_a_single_frame_is_refused():
    with pytest.raises(ValueError, match="at least 2 frames"):
        temporal_flickering(np.zeros((1, 3, 8, 8), np.uint8))


def _blocks(seed):
    """Eight frames of coloured noise in blocks, so that the conversion of colours matters."""
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 3, 4, 5), dtype=np.uint8)
    return blocks.repeat(8, axis=2).repeat(8, axis=3)


def test_a_file_scores_as_the_wheel_of_vbench_scores_it():
    recorded = read_results(GOLDEN / "flicker_eval_results.json").scores["temporal_flickering"]
    result = score_flickering([GOLDEN / "flicker.mp4"])
    assert result.score == pytest.approx(recorded, abs=1e-6)
    # By its own tag (BT.709) the same file has other colours and another score.
    tagged = np.stack(list(stream_frames(GOLDEN / "flicker.mp4")))
    assert abs(temporal_flickering(tagged) - recorded) > 1e-4


def test_frames_come_one_by_one_as_they_come_together():
    path = GOLDEN / "flicker.mp4"
    fps, count = measure(path)
    whole = read_mp4(path)
    assert (fps, count) == (whole.fps, len(whole.frames))
    np.testing.assert_array_equal(np.stack(list(stream_frames(path))), whole.frames)


@pytest.mark.parametrize("read", [measure, lambda path: next(stream_frames(path))])
def test_files_that_are_no_videos_are_refused(tmp_path, read):
    path = tmp_path / "video.mp4"
    with pytest.raises(VideoError, match="no video file"):
        read(path)
    path.write_bytes(b"no video")
    with pytest.raises(VideoError, match="cannot be read"):
        read(path)
    path.write_bytes((GOLDEN / "flicker.mp4").read_bytes()[:-100])
    with pytest.raises(VideoError, match="cut short"):
        read(path)


def test_results_are_read_by_the_totals_and_say_that_nothing_was_filtered(tmp_path):
    write_mp4(tmp_path / "a cat-0.mp4", _blocks(0), 8)
    (tmp_path / "a cat-1.mp4").write_bytes(b"no video")
    result = score_flickering(sorted(tmp_path.glob("*.mp4")))
    path = write_flickering(tmp_path / "out", result)
    assert path.name == "temporal_flickering_eval_results.json"
    found = read_results(tmp_path / "out")
    assert found.scores == {"temporal_flickering": result.score}
    note = found.notes["temporal_flickering"]
    assert note["static_filter"] is False
    assert list(note["unreadable"]) == [str(tmp_path / "a cat-1.mp4")]
    assert totals(found.scores).quality is None


def test_nothing_readable_is_an_error(tmp_path):
    with pytest.raises(VBenchError, match="at least one"):
        score_flickering([])
    with pytest.raises(VBenchError, match=r"no video file .*absent\.mp4"):
        score_flickering([tmp_path / "absent.mp4"])
