import av
import numpy as np
import pytest

from astrolabe_eval import Mp4Writer, VideoError, encode_mp4, read_mp4, write_mp4


def _psnr(first, second):
    error = np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2)
    return 10 * np.log10(255**2 / error)


@pytest.mark.parametrize(("fps", "num_frames"), [(8.0, 9), (23.976, 33), (30.0, 1)])
def test_a_video_comes_back_with_its_frames_rate_and_colours(
    tmp_path, moving_square, fps, num_frames
):
    frames = moving_square(num_frames=min(num_frames, 20))
    write_mp4(tmp_path / "new" / "video.mp4", frames, fps, min_side=192)
    result = read_mp4(tmp_path / "new" / "video.mp4")
    assert result.frames.shape == (len(frames), 3, 192, 192)
    assert result.frames.dtype == np.uint8
    assert result.fps == pytest.approx(fps, rel=1e-3)
    assert _psnr(result.frames[:, :, 2::4, 2::4], frames) > 40


def test_files_are_what_browsers_play(tmp_path, moving_square):
    path = tmp_path / "video.mp4"
    write_mp4(path, moving_square(), 8)
    with av.open(path) as container:
        (stream,) = container.streams
        context = stream.codec_context
        assert (stream.codec.name, context.pix_fmt) == ("h264", "yuv420p")
        # BT.709 and limited range, so that no player has to guess.
        assert (context.colorspace, context.color_range) == (1, 1)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_odd_sizes_grow_by_a_repeated_row_or_column(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 3, 15, 21), dtype=np.uint8)
    path = tmp_path / "odd.mp4"
    write_mp4(path, frames, 8, crf=1)
    result = read_mp4(path).frames
    assert result.shape == (3, 3, 16, 22)


def test_large_videos_shrink_in_proportion(tmp_path):
    path = tmp_path / "wide.mp4"
    write_mp4(path, np.zeros((2, 3, 240, 416), dtype=np.uint8), 8, max_side=104)
    assert read_mp4(path).frames.shape == (2, 3, 60, 104)


def test_bytes_and_files_hold_the_same_video_and_no_place(tmp_path, moving_square):
    path, again = tmp_path / "video.mp4", tmp_path / "again.mp4"
    write_mp4(path, moving_square(), 8)
    data = encode_mp4(moving_square(), 8)
    again.write_bytes(data)
    # Not byte for byte: x264's lookahead reads memory that it has not set (valgrind), and now and
    # then spends other bits on the same frames.
    difference = read_mp4(path).frames.astype(int) - read_mp4(again).frames
    assert np.square(difference).mean() < 6  # a PSNR of 40
    assert read_mp4(path).fps == read_mp4(again).fps == 8
    assert len(data) == pytest.approx(path.stat().st_size, rel=0.05)
    assert tmp_path.name.encode() not in path.read_bytes()
    assert b"astrolabe-" not in data


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path, moving_square):
    path = tmp_path / "video.mp4"
    write_mp4(path, moving_square(), 8)
    old = path.read_bytes()
    with pytest.raises(ValueError, match="fps is 0"):
        write_mp4(path, moving_square(), 0)
    blocked = tmp_path / "folder.mp4"
    (blocked / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match=r"folder\.mp4"):
        write_mp4(blocked, moving_square(), 8)
    assert path.read_bytes() == old
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder.mp4", "video.mp4"]


def test_files_that_are_no_videos_are_refused(tmp_path, moving_square):
    path = tmp_path / "video.mp4"
    with pytest.raises(VideoError, match=r"no video file .*video\.mp4"):
        read_mp4(path)
    path.write_bytes(b"not a video at all")
    with pytest.raises(VideoError, match="cannot be read as a video"):
        read_mp4(path)
    path.write_bytes(b"")
    with pytest.raises(VideoError, match="cannot be read as a video"):
        read_mp4(path)


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.99])
def test_a_truncated_file_is_refused_rather_than_played_short(tmp_path, moving_square, kept):
    data = encode_mp4(moving_square(), 8)
    path = tmp_path / "video.mp4"
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(VideoError, match="is cut short"):
        read_mp4(path)


@pytest.mark.parametrize(
    ("frames", "error", "message"),
    [
        (np.zeros((2, 3, 8, 8)), TypeError, "float64"),
        (np.zeros((2, 8, 8, 3), np.uint8), ValueError, r"\(2, 8, 8, 3\)"),
        (np.zeros((0, 3, 8, 8), np.uint8), ValueError, "at least one frame"),
    ],
)
def test_arrays_that_are_no_videos_are_refused(frames, error, message):
    with pytest.raises(error, match=message):
        encode_mp4(frames, 8)


def test_a_video_written_in_pieces_equals_one_written_at_once(tmp_path, moving_square):
    video = moving_square(8)
    with Mp4Writer(tmp_path / "pieces.mp4", 8) as writer:
        writer.add(video[:3])
        assert not (tmp_path / "pieces.mp4").exists()
        writer.add(video[3:])
    write_mp4(tmp_path / "whole" / "video.mp4", video, 8)
    pieces, whole = (read_mp4(tmp_path / name) for name in ("pieces.mp4", "whole/video.mp4"))
    assert pieces.frames.shape == whole.frames.shape
    assert pieces.fps == whole.fps
    # The encoder's threads do not always choose alike.
    assert np.abs(pieces.frames.astype(int) - whole.frames).mean() < 1
    with pytest.raises(ValueError, match="no frames"), Mp4Writer(tmp_path / "none.mp4", 8):
        pass
    with Mp4Writer(tmp_path / "sizes.mp4", 8) as writer:
        writer.add(video)
        with pytest.raises(ValueError, match="follow frames of"):
            writer.add(video[:, :, :-2])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("pieces.mp4", "sizes.mp4", "whole"),
    ]


def test_an_error_while_frames_come_leaves_nothing(tmp_path, moving_square):
    def broken():
        with Mp4Writer(tmp_path / "broken.mp4", 8) as writer:
            writer.add(moving_square())
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert list(tmp_path.iterdir()) == []
