import pytest
import torch

from astrolabe_rollout.codec import PatchCodec


def make_codec():
    torch.manual_seed(0)
    codec = PatchCodec(channels=4, width=8)
    codec.basis.normal_(std=0.1)
    return codec.requires_grad_(False)


def test_videos_become_latents_and_latents_videos():
    codec = make_codec()
    pixels = torch.randint(256, (2, 9, 3, 16, 24), dtype=torch.uint8)
    latents = codec.encode(pixels)
    assert latents.shape == (2, 3, 4, 2, 3)
    video = codec.decode(latents)
    assert video.shape == pixels.shape
    assert video.dtype == torch.uint8


def test_the_first_latent_is_one_frame_and_each_later_one_four():
    codec = PatchCodec(channels=1)
    codec.basis.fill_(1 / len(codec.basis))  # the mean of a patch
    levels = torch.tensor([200, 10, 20, 30, 40, 90, 90, 50, 50], dtype=torch.uint8)
    pixels = levels.view(1, 9, 1, 1, 1).expand(1, 9, 3, 8, 8)
    latents = (codec.encode(pixels).flatten() + 1) * 127.5
    torch.testing.assert_close(latents, torch.tensor([200.0, 25, 70]), rtol=0, atol=0.01)


def test_a_latent_pixel_sees_its_own_patch_alone():
    codec = make_codec()
    pixels = torch.zeros(1, 5, 3, 16, 24, dtype=torch.uint8)
    changed = pixels.clone()
    changed[0, 3, 1, 9, 2] = 255  # the second latent frame, lower left patch
    moved = (codec.encode(changed) - codec.encode(pixels)).abs().amax(2)[0] > 1e-4
    assert moved.nonzero().tolist() == [[1, 1, 0]]


def test_decoding_chunk_by_chunk_equals_decoding_at_once():
    codec = make_codec()
    latents = 30 * torch.randn(2, 6, 4, 2, 3, generator=torch.Generator().manual_seed(1))
    whole = codec.decode(latents)
    parts = [codec.decode(latents[:, :3]), codec.decode(latents[:, 3:], first=False)]
    assert [part.shape[1] for part in parts] == [9, 12]
    streamed = torch.cat(parts, 1)
    assert (whole.int() - streamed.int()).abs().max() <= 1  # rounding
    assert (whole[:, 1:].int() - whole[:, :-1].int()).abs().float().mean() > 10  # frames differ


@pytest.mark.parametrize(("frames", "advice"), [(4, "Cut it to 1."), (12, "Cut it to 9.")])
def test_a_number_of_frames_that_the_time_axis_cannot_hold_is_refused(frames, advice):
    with pytest.raises(ValueError, match=advice):
        make_codec().encode(torch.zeros(1, frames, 3, 16, 16, dtype=torch.uint8))


def test_decoding_piece_by_piece_equals_decoding_the_whole():
    codec, latents = make_codec(), torch.randn(2, 6, 4, 6, 6)
    stream = codec.stream()
    pieces = [stream(latents[:, :3]), stream(latents[:, 3:4]), stream(latents[:, 4:])]
    assert torch.equal(torch.cat(pieces, 1), codec.decode(latents))
