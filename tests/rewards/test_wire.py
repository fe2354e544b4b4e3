"""Requests and answers as bytes: exact, readable by the safetensors library, and never trusted."""

import json
import math
import mmap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from astrolabe_rewards.wire import HEADER_LIMIT, SCHEMA, Answer, Request, WireError

PIXELS = torch.arange(2 * 5 * 3 * 4 * 6).remainder(256).to(torch.uint8).reshape(2, 5, 3, 4, 6)
PROMPTS = ["a red circle", 'quotes " and {braces} and <|im_end|> and 漢字 and \ud800']
FPS = torch.tensor([16.0, 29.97])
REQUEST = Request(PIXELS, PROMPTS, FPS)
TINY = Request(PIXELS[:1, :1], ["x"], FPS[:1])


def joined(request):
    return bytearray(b"".join(request.pack()))


def saved(prompts=("a", "b"), schema=str(SCHEMA), **tensors):
    tensors = {"pixels": PIXELS, "fps": FPS} | tensors
    return bytearray(save(tensors, {"schema": schema, "prompts": json.dumps(prompts)}))


def edited(change):
    """The bytes of a request whose header was changed."""
    data = bytes(joined(TINY))
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return bytearray(len(text).to_bytes(8, "little") + text + data[8 + length :])


def test_a_request_comes_back_as_it_was():
    back = Request.unpack(joined(REQUEST))
    assert torch.equal(back.pixels, PIXELS)
    assert torch.equal(back.fps, FPS)
    assert back.prompts == PROMPTS


def test_videos_are_packed_and_unpacked_without_a_copy():
    assert REQUEST.pack()[-1].obj.ctypes.data == PIXELS.data_ptr()
    data = joined(REQUEST)
    Request.unpack(data).pixels.fill_(7)
    assert data[-PIXELS.numel() :] == b"\x07" * PIXELS.numel()


def test_a_view_of_other_memory_layout_is_packed_in_order():
    turned = PIXELS.transpose(3, 4)
    assert torch.equal(Request.unpack(joined(Request(turned, PROMPTS, FPS))).pixels, turned)


def test_the_safetensors_library_reads_a_request():
    tensors = load(bytes(joined(REQUEST)))
    assert torch.equal(tensors["pixels"], PIXELS)
    assert torch.equal(tensors["fps"], FPS)


def test_a_request_of_the_safetensors_library_is_read():
    back = Request.unpack(saved())
    assert torch.equal(back.pixels, PIXELS)
    assert torch.equal(back.fps, FPS)
    assert back.prompts == ["a", "b"]


def test_memory_maps_are_read(tmp_path):
    path = tmp_path / "request"
    path.write_bytes(joined(REQUEST))
    with path.open("r+b") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    assert torch.equal(Request.unpack(data).pixels, PIXELS)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=9))
def test_scores_keep_every_bit(patterns):
    bits = torch.tensor(patterns).to(torch.int32)  # not-a-numbers, infinities, subnormals
    errors = [None] * len(bits)
    answer = Answer.unpack(
        bytearray(Answer(bits.view(torch.float32), errors, "f").pack()), len(bits)
    )
    assert torch.equal(answer.scores.view(torch.int32), bits)
    assert (answer.errors, answer.fingerprint) == (errors, "f")


def test_errors_come_back_beside_scores():
    answer = Answer(torch.tensor([0.5, math.nan]), [None, "ValueError: grün"], "")
    assert Answer.unpack(bytearray(answer.pack()), 2).errors == [None, "ValueError: grün"]


def test_another_schema_is_refused_with_both_versions():
    with pytest.raises(WireError, match=f"speaks schema '99' and this one '{SCHEMA}'"):
        Request.unpack(saved(schema="99"))
    with pytest.raises(WireError, match="speaks schema None"):
        Answer.unpack(bytearray(save({"scores": FPS})), 2)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cut short"),
        (b"\x01", "cut short"),
        (b"hello, this is no request", "no safetensors"),
        (b"\x02" + b"\x00" * 7 + b"[]", "no mapping"),
        (b"\x02" + b"\x00" * 7 + b"{]", "no JSON"),
        (b"\x04" + b"\x00" * 7 + b'"\xff"\x20', "no JSON"),
        ((100_000).to_bytes(8, "little") + b"[" * 100_000, "no JSON"),
        ((HEADER_LIMIT + 1).to_bytes(8, "little") + b" " * (HEADER_LIMIT + 9), "no safetensors"),
        (saved(prompts=["a"]), "prompts has 1 entries for 2 videos"),
        (saved(prompts=[1, 2]), "no JSON list of texts under 'prompts'"),
        (saved(prompts=["a", None]), "prompts holds null"),
        (saved(fps=FPS[:1]), r"fps has shape \(1,\) for 2 videos"),
        (saved(fps=FPS.double()), "fps is .* not of dtype F32"),
        (saved(pixels=PIXELS.float()), "pixels is .* not of dtype U8"),
        (saved(pixels=PIXELS[0]), "not .n, F, 3, H, W"),
        (saved(pixels=PIXELS[:, :, :1].contiguous()), "not .n, F, 3, H, W"),
        (saved(extra=torch.zeros(1)), r"there are tensors \['extra', 'fps', 'pixels'\]"),
        (joined(REQUEST)[:-1], "pixels of shape"),
        (edited(lambda h: h.update(__metadata__=[])), "metadata is no mapping"),
        (edited(lambda h: h.update(pixels=None)), "pixels is None"),
        (edited(lambda h: h["pixels"].update(shape=[1, 1, 3, 4, -6])), "has shape"),
        (edited(lambda h: h["pixels"].update(shape=[1, 1, 3, 4, True])), "has shape"),
        (edited(lambda h: h["pixels"].update(shape=[2**61] * 5)), "needs"),
        (edited(lambda h: h["pixels"].update(shape=[0, 1, 3, 4, 6], data_offsets=[4, 4])), "needs"),
        (edited(lambda h: h["pixels"].update(data_offsets=[5, 77])), "of 76"),
        (edited(lambda h: h["pixels"].update(data_offsets=[76, 4])), "needs"),
        (edited(lambda h: h["pixels"].update(data_offsets=[4])), "data_offsets"),
        (edited(lambda h: h["pixels"].pop("dtype")), "dtype"),
    ],
)
def test_malformed_requests_are_refused(data, reason):
    with pytest.raises(WireError, match=reason):
        Request.unpack(bytearray(data))


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 10**6), st.integers(0, 255), st.integers(0, 10**6))
def test_no_damage_gets_past_the_reader_or_breaks_it(place, value, length):
    data = joined(TINY)
    data[place % len(data)] = value
    data = data[: len(data) - length % 3]
    try:
        request = Request.unpack(data)
    except WireError:
        return
    assert request.pixels.shape[2] == 3
    assert len(request.prompts) == len(request.pixels) == len(request.fps)


def test_an_answer_for_another_number_of_videos_is_refused():
    data = Answer(torch.zeros(2), [None, None], "").pack()
    with pytest.raises(WireError, match=r"scores have shape \(2,\) for 3 videos"):
        Answer.unpack(bytearray(data), 3)


def test_prompts_beyond_the_limit_are_refused_by_the_sender():
    with pytest.raises(WireError, match="Send fewer videos"):
        Request(PIXELS, ["x" * HEADER_LIMIT, ""], FPS).pack()
