import weakref

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from tensordict import TensorDict

from astrolabe_rollout.cache import KVCache
from astrolabe_rollout.cache_rule import CacheRule
from astrolabe_rollout.chunks import SeededNoise
from astrolabe_rollout.codec import PatchCodec
from astrolabe_rollout.denoiser import Denoiser
from astrolabe_rollout.geometry import Geometry
from astrolabe_rollout.model import VideoModel
from astrolabe_rollout.sampler import prefill, sample_chunk
from astrolabe_rollout.schedule import FlowSchedule, add_noise, to_x0
from astrolabe_rollout.streaming import StreamingPolicy
from astrolabe_rollout.transformer import CausalWan


def small_model(window=9, sink=3, relative=True):
    torch.manual_seed(0)
    network = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        text_dim=8,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
    )
    for parameter in network.parameters():  # the output layer included: no velocity is zero
        torch.nn.init.normal_(parameter, std=0.15)
    wan = CausalWan(network, Geometry(32, 32, window=window, sink=sink), relative)
    return VideoModel(wan, None, PatchCodec(width=8), FlowSchedule(3.0)).freeze()


def batch(n=2, index=0):
    generator = torch.Generator().manual_seed(1)
    return TensorDict(
        {
            "prompt": {
                "embeds": torch.randn(n, 5, 8, generator=generator),
                "seed": torch.arange(n) + 100,
            },
            "window": {"index": torch.full((n,), index)},
        },
        batch_size=[n],
    )


def test_a_seed_gives_the_same_video_whatever_the_batch():
    model = small_model()
    together = StreamingPolicy(model, 9)(batch(3))
    alone = StreamingPolicy(model, 9)(batch(3)[1:2])
    torch.testing.assert_close(
        alone["video", "latents"], together["video", "latents"][1:2], rtol=0, atol=1e-5
    )


def test_windows_go_on_where_the_last_one_ended():
    model = small_model()
    long = StreamingPolicy(model, 18)(batch())["video", "pixels"]
    policy = StreamingPolicy(model, 9)
    first, second = policy(batch())["video", "pixels"], policy(batch(index=1))["video", "pixels"]
    assert first.shape[1] == 33
    assert second.shape[1] == 36
    assert torch.equal(first, long[:, :33])  # later windows draw their own noise


def test_a_window_out_of_order_is_refused():
    policy = StreamingPolicy(small_model(), 9)
    policy(batch())
    with pytest.raises(ValueError, match="goes on with window 1"):
        policy(batch(index=2))
    with pytest.raises(ValueError, match="holds 2 videos"):
        policy(batch(3, index=1))


def test_videos_are_forgotten_and_may_be_started_again():
    policy = StreamingPolicy(small_model(), 9)
    first = policy(batch())["video", "latents"]
    held = weakref.ref(policy._stream.cache)
    policy.release()
    assert policy.cache_bytes == 0
    assert held() is None
    with pytest.raises(ValueError, match="holds 0 videos"):
        policy(batch(index=1))
    assert torch.equal(policy(batch())["video", "latents"], first)


def test_a_length_that_is_no_whole_number_of_chunks_is_refused():
    with pytest.raises(ValueError, match=r"Take 9 \(33 pixel frames\) or 12"):
        StreamingPolicy(small_model(), 10)


