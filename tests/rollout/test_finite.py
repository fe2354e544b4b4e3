"""Latents that are no numbers: every video of them would be black, without a word."""

import pytest
import torch
from tensordict import TensorDict
from torch._subclasses.fake_tensor import FakeTensorMode

from astrolabe_rollout import StreamingPolicy, add_lora
from astrolabe_rollout.chunks import ChunkStream
from astrolabe_rollout.errors import NotFiniteError
from astrolabe_rollout.finite import check_latents, is_finite
from astrolabe_rollout.group_streaming import GroupStreamingPolicy
from astrolabe_rollout.keys import EMBEDS, GROUP, HISTORY_SEED, INDEX, SCRIPT, SEED
from astrolabe_rollout.tiny import build_tiny

FRAMES = 9  # three chunks


@pytest.fixture
def model():
    return build_tiny(0).freeze()


def batch(model, index=0):
    made = TensorDict(batch_size=[2])
    for key, values in {SEED: [1, 2], GROUP: [4, 4], HISTORY_SEED: [3, 3]}.items():
        made[key] = torch.tensor(values)
    made[INDEX] = torch.full((2,), index)
    made[SCRIPT] = ["a red circle"] * 2
    made[EMBEDS] = model.text(["a red circle"] * 2)
    return made


def spoil(model, monkeypatch, *, after, video, value=torch.inf):
    """Let the model's predictions for a video be no numbers after so many passes."""
    right, passes = model.transformer.forward_chunk, []

    def wrong(*inputs, **options):
        out = right(*inputs, **options).clone()
        passes.append(None)
        if len(passes) > after:
            out[video] = value
        return out

    monkeypatch.setattr(model.transformer, "forward_chunk", wrong)


def test_a_window_names_videos_chunk_and_that_the_weights_are_whole(model, monkeypatch):
    passes = len(model.sigmas) + 1
    spoil(model, monkeypatch, after=passes, video=1)
    with pytest.raises(
        NotFiniteError,
        match=r"window 0: the latents of 1 of 2 videos \(1\) hold NaN .*, first in chunk 2 of 3\. "
        r"The weights \(float32\) are finite, so numbers grew beyond",
    ):
        StreamingPolicy(model, FRAMES)(batch(model))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_damaged_weights_are_named(model, value):
    with torch.no_grad():
        list(model.transformer.parameters())[3].view(-1)[0] = value
    name = list(dict(model.transformer.named_parameters()))[3]
    with pytest.raises(
        NotFiniteError,
        match=rf"all 2 videos \(0, 1\) .* chunk 1 of 3\. The weights are damaged, 1 of \d+ "
        rf"tensors: {name}\. Load them again",
    ):
        StreamingPolicy(model, FRAMES, decode=False)(batch(model))


def test_a_damaged_adapter_is_told_from_damaged_weights(model):
    add_lora(model.transformer.network, rank=2, alpha=2)
    adapter = [
        value for name, value in model.transformer.network.named_parameters() if "lora_B" in name
    ]
    with torch.no_grad():
        adapter[0].fill_(torch.nan)
    with pytest.raises(NotFiniteError, match=r"The adapter is damaged, 1 tensors of it: \S+lora_B"):
        StreamingPolicy(model, FRAMES, decode=False)(batch(model))


def test_histories_are_looked_at_too(model, monkeypatch):
    spoil(model, monkeypatch, after=0, video=0)
    policy = GroupStreamingPolicy(model, FRAMES, decode=False)
    with pytest.raises(NotFiniteError, match=r"window 0 of the histories: .* all 1 videos"):
        policy(batch(model, index=1))
    with pytest.raises(NotFiniteError, match=r"window 0: the latents of 1 of 2 videos \(0\)"):
        policy(batch(model))


def test_a_stream_looks_at_every_chunk(model, monkeypatch):
    spoil(model, monkeypatch, after=len(model.sigmas) + 1, video=0)
    stream = ChunkStream(model, [0], decode=False)
    embeds = model.text(["a red circle"])
    stream.next(embeds)
    with pytest.raises(NotFiniteError, match=r"chunk 1 of the stream: .* all 1 videos \(0\)"):
        stream.next(embeds)


def test_a_window_is_looked_at_once(model, monkeypatch):
    looked = []
    monkeypatch.setattr(
        "astrolabe_rollout.streaming.check_latents", lambda *given: looked.append(given[1].shape)
    )
    monkeypatch.setattr("astrolabe_rollout.chunks.check_latents", None)
    StreamingPolicy(model, FRAMES, decode=False)(batch(model))
    assert looked == [(2, FRAMES, 16, 6, 6)]


def test_nothing_is_refused_where_nothing_can_be_read():
    with FakeTensorMode():
        assert is_finite(torch.empty(2, 3))
    check_latents("window 0", torch.empty(1, 3, 2, 2, 2, device="meta"), 3, None)

    @torch.compile(fullgraph=True, backend="eager")
    def whole(latents):
        check_latents("window 0", latents, 3, None)
        return latents + 1

    bad = torch.full((1, 3, 2, 2, 2), torch.nan)
    assert whole(bad).isnan().all()
    with pytest.raises(NotFiniteError, match=r"all 1 videos \(0\).* precision"):
        check_latents("window 0", bad, 3, None)
