"""Rotary positions of video tokens, computed for any frame number.

Wan splits a head into temporal, vertical and horizontal pairs (theta 10,000). Rotations are complex
numbers, so a key is moved in time by one multiplication. There is no table to run out of.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from astrolabe_rollout.extras import wan_extra

with wan_extra():
    from diffusers.models.embeddings import get_1d_rotary_pos_embed


@lru_cache(maxsize=256)
def _axis(dim: int, positions: tuple[int, ...]) -> Tensor:
    axis: Tensor = get_1d_rotary_pos_embed(
        dim, np.array(positions, dtype=np.float64), use_real=False, freqs_dtype=torch.float64
    )
    return axis


def _split(head_dim: int) -> tuple[int, int]:
    """Dimensions of the temporal axis and of each spatial axis."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial


@lru_cache(maxsize=256)
def _rotations(
    frames: tuple[int, ...], height: int, width: int, head_dim: int, device: torch.device
) -> Tensor:
    temporal, spatial = _split(head_dim)
    parts = (
        _axis(temporal, frames)[:, None, None, :],
        _axis(spatial, tuple(range(height)))[None, :, None, :],
        _axis(spatial, tuple(range(width)))[None, None, :, :],
    )
    grid = torch.cat([part.expand(len(frames), height, width, -1) for part in parts], -1)
    return grid.reshape(-1, 1, head_dim // 2).to(device, torch.complex64)


def rotations(
    frames: Sequence[int], height: int, width: int, head_dim: int, device: torch.device
) -> Tensor:
    """Rotation of every token of the given frames.

    Args:
        frames: Temporal position of each latent frame.
        height: Tokens of a frame from top to bottom.
        width: Tokens of a frame from left to right.
        head_dim: Size of an attention head.
        device: Where the result lives.

    Returns:
        complex64 ``[len(frames) * height * width, 1, head_dim / 2]``.
    """
    return _rotations(tuple(frames), height, width, head_dim, device)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate queries or keys ``[B, tokens, heads, head_dim]``; neighbouring numbers form a pair."""
    pairs = torch.view_as_complex(torch.unflatten(x.float(), -1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).type_as(x)


@lru_cache(maxsize=256)
def _turn(frames: int, head_dim: int, device: torch.device) -> Tensor:
    temporal, _ = _split(head_dim)
    turn = torch.ones(head_dim // 2, dtype=torch.complex64)
    turn[: temporal // 2] = _axis(temporal, (frames,))[0].to(turn)
    return turn.to(device)


def move(keys: Tensor, frames: int) -> Tensor:
    """Move already rotated keys ``[B, tokens, heads, head_dim]`` by so many frames in time."""
    if frames == 0:
        return keys
    # Kept on the device: a copy to a GPU would be waited for at each layer.
    return rotate(keys, _turn(frames, keys.shape[-1], keys.device))