def test_cache_memory_does_not_grow_with_the_video():
    sizes = []
    for frames in (9, 36):
        policy = StreamingPolicy(small_model(), frames, decode=False)
        policy(batch())
        sizes.append(policy.cache_bytes)
    model = small_model()
    raw_sink = 2 * 2 * 3 * 4 * 2 * 24 * 4  # videos, layers, frames, tokens, heads, size, bytes
    assert sizes[0] == 2 * 2 * 2 * 9 * model.geometry.tokens * 48 * 4
    assert sizes[1] == sizes[0] + raw_sink


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("chunks_before", [1, 2, 5])
def test_candidates_of_a_shared_prefix_equal_independent_videos(relative, chunks_before):
    model = small_model(relative=relative)
    wan, embeds = model.transformer, batch(1)["prompt", "embeds"]
    clean = torch.randn(1, 3 * chunks_before, 16, 4, 4)
    noise = SeededNoise(range(3))
    draws = [noise.draw(4, (3, 16, 4, 4), embeds.device) for _ in range(4)]

    prefix = wan.new_cache()
    prefill(wan, clean, embeds, prefix, 3)
    before = prefix.nbytes
    shared = prefix.fork(12)
    many = embeds.expand(3, -1, -1)
    forked = [sample_chunk(wan, model.sigmas, many, shared, d.__getitem__, 3) for d in draws]

    apart = wan.new_cache()
    prefill(wan, clean.expand(3, -1, -1, -1, -1), many, apart, 3)
    whole = [sample_chunk(wan, model.sigmas, many, apart, d.__getitem__, 3) for d in draws]
    torch.testing.assert_close(torch.cat(forked, 1), torch.cat(whole, 1), rtol=0, atol=2e-5)
    own = 2 * 2 * 3 * 12 * model.geometry.tokens * 48 * 4
    assert shared.nbytes == before + own  # the prefix is held once, not three times


def test_a_prefix_without_its_sink_is_not_shared():
    cache = KVCache(CacheRule(tokens=4, window=9, sink=3), layers=1)
    with pytest.raises(ValueError, match="close the first chunks"):
        cache.fork(9)


def denoise(model, written, sigma, **options):
    noise = torch.randn(
        written["video", "latents"].shape, generator=torch.Generator().manual_seed(5)
    )
    levels = torch.full(written["video", "latents"].shape[:2], sigma)
    written["noisy", "latents"] = add_noise(written["video", "latents"], noise, levels)
    written["noisy", "sigma"] = levels
    return Denoiser(model, 9, **options)(written)["denoised", "latents"]


def by_streaming(model, latents, noisy, sigma, embeds, before):
    """Denoise chunk by chunk over a cache that rolls, as the sampler would."""
    wan, cache, out = model.transformer, model.transformer.new_cache(), []
    for start in range(0, latents.shape[1], 3):
        cache.open(3)
        part = latents[:, start : start + 3]
        if start >= before:
            x = noisy[:, start - before : start - before + 3]
            level = x.new_full(x.shape[:2], 1000 * sigma)
            out.append(to_x0(x, wan.forward_chunk(x, level, embeds, cache), sigma))
        wan.forward_chunk(part, part.new_zeros(part.shape[:2]), embeds, cache)
        cache.close()
    return torch.cat(out, 1)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("sigma", [0.9, 0.5])
def test_denoiser_sees_what_the_sampler_saw(relative, sigma):
    model = small_model(relative=relative)
    written = StreamingPolicy(model, 9)(batch())
    out = denoise(model, written, sigma)
    embeds, latents = written["prompt", "embeds"], written["video", "latents"]
    expected = by_streaming(model, latents, written["noisy", "latents"], sigma, embeds, 0)
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("relative", [False, True])
def test_denoiser_rebuilds_the_context_of_a_later_window(relative):
    model = small_model(window=12, relative=relative)  # nothing is dropped before the second window
    policy = StreamingPolicy(model, 9)
    first, second = policy(batch()), policy(batch(index=1))
    out = denoise(model, second, 0.75)
    latents = torch.cat([first["video", "latents"], second["video", "latents"]], 1)
    expected = by_streaming(
        model, latents, second["noisy", "latents"], 0.75, second["prompt", "embeds"], 9
    )
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("relative", [False, True])
def test_denoiser_places_a_context_from_which_frames_are_gone(relative):
    model = small_model(relative=relative)
    policy = StreamingPolicy(model, 9)
    for index in range(4):
        written = policy(batch(index=index))
    out = denoise(model, written, 0.75)
    wan, embeds = model.transformer, written["prompt", "embeds"]
    # The same chunk by chunk: the sink, then the newest frames, those between them skipped.
    cache, context = wan.new_cache(), written["window", "context"]
    prefill(wan, context[:, :3], embeds, cache, 3)
    cache.skip(27 - 6)
    prefill(wan, context[:, 3:], embeds, cache, 3)
    expected = []
    for start in range(0, 9, 3):
        cache.open(3)
        noisy = written["noisy", "latents"][:, start : start + 3]
        level = noisy.new_full(noisy.shape[:2], 750)
        expected.append(to_x0(noisy, wan.forward_chunk(noisy, level, embeds, cache), 0.75))
        clean = written["video", "latents"][:, start : start + 3]
        wan.forward_chunk(clean, clean.new_zeros(clean.shape[:2]), embeds, cache)
        cache.close()
    torch.testing.assert_close(out, torch.cat(expected, 1), rtol=0, atol=2e-5)


