"""What a file says about its display, against ffmpeg's own pixels (tests/golden/display)."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from astrolabe_eval import VideoError, read_mp4, write_mp4
from astrolabe_eval.frame_stream import measure, stream_frames

GOLDEN = Path(__file__).parents[1] / "golden" / "display"
EXPECTED = np.load(GOLDEN / "expected.npz")
#: Frames per second by the times of the frames: 6 of them within 10/16 s.
GAPS = 5 / (10 / 16)
RATES = {"one_frame.mp4": 16, "ntsc.mkv": 24000 / 1001}


@pytest.mark.parametrize("name", EXPECTED.files)
def test_pixels_are_those_that_ffmpeg_shows(name):
    video = read_mp4(GOLDEN / "read" / name)
    expected = EXPECTED[name].transpose(0, 3, 1, 2)
    assert video.frames.shape == expected.shape
    assert np.abs(video.frames.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("name", EXPECTED.files)
def test_frames_and_rates_are_those_of_the_frame_times(name):
    path = GOLDEN / "read" / name
    fps = GAPS if name.startswith("gaps") else RATES.get(name, 16)
    # Times of Matroska are whole milliseconds, those of GIF hundredths of a second.
    assert measure(path).fps == pytest.approx(fps, rel=1e-2 if name.startswith("gaps") else 1e-9)
    assert measure(path) == (read_mp4(path).fps, len(EXPECTED[name]))
    assert sum(1 for _ in stream_frames(path)) == len(EXPECTED[name])


REFUSED = {
    "pq.mp4": r"high dynamic range \(PQ\)",
    "hlg.mp4": r"high dynamic range \(HLG\)",
    "display_p3.mp4": "has the primaries Display P3",
    "ycgco.mp4": r"matrix that is not read \(number 8",
    "fields.mp4": "is interlaced",
    "alpha.webm": "is transparent in places",
    "alpha.mov": "is transparent in places",
    "two_views.mp4": "is no flat picture",
    "cover.m4a": "holds no video, only other streams",
    "turn30.mp4": "angle that is no quarter turn",
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("read", [read_mp4, measure, lambda path: next(stream_frames(path))])
def test_what_has_no_one_picture_in_rgb_is_refused_by_name(name, read):
    with pytest.raises(VideoError, match=REFUSED[name]) as error:
        read(GOLDEN / "refused" / name)
    assert name in str(error.value)


def test_every_file_of_the_folder_is_tried():
    assert set(EXPECTED.files) == {path.name for path in (GOLDEN / "read").iterdir()}
    assert set(REFUSED) == {path.name for path in (GOLDEN / "refused").iterdir()}


def picture():
    levels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((48, 32), Image.Resampling.NEAREST)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tiff"])
def test_pictures_are_turned_and_mirrored_as_their_exif_says(tmp_path, ending, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    options = {"jpg": {"quality": 95, "subsampling": 0}, "webp": {"lossless": True}}
    path = tmp_path / f"picture.{ending}"
    picture().save(path, exif=exif, **options.get(ending, {}))
    expected = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    shown = read_mp4(path).frames[0].transpose(1, 2, 0)
    assert np.abs(shown.astype(int) - np.asarray(expected)).max() <= 1


def test_alpha_that_hides_nothing_is_no_reason_to_refuse(tmp_path):
    for name, image in {
        "opaque.png": picture().convert("RGBA"),
        "palette.png": picture().quantize(16),
        "grey.png": picture().convert("LA"),
    }.items():
        image.save(tmp_path / name)
        shown = read_mp4(tmp_path / name).frames[0].transpose(1, 2, 0)
        np.testing.assert_array_equal(shown, np.asarray(image.convert("RGB")))
    clear = picture().convert("RGBA")
    clear.putpixel((5, 5), (0, 0, 0, 254))
    clear.save(tmp_path / "clear.png")
    with pytest.raises(VideoError, match=r"clear\.png' is transparent in places"):
        read_mp4(tmp_path / "clear.png")


@pytest.mark.parametrize("kept", [-1, 700, 1500])
def test_a_file_with_fragments_that_is_cut_is_refused(tmp_path, kept):
    path = tmp_path / "cut.mp4"
    path.write_bytes((GOLDEN / "read" / "fragments.mp4").read_bytes()[:kept])
    with pytest.raises(VideoError, match=r"cut\.mp4' (is cut short|cannot be read)"):
        read_mp4(path)


def test_an_animated_webp_is_refused_by_name(tmp_path):
    path = tmp_path / "moving.webp"
    picture().save(path, save_all=True, append_images=[ImageOps.mirror(picture())], lossless=True)
    with pytest.raises(VideoError, match=r"moving\.webp' is an animated WebP"):
        read_mp4(path)


def test_a_bare_stream_has_the_rate_that_it_says():
    assert read_mp4(GOLDEN / "read" / "bare.h264").fps == 16


def test_times_that_go_backwards_are_refused(tmp_path):
    path = tmp_path / "back.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=8)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuvj420p"
        for number, at in enumerate((0, 3, 2)):
            frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), "rgb24")
            frame = frame.reformat(format="yuvj420p")
            frame.pts = number
            for packet in stream.encode(frame):
                packet.pts, packet.dts = at, number
                container.mux(packet)
    with pytest.raises(VideoError, match="go backwards after frame 1"):
        read_mp4(path)


@pytest.mark.parametrize("degrees", [90, 180])
def test_a_turn_that_single_frames_say_is_refused(tmp_path, degrees):
    write_mp4(tmp_path / "a.mp4", np.zeros((3, 3, 32, 32), np.uint8), fps=8)
    said = f"h264_metadata=display_orientation=insert:rotate={degrees}"  # of key frames alone
    with av.open(tmp_path / "a.mp4") as old, av.open(tmp_path / "b.mp4", "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        turn = av.BitStreamFilterContext(said, old.streams.video[0], stream)
        for packet in [*old.demux(video=0), None]:
            if packet is None or packet.dts is not None:
                new.mux([one for one in turn.filter(packet) if one.dts is not None])
    with pytest.raises(VideoError, match="turned in some frames and otherwise in others"):
        read_mp4(tmp_path / "b.mp4")


def test_a_video_that_changes_its_size_is_refused(tmp_path):
    path = tmp_path / "sizes.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p"
        for number, side in enumerate((32, 48)):
            encoder = av.CodecContext.create("mjpeg", "w")
            encoder.width = encoder.height = side
            encoder.pix_fmt, encoder.time_base = "yuvj420p", Fraction(1, 8)
            frame = av.VideoFrame.from_ndarray(np.zeros((side, side, 3), np.uint8), "rgb24")
            for packet in encoder.encode(frame.reformat(format="yuvj420p")):
                packet.stream, packet.pts, packet.dts = stream, number, number
                packet.time_base = Fraction(1, 8)
                container.mux(packet)
    with pytest.raises(VideoError, match=r"changes its size from \(32, 32\) to \(48, 48\)"):
        read_mp4(path)


@pytest.mark.parametrize("fps", [0.5, 7, 12.5, 16, 24000 / 1001, 30, 60000 / 1001])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_what_is_written_is_read_with_its_rate_and_number_of_frames(tmp_path, fps, count):
    write_mp4(tmp_path / "a.mp4", np.zeros((count, 3, 16, 16), np.uint8), fps)
    shape = measure(tmp_path / "a.mp4")
    assert shape.num_frames == count
    assert shape.fps == pytest.approx(fps, rel=1e-6)
