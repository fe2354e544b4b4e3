"""Video files as rewards see them: as players show them, or refused."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from astrolabe_eval import read_mp4
from astrolabe_rewards.errors import VideoError
from astrolabe_rewards.video_file import read_video


def write(path, *, codec="libx264", rate=8, options=None, pix_fmt="yuv420p", frames=4, **tags):
    """A small video of noise with the tags of a stream."""
    noise = np.random.default_rng(0).integers(0, 256, (frames, 32, 48, 3), dtype=np.uint8)
    with av.open(path, "w") as file:
        stream = file.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = 48, 32, pix_fmt
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for picture in noise:
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pix_fmt)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain.mp4", {}),
        ("bt709.mp4", {"colorspace": 1, "color_range": 1}),
        ("full.mkv", {"color_range": 2, "colorspace": 5}),
        ("film.mp4", {"rate": Fraction(24000, 1001)}),
        ("many.webm", {"codec": "libvpx-vp9"}),
        ("single.mp4", {"frames": 1}),
        ("lossless.mov", {"codec": "qtrle", "pix_fmt": "rgb24"}),
        ("picture.png", {"codec": "png", "pix_fmt": "rgb24", "frames": 1}),
    ],
)
def test_pixels_and_rate_are_those_of_the_reader_of_evaluations(tmp_path, name, options):
    path = write(tmp_path / name, **options)
    found, expected = read_video(path), read_mp4(path)
    assert torch.equal(found.pixels, torch.from_numpy(expected.frames))
    assert found.fps == (1.0 if len(found.pixels) == 1 else expected.fps)


def transparent(path):
    picture = np.zeros((32, 48, 4), np.uint8)
    frame = av.VideoFrame.from_ndarray(picture, "rgba")
    with av.open(path, "w") as file:
        stream = file.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "rgba"
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def turned(path):
    """The display matrix of a quarter turn, written over that of the track."""
    data = bytearray(write(path).read_bytes())
    upright = b"".join(n.to_bytes(4, "big") for n in (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30))
    quarter = [0, 1 << 16, 0, (1 << 32) - (1 << 16), 0, 0, 0, 0, 1 << 30]
    at = data.index(upright, data.index(b"tkhd"))
    data[at : at + 36] = b"".join(n.to_bytes(4, "big") for n in quarter)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("turned.mp4", turned, "turned or mirrored.*ffmpeg"),
        ("wide.mp4", lambda path: write(path, sample_aspect_ratio=Fraction(4, 3)), "pixels of 4/3"),
        ("hdr.mp4", lambda path: write(path, color_trc=16), "another range than BT.709.*tonemap"),
        ("p3.mp4", lambda path: write(path, color_primaries=12), "another range than BT.709"),
        ("clear.png", transparent, "transparent in places"),
        ("short.mp4", lambda path: path.write_bytes(write(path).read_bytes()[:-40]), "cut short"),
        ("text.mp4", lambda path: path.write_text("no video"), "cannot be read as a video"),
        ("none.mp4", lambda path: None, "There is no video file"),
    ],
)
def test_what_is_not_shown_as_it_is_stored_is_refused(tmp_path, name, make, message):
    make(tmp_path / name)
    with pytest.raises(VideoError, match=message):
        read_video(tmp_path / name)


def test_what_follows_a_whole_file_is_no_part_of_it(tmp_path):
    path = write(tmp_path / "signed.mp4")
    whole = read_video(path).pixels
    path.write_bytes(path.read_bytes() + b"a signature of some kind")
    assert torch.equal(read_video(path).pixels, whole)