def test_denoiser_takes_windows_of_different_index_together():
    model = small_model()
    policy = StreamingPolicy(model, 9, decode=False)
    first, second = policy(batch()), policy(batch(index=1))
    apart = torch.cat([denoise(model, part, 0.75) for part in (first, second)])
    mixed, order = torch.cat([first, second]), torch.tensor([2, 0, 3, 1])
    out = Denoiser(model, 9)(mixed[order])["denoised", "latents"]
    torch.testing.assert_close(out, apart[order], rtol=0, atol=2e-5)


def test_context_options_change_what_later_chunks_see_and_nothing_else():
    model = small_model()
    written = StreamingPolicy(model, 9)(batch())
    clean = denoise(model, written.clone(), 0.9)
    noisy = denoise(model, written.clone(), 0.9, context="noisy")
    frame = denoise(model, written.clone(), 0.9, mask="frame")
    torch.testing.assert_close(clean[:, :3], noisy[:, :3], rtol=0, atol=1e-5)
    assert (clean[:, 3:] - noisy[:, 3:]).abs().max() > 1e-3
    assert (clean[:, :1] - frame[:, :1]).abs().max() > 1e-3


def test_no_gradient_reaches_the_context():
    model = small_model()
    model.transformer.requires_grad_(True)
    written = StreamingPolicy(model, 9)(batch())
    written["video", "latents"].requires_grad_(True)
    out = denoise(model, written, 0.9)
    written["noisy", "latents"].detach_()
    gradient = torch.autograd.grad(
        out[:, 6:].sum(), written["video", "latents"], allow_unused=True, retain_graph=True
    )[0]
    # Only through x_t of the last chunk itself: earlier chunks are context.
    assert gradient[:, 6:].abs().sum() > 0
    assert gradient[:, :6].abs().sum() == 0


def test_full_back_propagation_gives_the_same_video_and_reaches_earlier_chunks():
    model = small_model()
    model.transformer.requires_grad_(True)
    written = StreamingPolicy(model, 9)(batch())
    clean = denoise(model, written.clone(), 0.9)
    written["video", "latents"].requires_grad_(True)
    attached = denoise(model, written, 0.9, context="attached")
    torch.testing.assert_close(attached, clean, rtol=0, atol=1e-5)
    gradient = torch.autograd.grad(attached[:, 6:].sum(), written["video", "latents"])[0]
    assert gradient[:, :6].abs().sum() > 0


@pytest.mark.parametrize("relative", [False, True])
def test_full_back_propagation_reaches_what_lies_before_the_window(relative):
    model = small_model(relative=relative)
    model.transformer.requires_grad_(True)
    policy = StreamingPolicy(model, 9)
    for index in range(4):
        written = policy(batch(index=index))
    written["window", "context"].requires_grad_(True)
    seen = {}
    for context in ("clean", "attached"):
        out = denoise(model, written.clone(), 0.9, context=context)
        before = torch.autograd.grad(out.sum(), written["window", "context"], allow_unused=True)[0]
        seen[context] = out.detach(), before
    torch.testing.assert_close(seen["attached"][0], seen["clean"][0], rtol=0, atol=1e-5)
    assert seen["clean"][1] is None
    frames = seen["attached"][1].abs().sum((0, 2, 3, 4))
    assert (frames > 0).all()  # sink and recent frames alike


def test_stackable_windows_have_equal_length_and_real_frames():
    model = small_model()
    plain, equal = StreamingPolicy(model, 9), StreamingPolicy(model, 9, stackable=True)
    whole = [policy(batch())["video", "pixels"] for policy in (plain, equal)]
    later = [policy(batch(index=1))["video", "pixels"] for policy in (plain, equal)]
    assert torch.equal(whole[0], whole[1])
    assert later[1].shape == whole[1].shape
    assert torch.equal(later[0][:, 3:], later[1])
