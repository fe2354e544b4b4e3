import pytest
import torch

from astrolabe_rollout.cache import KVCache
from astrolabe_rollout.cache_rule import CacheRule
from astrolabe_rollout.rope import rotate, rotations

HEIGHT, WIDTH, HEAD_DIM, HEADS, LAYERS = 1, 2, 24, 2, 2
TOKENS = HEIGHT * WIDTH


def at(x, frames):
    return rotate(x, rotations(frames, HEIGHT, WIDTH, HEAD_DIM, torch.device("cpu")))


def scores(query, key):
    return torch.einsum("bqhd,bkhd->bhqk", query, key)


def frames_of(x, frames):
    return torch.cat([x[:, frame * TOKENS : (frame + 1) * TOKENS] for frame in frames], 1)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize(
    ("chunk", "window", "sink", "capacity"),
    [(3, 9, 3, None), (3, 9, 0, None), (1, 5, 2, None), (3, 8, 1, None), (3, 9, 3, 12)],
)
def test_a_chunk_sees_sink_and_window_at_the_right_positions(
    relative, chunk, window, sink, capacity
):
    """Against brute force: all raw keys are kept, and rotated by slot (or by frame) each time."""
    generator = torch.Generator().manual_seed(0)
    cache = KVCache(CacheRule(TOKENS, window, sink, relative), LAYERS, capacity)
    total = chunk * 7
    shape = (3, LAYERS, 2, total * TOKENS, HEADS, HEAD_DIM)
    queries, keys, values = torch.randn(shape, generator=generator)
    for start in range(0, total, chunk):
        cache.open(chunk)
        own = range(start, start + chunk)
        assert cache.positions == own
        stop = start + chunk
        dropped = max(0, stop - window)
        seen = [*range(min(sink, stop)), *range(min(sink + dropped, stop), stop)]
        slots = range(len(seen)) if relative else seen
        for layer in range(LAYERS):
            query, key, value = (frames_of(x[layer], own) for x in (queries, keys, values))
            cache.write(layer, torch.full_like(key, 9.0), value + 9)  # a noisy pass, overwritten
            seen_keys, seen_values = cache.write(layer, at(key, own), value)
            assert torch.equal(seen_values, frames_of(values[layer], seen))
            expected = scores(
                at(query, list(slots)[-chunk:]), at(frames_of(keys[layer], seen), slots)
            )
            torch.testing.assert_close(
                scores(at(query, own), seen_keys), expected, rtol=0, atol=1e-4
            )
        cache.close()
    assert cache.end == total


def test_a_cache_without_a_window_must_be_given_its_size():
    with pytest.raises(ValueError, match="set capacity"):
        KVCache(CacheRule(TOKENS), LAYERS)


def test_a_chunk_must_be_closed_before_the_next():
    cache = KVCache(CacheRule(TOKENS, window=6), LAYERS)
    cache.open(3)
    with pytest.raises(ValueError, match="close it before the next one"):
        cache.open(3)
    with pytest.raises(ValueError, match="close the first chunks"):
        cache.fork(3)


def test_a_cache_that_keeps_all_frames_says_when_it_is_full():
    cache = KVCache(CacheRule(TOKENS), LAYERS, capacity=6)
    for _ in range(2):
        cache.open(3)
        cache.close()
    with pytest.raises(ValueError, match=r"6 are taken and 3 more do not fit.*larger capacity"):
        cache.open(3)


def test_the_sink_never_makes_room_for_a_chunk():
    cache = KVCache(CacheRule(TOKENS, window=6, sink=3), LAYERS)
    cache.open(3)
    cache.close()
    with pytest.raises(ValueError, match="3 are taken and 4 more do not fit"):
        cache.open(4)


def filled(relative=False, frames=9):
    """A cache of window 6 and sink 1 with so many closed frames; a key's value is its frame."""
    cache = KVCache(CacheRule(TOKENS, 6, 1, relative), LAYERS)
    for start in range(0, frames, 3):
        cache.open(3)
        number = torch.arange(start, start + 3.0).repeat_interleave(TOKENS)
        keys = number[None, :, None, None].expand(1, 3 * TOKENS, HEADS, HEAD_DIM)
        for layer in range(LAYERS):
            cache.write(layer, keys, keys)
        cache.close()
    return cache


def stored(cache):
    return cache._values[0][0, : cache.length * TOKENS : TOKENS, 0, 0].tolist()


def test_a_flush_keeps_the_first_and_the_last_two_frames_that_are_there():
    cache = filled()
    assert stored(cache) == [0, 4, 5, 6, 7, 8]
    cache.flush()
    assert (stored(cache), cache.end) == ([0, 7, 8], 9)
    cache.flush()
    assert stored(cache) == [0, 7, 8]
    cache.open(3)
    assert cache.positions == range(9, 12)


def test_a_hard_cut_leads_to_position_45_and_back():
    for relative, first in ((False, 45), (True, 45 + 6)):
        cache = filled(relative)
        cache.flush()
        cache.open(3, cut=True)
        assert cache.positions == range(first, first + 3)
        cache.close()
        cache.open(3)
        assert cache.positions == range(12, 15)


def test_frames_can_be_opened_again_but_not_a_part_of_the_sink():
    cache = filled()
    with pytest.raises(ValueError, match=r"holds 6, 1 of them a sink.*those after the sink"):
        cache.reopen(7)
    cache.reopen(5)
    assert (cache.positions, stored(cache)) == (range(4, 9), [0])
    for forbidden in (cache.flush, cache.restart, lambda: cache.reopen(1)):
        with pytest.raises(ValueError, match="open chunk"):
            forbidden()


def test_a_cache_starts_again_at_any_frame():
    cache = filled()
    cache.restart(20)
    cache.open(6)
    assert (cache.positions, cache.length) == (range(20, 26), 0)


def test_a_prompt_is_known_by_its_tensor():
    cache, prompt = filled(), torch.zeros(1)
    cache.text(prompt)[0] = (prompt, prompt)
    assert 0 in cache.text(prompt)
    assert cache.text(torch.zeros(1)) == {}
