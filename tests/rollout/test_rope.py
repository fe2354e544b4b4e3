import pytest
import torch

from astrolabe_rollout.rope import move, rotate, rotations

HEIGHT, WIDTH, HEAD_DIM = 2, 3, 24
CPU = torch.device("cpu")


def tokens(frames, seed):
    shape = (2, frames * HEIGHT * WIDTH, 2, HEAD_DIM)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def at(x, frames):
    return rotate(x, rotations(frames, HEIGHT, WIDTH, HEAD_DIM, CPU))


def scores(query, key):
    return torch.einsum("bqhd,bkhd->bhqk", query, key)


@pytest.mark.parametrize("frames", [0, 1, 7, 500, -3])
def test_moved_keys_are_keys_rotated_at_the_later_positions(frames):
    keys = tokens(3, seed=0)
    moved = move(at(keys, range(4, 7)), frames)
    torch.testing.assert_close(moved, at(keys, range(4 + frames, 7 + frames)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shift", [1, 100, 100_000])
def test_scores_depend_on_differences_in_time_alone(shift):
    query, keys = tokens(1, seed=1), tokens(2, seed=2)
    here = scores(at(query, [5]), at(keys, [0, 3]))
    there = scores(at(query, [5 + shift]), at(keys, [shift, 3 + shift]))
    torch.testing.assert_close(there, here, rtol=0, atol=1e-4)
    elsewhere = scores(at(query, [5 + shift]), at(keys, [shift, 4 + shift]))
    assert (elsewhere - here).abs().max() > 0.1


def test_every_token_of_a_frame_has_a_place_of_its_own():
    same = tokens(1, seed=3)[:, :1].expand(-1, 2 * HEIGHT * WIDTH, -1, -1)
    placed = at(same, range(2))[0, :, 0]
    distances = torch.cdist(placed, placed) + 10 * torch.eye(len(placed))
    assert distances.min() > 0.1
    torch.testing.assert_close(placed[0], same[0, 0, 0])  # the first is at the origin
    torch.testing.assert_close(placed.norm(dim=-1), same[0, :, 0].norm(dim=-1))
