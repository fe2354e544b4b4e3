"""ChunkStream: a batch of videos, chunk by chunk, by the rules of its model.

All that differs between the families of causal models while they run is here: the first chunk's own
step list, what happens to the cache when the prompt changes, and caches that are computed anew for
every chunk.
"""

from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from astrolabe_rollout.batch_cache import BatchCache
from astrolabe_rollout.checks import kind
from astrolabe_rollout.codec import DecodeStream
from astrolabe_rollout.finite import check_latents
from astrolabe_rollout.model import AnyModel
from astrolabe_rollout.overview import Overview
from astrolabe_rollout.sampler import prefill, rebuild, recache, sample_chunk

ROUNDING = 0.02  # of the largest number of an embedding; bfloat16 and 24 layers stay below
GOLDEN_RATIO = 0x9E3779B97F4A7C15  # spreads window numbers over the seeds


class Chunk(NamedTuple):
    """What a stream gives at a time."""

    latents: Tensor
    """``[B, f, C, h, w]``."""
    pixels: Tensor | None
    """uint8 ``[B, F, 3, H, W]``; None if the stream does not decode."""
    steps: Tensor | None = None
    """What was denoised at each noise level, ``[B, K, f, C, h, w]``; None if not asked for."""


class ChunkStream:
    """Samples a batch of videos that go on for as long as it is asked.

    Args:
        model: The video model.
        seeds: One a video. Noise is drawn from it on the CPU, so a seed gives the same noise
            whatever the batch, the device or the number of processes.
        capacity: Latent frames of the whole video, for a model without a window.
        decode: Whether to make pixels. A model that rebuilds its cache always does: its context is
            encoded from them.
        record: Whether to give the steps of sampling too.
        overview: Frames of an overview of the whole video to keep; 0: none.

    Attributes:
        overview: The overview, if frames are decoded and it was asked for.

    Raises:
        ValueError: If the model has no window and no capacity is given.
    """

    def __init__(
        self,
        model: AnyModel,
        seeds: Sequence[int],
        *,
        capacity: int | None = None,
        decode: bool = True,
        record: bool = False,
        overview: int = 0,
    ) -> None:
        self.model, self.size, self.record = model, len(seeds), record
        self.overview = Overview(overview) if overview else None
        self.cache = BatchCache(model.transformer.new_cache(capacity), self.size)
        self.noise = SeededNoise(seeds)
        self._decode: DecodeStream | None = None
        if decode or model.rebuild:
            self._decode = model.codec.stream()
        self._embeds: Tensor | None = None
        self._latents: Tensor | None = None  # the newest, as far as a rule may ask for them
        self._pixels: Tensor | None = None  # the newest, for a rule that encodes them again
        self._first: Tensor | None = None
        self._frames = 0  # latent frames so far

    @torch.no_grad()
    def begin(self, latents: Tensor, embeds: Tensor) -> Chunk:
        """Start from given clean latents: a picture, or a video that is to go on.

        They fill the cache at timestep 0, an odd rest of frames first and then chunk by chunk.

        Args:
            latents: ``[B, n, C, h, w]``, n of 1 or more.
            embeds: Text ``[B, L, D]``.

        Returns:
            The same latents, and their pixels as the codec shows them.
        """
        chunk = self.model.geometry.chunk
        odd = latents.shape[1] % chunk
        for part in (latents[:, :odd], latents[:, odd:]):
            if part.shape[1]:
                prefill(self.model.transformer, part, embeds, self.cache, chunk)
        self._embeds = embeds
        return self._keep(latents)

    @torch.no_grad()
    def next(
        self, embeds: Tensor, *, cut: bool | Sequence[bool] = False, check: bool = True
    ) -> Chunk:
        """Sample the next chunk.

        Args:
            embeds: Text ``[B, L, D]``. To each video whose embeddings are not those of the last
                chunk, the model's rule for another prompt is applied before the chunk.
            cut: Whether the chunk begins a scene by a hard cut, of all videos or of each: whatever
                the rule, all but the first and last two frames are forgotten, and the chunk lies
                far from them in time (Infinity-RoPE).
            check: Whether to refuse latents that are not finite, for which the CPU waits for them.

        Raises:
            NotFiniteError: If ``check`` finds NaN or infinite numbers.
            ValueError: If there are not as many cuts as videos.
        """
        model, started = self.model, self._frames > 0
        cuts = [cut] * self.size if isinstance(cut, bool) else list(cut)
        if len(cuts) != self.size:
            raise ValueError(
                f"there are {len(cuts)} cuts for {self.size} videos. Give one a video."
            )
        if any(cuts):
            self.cache.cut(cuts)
        embeds = self._change(embeds, cuts)
        if started and model.rebuild:
            size = model.geometry.chunk
            rebuild(model.transformer, self._context(model.rebuild), embeds, self.cache, size)
        first = not started
        sigmas = model.first_sigmas if first else model.sigmas
        geometry = model.geometry
        shape = (geometry.chunk, geometry.channels, *geometry.latent_size)
        visited: list[Tensor] | None = [] if self.record else None
        latents = sample_chunk(
            model.transformer,
            sigmas,
            embeds,
            self.cache,
            self.noise.draw(len(sigmas), shape, embeds.device).__getitem__,
            geometry.chunk,
            timesteps=model.first_timesteps if first else model.timesteps,
            clean=not model.rebuild,
            visited=visited,
        )
        if check:
            what = f"chunk {self._frames // geometry.chunk} of the stream"
            check_latents(what, latents, geometry.chunk, model.transformer)
        steps = torch.stack(visited, 1) if visited else None
        return self._keep(latents)._replace(steps=steps)

    def change(self, embeds: Tensor) -> None:
        """Apply the model's rule for another prompt now, before the stream is forked for it.

        Args:
            embeds: What comes next; see `next`.
        """
        self._change(embeds)

    def _change(self, embeds: Tensor, cuts: Sequence[bool] = ()) -> Tensor:
        """Meet the prompts that are new; what was cut has met its own.

        Returns:
            ``embeds``, as the same object as before if nothing is new: text is projected once.
        """
        known = self._embeds
        if self._frames and known is not None:
            new = [False] * self.size if embeds is known else _differing(known, embeds)
            if not any(new):
                return known
            self._embeds = embeds
            self._switch([n and not cut for n, cut in zip_longest(new, cuts, fillvalue=False)])
        self._embeds = embeds
        return embeds

    @torch.no_grad()
    def append(self, latents: Tensor, embeds: Tensor) -> None:
        """Go on with chunks that were sampled elsewhere, as if they had been sampled here.

        Args:
            latents: Clean, whole chunks ``[B, f, C, h, w]``.
            embeds: What they show; see `next` for another prompt.
        """
        embeds = self._change(embeds)
        chunk = self.model.geometry.chunk
        if not self.model.rebuild:
            prefill(self.model.transformer, latents, embeds, self.cache, chunk)
        for part in torch.split(latents, chunk, 1):
            self._keep(part)

    def fork(
        self, seeds: Sequence[int], embeds: Tensor, frames: int, *, record: bool = False
    ) -> "ChunkStream":
        """Return a stream of several continuations of each video; what lies before is shared.

        Args:
            seeds: One a continuation, those of a video next to each other.
            embeds: What they show, ``[B * G, L, D]``; the same prompts as the stream's.
            frames: Latent frames that each of them may add.
            record: Whether to give the steps of sampling too.
        """
        count = len(seeds) // self.size
        other = ChunkStream(self.model, seeds, capacity=1, decode=False, record=record)
        transformer = self.model.transformer
        if self.model.rebuild:
            other.cache = BatchCache(transformer.new_cache(), other.size)
        else:
            other.cache = self.cache.fork(frames, count)
        other._decode = None if self._decode is None else self._decode.fork(count)
        other._embeds, other._frames = embeds, self._frames
        if self.overview is not None:
            other.overview = Overview(self.overview.count, before=self.overview)
        for name in ("_latents", "_pixels", "_first"):
            value: Tensor | None = getattr(self, name)
            expanded = None if value is None else value.repeat_interleave(count, 0)
            setattr(other, name, expanded)
        return other

    def _switch(self, chosen: Sequence[bool]) -> None:
        """Apply the rule for another prompt to these videos and to no others."""
        rule, embeds = self.model.switch, self._embeds
        if rule == "keep" or not any(chosen):
            return
        assert embeds is not None
        assert self._latents is not None
        for part in self.cache.split(chosen):
            if rule == "flush":
                part.cache.flush()
                continue
            rows = slice(None) if part.rows is None else part.rows.to(embeds.device)
            recache(
                self.model.transformer,
                self._latents[rows],
                embeds[rows],
                part.cache,
                keep_sink=rule == "recache",
            )
        self.cache.settle()

    def _keep(self, latents: Tensor) -> Chunk:
        """Remember what later chunks may need, and decode."""
        pixels = None if self._decode is None else self._pictures(self._decode, latents)
        if self.overview is not None and pixels is not None:
            self.overview.add(pixels)
        self._frames += latents.shape[1]
        if self._first is None:
            self._first = latents[:, :1]
        rebuild_from = self.model.rebuild
        if rebuild_from or self.model.switch.startswith("recache"):
            self._latents = _newest(self._latents, latents, self.cache.capacity)
        else:
            self._latents = latents
        if rebuild_from and pixels is not None:
            temporal = self.model.geometry.temporal
            self._pixels = _newest(self._pixels, pixels, 1 + (rebuild_from - 1) * temporal)
        return Chunk(latents, pixels)

    def _pictures(self, decode: DecodeStream, latents: Tensor) -> Tensor:
        """Decode, and refuse what is no video of the geometry."""
        geometry, pixels = self.model.geometry, decode(latents)
        count = geometry.pixel_frames(latents.shape[1], first=not self._frames)
        wanted = [len(latents), count, 3, geometry.height, geometry.width]
        if pixels.dtype != torch.uint8 or list(pixels.shape) != wanted:
            raise ValueError(
                f"the codec decodes latents {list(latents.shape)} to {kind(pixels)}; the geometry "
                f"has uint8 {wanted} for them. Correct the codec, or the geometry's factors."
            )
        return pixels

    def _context(self, frames: int) -> Tensor:
        """Latents from which Krea's cache is computed: one old frame and the newest.

        The old one is the video's first frame at the beginning, later the oldest pixel frame still
        at hand, encoded again: it is then the start of a video of its own to the codec.
        """
        assert self._latents is not None
        assert self._first is not None
        # The first frame must not come twice while the video is as short as its context.
        rest = min(frames, self._frames) - 1
        newest = self._latents[:, self._latents.shape[1] - rest :]
        if self._frames - self.model.geometry.chunk < frames:
            return torch.cat([self._first, newest], 1)
        assert self._pixels is not None
        again = self.model.codec.encode(self._pixels[:, :1]).to(newest)
        return torch.cat([again, newest], 1)


