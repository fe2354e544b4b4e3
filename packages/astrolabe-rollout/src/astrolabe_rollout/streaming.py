"""StreamingPolicy: one window of video a call, over a cache that rolls on from call to call."""

from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from astrolabe_rollout.checks import without_transforms
from astrolabe_rollout.chunks import Chunk, ChunkStream, SeededNoise
from astrolabe_rollout.entries import check_embeds, check_entries, check_groups
from astrolabe_rollout.finite import check_latents
from astrolabe_rollout.geometry import Geometry
from astrolabe_rollout.keys import (
    CONTEXT,
    EMBEDS,
    INDEX,
    LATENTS,
    OVERVIEW,
    OVERVIEW_FPS,
    PIXELS,
    SEED,
    STEPS,
)
from astrolabe_rollout.model import AnyModel, check_model
from astrolabe_rollout.overview import Overview


class StreamingPolicy(TensorDictModuleBase):
    """Samples the next window of a batch of videos.

    Reads ``("prompt","embeds")``, ``("prompt","seed")`` and ``("window","index")``; writes
    ``("video","latents")``, ``("window","context")`` and ``("video","pixels")``. Index 0 starts new
    videos, index k goes on with those of the call before: the KV cache lives here, never in the
    batch.

    Noise is drawn from each video's own seed on the CPU, so a seed gives the same noise whatever
    the batch, the device or the number of processes.

    Args:
        model: The video model.
        num_frames: Latent frames of a window, a multiple of the model's chunk.
        decode: Whether to write pixels.
        stackable: Give every window as many pixel frames as the first, by leaving out the first
            three of later ones; the windows of a video then fit into one ``[N, T]`` batch.
        capacity: Latent frames to allocate for a model without a window; ``num_frames`` by default.
        record: Whether to write ``("steps","latents")``, for objectives on the sampler's own steps.
        overview: Frames of ``("video","overview")``, which shows the whole video so far, with
            ``("video","overview_fps")``; 0: not written.

    Raises:
        TypeError: If ``model`` is no `VideoModel`, or ``num_frames`` no whole number.
        ValueError: If ``num_frames`` is no multiple of the chunk, steps are to be recorded of a
            model whose first chunk has another number of them, or an overview is to be kept of
            frames that are not decoded.
    """

    def __init__(
        self,
        model: AnyModel,
        num_frames: int = 9,
        *,
        decode: bool = True,
        stackable: bool = False,
        capacity: int | None = None,
        record: bool = False,
        overview: int = 0,
    ) -> None:
        super().__init__()
        check_model(type(self).__name__, model)
        if record:
            refuse_recording(model)
        refuse_overview(overview, decode)
        self.chunks = model.geometry.chunks(num_frames)
        self.num_frames, self.decode, self.stackable = num_frames, decode, stackable
        self.record, self.overview = record, overview
        self.capacity = (capacity or num_frames) if model.geometry.window is None else None
        self.transformer = model.transformer
        self.in_keys = [EMBEDS, SEED, INDEX]
        self.out_keys = [
            *(LATENTS, CONTEXT),
            *([PIXELS] if decode else []),
            *([STEPS] if record else []),
            *([OVERVIEW, OVERVIEW_FPS] if overview else []),
        ]
        self._model = model
        self._stream: ChunkStream | None = None
        self._context: Tensor | None = None
        self._windows = 0  # sampled since the videos began

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise levels that sampling visits, falling from 1."""
        return self._model.sigmas

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values held now."""
        return 0 if self._stream is None else self._stream.cache.nbytes

    def register_collector(self, collector: Any) -> None:
        """Meet TorchRL's collector, which calls this when it is made.

        Raises:
            ValueError: If it would stack windows of different length.
        """
        meet_collector(self, self._model.geometry, collector)

    def release(self) -> None:
        """Forget the videos, and with them the cache; the next call has to start new ones."""
        self._stream = self._context = None
        self._windows = 0

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Sample one window.

        Raises:
            KeyError: If the batch lacks an entry.
            NotFiniteError: If latents are sampled that are NaN or infinite.
            TypeError: If an entry has another dtype.
            ValueError: If an entry has another rank, embeddings are not finite, there is no
                video, or the batch does not go on where the last call ended.
        """
        check_entries(type(self).__name__, tensordict, self.in_keys)
        if not tensordict.batch_size.numel():
            raise ValueError(f"the batch {list(tensordict.shape)} has no video. Give one or more.")
        check_embeds(type(self).__name__, tensordict)
        flat = tensordict.reshape(-1)
        check_groups(type(self).__name__, flat)
        index = self._index(flat)
        if index == 0:
            self.release()
        geometry = self._model.geometry
        embeds = flat[EMBEDS].to(next(self.transformer.parameters()).device)
        seeds = flat[SEED].tolist()
        if index == 0:
            self._stream = ChunkStream(
                self._model,
                seeds,
                capacity=self.capacity,
                decode=self.decode,
                record=self.record,
                overview=self.overview,
            )
            shape = (len(flat), geometry.context, geometry.channels, *geometry.latent_size)
            self._context = torch.zeros(shape, device=embeds.device)
        assert self._stream is not None
        assert self._context is not None
        self._stream.noise = SeededNoise(seeds, index)
        chunks, latents = sample_window(self._stream, embeds, self.chunks, index)
        context = self._context
        self._windows = index + 1
        self._context = next_context(context, latents, index * self.num_frames, geometry.sink)
        written: dict[NestedKey, Tensor] = {LATENTS: latents, CONTEXT: context}
        if self.decode:
            pixels = torch.cat([chunk.pixels for chunk in chunks if chunk.pixels is not None], 1)
            extra = geometry.temporal - 1 if index and self.stackable else 0
            written[PIXELS] = pixels[:, extra:]
        if self.record:
            steps = [chunk.steps for chunk in chunks if chunk.steps is not None]
            written[STEPS] = torch.cat(steps, 2)  # [B, K, f, C, h, w]
        written |= overview_of(self._stream, self._model.fps)
        for key, value in written.items():
            tensordict[key] = value.reshape(*tensordict.batch_size, *value.shape[1:])
        return tensordict

    def _index(self, flat: TensorDictBase) -> int:
        indices = flat[INDEX].unique().tolist()
        known = 0 if self._context is None else len(self._context)
        if indices != [0] and (indices != [self._windows] or known != len(flat)):
            raise ValueError(
                f"the batch asks for windows {indices} of {len(flat)} videos, but this policy "
                f"holds {known} videos and goes on with window {self._windows}. Start videos with "
                "index 0 and call once for each window, in order."
            )
        return int(indices[0])


def sample_window(
    stream: ChunkStream, embeds: Tensor, count: int, index: int, of: str = ""
) -> tuple[list[Chunk], Tensor]:
    """Sample the chunks of a window; whether they are numbers is looked at once, at its end.

    Args:
        stream: The videos.
        embeds: What they show.
        count: Chunks of a window.
        index: Of the window, for the message.
        of: What is sampled, for the message, if not the videos themselves.

    Returns:
        The chunks, and all their latents ``[B, f, C, h, w]``.

    Raises:
        NotFiniteError: If latents are NaN or infinite.
    """
    chunks = [stream.next(embeds, check=False) for _ in range(count)]
    latents = torch.cat([chunk.latents for chunk in chunks], 1)
    model = stream.model
    check_latents(f"window {index}{of}", latents, model.geometry.chunk, model.transformer)
    return chunks, latents


def meet_collector(policy: Any, geometry: Geometry, collector: Any) -> None:
    """Refuse a collector that stacks windows of different length; tell its environment of it.

    TorchRL introduces a collector to the environment that it is given, not to one inside of it.

    Raises:
        ValueError: Names the lengths.
    """
    inside = without_transforms(collector.env)
    if inside is not collector.env:
        inside.register_collector(collector)
    schedule = vars(inside).get("schedule")
    if schedule is None or not (policy.decode and schedule.begins_and_goes_on) or policy.stackable:
        return
    lengths = [geometry.pixel_frames(policy.num_frames, first) for first in (True, False)]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"the first window of a video has {lengths[0]} pixel frames, later ones have "
            f"{lengths[1]}: they do not fit into one batch [videos, windows]. Make the policy with "
            "stackable=True, which leaves out the first frames of later windows, or with "
            "decode=False."
        )


def refuse_overview(overview: int, decode: bool) -> None:
    """Refuse an overview that cannot be.

    Raises:
        ValueError: Says why.
    """
    if overview and not decode:
        raise ValueError(
            f"overview={overview} is made of pixels, which decode=False leaves out. "
            "Leave out overview too, or decode."
        )
    if overview:
        Overview(overview)


def overview_of(stream: ChunkStream, fps: float) -> dict[NestedKey, Tensor]:
    """Return the entries that show the whole video of a stream; none if it keeps no overview."""
    if stream.overview is None:
        return {}
    frames = stream.overview.frames()
    return {OVERVIEW: frames, OVERVIEW_FPS: torch.full((len(frames),), stream.overview.fps(fps))}


def refuse_recording(model: AnyModel) -> None:
    """Refuse to record steps of a model whose first chunk has another number of them.

    Raises:
        ValueError: Says which.
    """
    if model.first_sigmas != model.sigmas:
        raise ValueError(
            f"the first chunk is sampled at {model.first_sigmas}, later ones at {model.sigmas}: "
            "their steps do not fit into one batch. Choose an objective that needs no steps."
        )


def next_context(context: Tensor, latents: Tensor, before: int, sink: int) -> Tensor:
    """Return what the next window can see: the sink, then the newest frames, then zeros.

    Args:
        context: The same for this window, ``[B, c, C, h, w]``.
        latents: This window, ``[B, f, C, h, w]``.
        before: Latent frames of the video before this window.
        sink: Frames kept for ever.
    """
    size = context.shape[1]
    seen = torch.cat([context[:, : min(before, size)], latents], 1)
    if seen.shape[1] > size:
        seen = torch.cat([seen[:, :sink], seen[:, seen.shape[1] - (size - sink) :]], 1)
    padding = context.new_zeros(len(context), size - seen.shape[1], *context.shape[2:])
    return torch.cat([seen, padding], 1)
