"""Naming a motion from the path, size and orientation of one object."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Series = NDArray[np.float64]

_LEAST_TRAVEL = 4.0  # pixels of 48; a straight motion covers about 22 in 33 frames
_LEAST_SHIFT = 3.0
_LEAST_SWELL = 1.6  # largest over smallest area; a pulse has 3.4
_LEAST_SPIN = np.deg2rad(3.0)  # per frame; a spin has 7.5 degrees
_LEAST_WINDING = np.deg2rad(200.0)


@dataclass(frozen=True)
class Track:
    """An object over time.

    Attributes:
        x: Centre, pixels of a 48x48 picture, ``[n]``.
        y: The same, downwards.
        area: Pixels, ``[n]``.
        turn: Complex, its argument is ``fold`` times the orientation, ``[n]``.
        fold: Corners of the shape; 0 if its orientation cannot be seen.
    """

    x: Series
    y: Series
    area: Series
    turn: NDArray[np.complex128]
    fold: int


def net_shift(track: Track) -> tuple[float, float]:
    """Pixels right and down from the first three sightings to the last three."""
    ends = [values[-3:].mean() - values[:3].mean() for values in (track.x, track.y)]
    return float(ends[0]), float(ends[1])


def net_direction(track: Track) -> str | None:
    """Where the object has gone, left, right, up or down; None if it is back or never left."""
    right, down = net_shift(track)
    if max(abs(right), abs(down)) < _LEAST_SHIFT:
        return None
    if abs(right) >= abs(down):
        return "right" if right > 0 else "left"
    return "down" if down > 0 else "up"


def motion_of(track: Track) -> str | None:
    """Name the motion in the world's words; None if it is none of them."""
    across, down = float(np.ptp(track.x)), float(np.ptp(track.y))
    longest, shortest = max(across, down), min(across, down)
    if longest < _LEAST_TRAVEL:
        return _in_place(track)
    direction = net_direction(track)
    if direction and shortest <= 0.4 * longest:
        along = max(abs(shift) for shift in net_shift(track))
        if along >= 0.7 * longest:
            return f"moves {direction}"
    if across <= 0.5 * down:
        return "bounces"
    return "orbits" if shortest >= 0.5 * longest and _winds(track) else None


def _in_place(track: Track) -> str | None:
    """Pulsing, spinning, or resting (None)."""
    small, large = np.percentile(track.area, (10, 90))
    if large >= _LEAST_SWELL * small:
        return "pulses"
    if track.fold and len(track.turn) > 1:
        steps = np.angle(track.turn[1:] * track.turn[:-1].conj()) / track.fold
        total = abs(float(steps.sum()))
        if total >= _LEAST_SPIN * len(steps) and total >= 0.6 * float(np.abs(steps).sum()):
            return "spins"
    return None


def _winds(track: Track) -> bool:
    """Whether the path goes round its middle at a nearly constant distance, one way."""
    arm = (track.x - (track.x.max() + track.x.min()) / 2) + 1j * (
        track.y - (track.y.max() + track.y.min()) / 2
    )
    distance = np.abs(arm)
    steps = np.angle(arm[1:] * arm[:-1].conj())
    return bool(
        distance.std() < 0.35 * distance.mean() and abs(float(steps.sum())) >= _LEAST_WINDING
    )
