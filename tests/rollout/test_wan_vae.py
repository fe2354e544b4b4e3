"""Wan's VAE in small: streaming equals the whole, at constant memory."""

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

from astrolabe_rollout import wan_vae
from astrolabe_rollout.wan_vae import WanCodec, to_uint8


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    return WanCodec(AutoencoderKLWan(base_dim=8, num_res_blocks=1))


@pytest.fixture(scope="module")
def latents():
    return torch.randn(2, 9, 16, 4, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def whole(codec, latents):
    """The decoder of diffusers on the whole video."""
    raw = (latents * codec.std + codec.mean).transpose(1, 2)
    with torch.no_grad():
        return codec.vae.decode(raw, return_dict=False)[0].transpose(1, 2)


@pytest.mark.parametrize("sizes", [[3, 3, 3], [1] * 9, [9], [1, 3, 3, 2]])
def test_decoding_in_pieces_equals_decoding_the_whole(codec, latents, whole, sizes):
    stream = codec.stream().float
    pieces = [stream(part) for part in latents.split(sizes, 1)]
    assert pieces[0].shape[1] == 4 * sizes[0] - 3
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-5)


def test_two_streams_take_turns(codec, latents, whole):
    streams = [codec.stream() for _ in range(2)]
    pieces = [[], []]
    for part in latents.split(3, 1):
        for index, stream in enumerate(streams):
            pieces[index].append(stream(part[index : index + 1]))
        codec.decode(part[:1])  # a third, of its own
    joined = torch.cat([torch.cat(piece, 1) for piece in pieces])
    assert (joined.int() - to_uint8(whole).int()).abs().max() <= 1


def test_memory_does_not_grow_with_the_video(codec, latents, monkeypatch):
    memories = []
    make = wan_vae._Memory
    monkeypatch.setattr(wan_vae, "_Memory", lambda vae: memories.append(make(vae)) or memories[-1])
    stream = codec.stream()
    sizes = []
    for _ in range(4):
        stream(latents[:1, :3])
        sizes.append(memories[0].nbytes)
    assert sizes[0] == sizes[1] == sizes[3] > 0


def test_encoding_is_deterministic_and_normalised(codec):
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(256, (2, 9, 3, 32, 48), generator=generator, dtype=torch.uint8)
    encoded = codec.encode(pixels)
    assert encoded.shape == (2, 3, 16, 4, 6)
    assert torch.equal(encoded, codec.encode(pixels))
    with torch.no_grad():
        scaled = pixels[:1].float().transpose(1, 2) / 127.5 - 1
        raw = codec.vae.encode(scaled).latent_dist.mode().transpose(1, 2)
    torch.testing.assert_close(encoded[:1], (raw - codec.mean) / codec.std, rtol=0, atol=1e-5)


def test_what_does_not_fit_is_refused(codec, latents):
    with pytest.raises(ValueError, match="Cut it to 5"):
        codec.encode(torch.zeros(1, 8, 3, 32, 48, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"with one stream\(\)"):
        codec.decode(latents, first=False)


def test_the_constants_are_those_of_wan(codec):
    assert codec.mean.flatten()[0] == pytest.approx(-0.7571)
    assert codec.std.flatten()[-1] == pytest.approx(1.9160)
