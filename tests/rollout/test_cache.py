import pytest
import torch

from astrolabe_rollout.cache import CacheRule, KVCache
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