class SeededNoise:
    """The noise of a batch of videos, from one seed a video.

    Args:
        seeds: One a video.
        part: Number of the part of the video, such as a window: each part has noise of its own.
    """

    def __init__(self, seeds: Sequence[int], part: int = 0) -> None:
        self._generators = [
            torch.Generator().manual_seed((int(seed) + GOLDEN_RATIO * part) % 2**63)
            for seed in seeds
        ]

    def draw(self, steps: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Return the next chunk's noise for each denoising step, float32 ``[steps, B, *shape]``."""
        size = (steps, *shape)
        noise = torch.stack([torch.randn(size, generator=g) for g in self._generators], 1)
        # From pinned memory, so that nothing waits for the copy.
        pinned = noise.pin_memory() if device.type == "cuda" else noise
        return pinned.to(device, non_blocking=True)


def _differing(before: Tensor, after: Tensor) -> list[bool]:
    """Which of ``[B, L, D]`` are of another prompt.

    By content, since a batch may hold videos whose prompt stays. Rounding is no new prompt: where
    an encoder computes a prompt again beside others, its last bits may differ. Another prompt
    differs by the size of the numbers themselves.
    """
    length = max(before.shape[1], after.shape[1])
    old, new = (
        pad(x.float(), (0, 0, 0, length - x.shape[1])) for x in (before, after.to(before.device))
    )
    difference = (new - old).abs().amax((1, 2))
    found: list[bool] = (difference > ROUNDING * old.abs().amax((1, 2))).tolist()
    return found


def _newest(before: Tensor | None, new: Tensor, count: int) -> Tensor:
    """The last ``count`` frames."""
    joined = new if before is None else torch.cat([before, new], 1)
    return joined[:, -count:]
