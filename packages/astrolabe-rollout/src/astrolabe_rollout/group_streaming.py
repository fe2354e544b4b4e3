"""GroupStreamingPolicy: a group's history is made once; its candidates share it."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from astrolabe_rollout.chunks import ChunkStream, SeededNoise
from astrolabe_rollout.entries import check_embeds, check_entries, check_groups
from astrolabe_rollout.keys import (
    CONTEXT,
    EMBEDS,
    GROUP,
    HISTORY_SEED,
    INDEX,
    LATENTS,
    OVERVIEW,
    OVERVIEW_FPS,
    PIXELS,
    SCRIPT,
    SEED,
    STEPS,
)
from astrolabe_rollout.model import AnyModel, check_model
from astrolabe_rollout.streaming import (
    meet_collector,
    next_context,
    overview_of,
    refuse_overview,
    refuse_recording,
    sample_window,
)
from astrolabe_rollout.windows import prompts_of_window

Commit = Literal["random", "best", "each"]

#: Reads a window's batch with pixels, returns a number for each of its videos ``[N]``.
Judge = Callable[[TensorDictBase], Tensor]


class GroupStreamingPolicy(TensorDictModuleBase):
    """Samples the candidates of a window from one history for each group (Astrolabe, algorithm 2).

    Reads ``("prompt","embeds")``, ``("prompt","seed")``, ``("prompt","group")``,
    ``("prompt","script")``, ``("prompt","history_seed")`` and ``("window","index")``; writes
    ``("video","latents")``, ``("window","context")`` and ``("video","pixels")``. A first call may
    ask for any window: what lies before is rolled out, one video for each group, and its cache
    stored once. A call for the next window of the same videos goes on from a candidate of each
    group.

    Videos of a group lie next to each other, as many of each.

    Args:
        model: The video model.
        num_frames: Latent frames of a window, a multiple of the model's chunk.
        decode: Whether to write pixels.
        stackable: Give every window as many pixel frames as the first, see `StreamingPolicy`.
        commit: Which candidate carries the history on: one drawn at ``random``, the ``best`` by
            ``judge``, or ``each`` its own.
        judge: For ``best``.
        windows: Windows that follow each other in a rollout; for the memory of ``each``.
        scene_windows: Windows of each prompt of a script; 0: there are no scripts.
        capacity: Latent frames to allocate for a model without a window.
        record: Whether to write ``("steps","latents")``.
        overview: Frames of ``("video","overview")``, see `StreamingPolicy`.

    Raises:
        ValueError: If ``num_frames`` is no multiple of the chunk, ``best`` has no judge, or steps
            cannot be recorded.
    """

    def __init__(
        self,
        model: AnyModel,
        num_frames: int = 9,
        *,
        decode: bool = True,
        stackable: bool = False,
        commit: Commit = "random",
        judge: Judge | None = None,
        windows: int = 1,
        scene_windows: int = 0,
        capacity: int | None = None,
        record: bool = False,
        overview: int = 0,
    ) -> None:
        super().__init__()
        check_model(type(self).__name__, model)
        if commit not in get_args(Commit) or (commit == "best") != (judge is not None):
            raise ValueError(
                f"commit is {commit!r} and judge {judge!r}. Choose from {get_args(Commit)}; 'best' "
                "and only 'best' needs a judge."
            )
        if record:
            refuse_recording(model)
        refuse_overview(overview, decode)
        self.chunks = model.geometry.chunks(num_frames)
        self.num_frames, self.decode, self.stackable = num_frames, decode, stackable
        self.commit, self.judge, self.windows = commit, judge, windows
        self.scene_windows, self.record, self.overview = scene_windows, record, overview
        self.capacity = capacity if model.geometry.window is None else None
        self.transformer = model.transformer
        self.in_keys = [EMBEDS, SEED, GROUP, SCRIPT, HISTORY_SEED, INDEX]
        self.out_keys = [
            *(LATENTS, CONTEXT),
            *([PIXELS] if decode else []),
            *([STEPS] if record else []),
            *([OVERVIEW, OVERVIEW_FPS] if overview else []),
        ]
        self._model = model
        self._history: ChunkStream | None = None
        self._candidates: ChunkStream | None = None
        self._context: Tensor | None = None  # of the groups, or of each candidate
        self._seen: list[str] = []  # what the history's last window showed
        self._shown: Tensor | None = None  # embeddings of it
        self._committed: Tensor | None = None  # what is to be appended to the history
        self._next, self._groups = -1, Tensor()

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise levels that sampling visits, falling from 1."""
        return self._model.sigmas

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values held now; a shared history counts once."""
        stream = self._candidates or self._history
        return 0 if stream is None else stream.cache.nbytes

    def register_collector(self, collector: Any) -> None:
        """See `StreamingPolicy`."""
        meet_collector(self, self._model.geometry, collector)

    def release(self) -> None:
        """Forget the videos, and with them all caches; the next call begins new ones."""
        self._history = self._candidates = self._context = self._committed = None
        self._seen, self._shown = [], None
        self._next = -1

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Sample one window of every candidate.

        Raises:
            KeyError: If the batch lacks an entry.
            NotFiniteError: If latents are sampled that are NaN or infinite.
            TypeError: If an entry has another dtype.
            ValueError: If an entry has another rank, embeddings are not finite, groups are of
                different size or not together, or the batch mixes windows.
        """
        check_entries(type(self).__name__, tensordict, self.in_keys)
        check_embeds(type(self).__name__, tensordict)
        flat = tensordict.reshape(-1)
        check_groups(type(self).__name__, flat)
        index, size = self._index(flat), self._group_size(flat)
        embeds = flat[EMBEDS].to(next(self.transformer.parameters()).device)
        heads = flat[::size]
        if index != self._next or not torch.equal(flat[GROUP], self._groups):
            self._begin(heads, index)
        elif self.commit != "each":
            self._go_on(heads)
        stream = self._fork(heads, embeds, flat[SEED].tolist(), index)
        stream.noise = SeededNoise(flat[SEED].tolist(), index)
        chunks, latents = sample_window(stream, embeds, self.chunks, index)
        assert self._context is not None
        context = self._context.repeat_interleave(len(flat) // len(self._context), 0)
        written: dict[NestedKey, Tensor] = {LATENTS: latents, CONTEXT: context}
        if self.decode:
            pixels = torch.cat([chunk.pixels for chunk in chunks if chunk.pixels is not None], 1)
            extra = self._model.geometry.temporal - 1 if index and self.stackable else 0
            written[PIXELS] = pixels[:, extra:]
        if self.record:
            written[STEPS] = torch.cat([c.steps for c in chunks if c.steps is not None], 2)
        written |= overview_of(stream, self._model.fps)
        for key, value in written.items():
            tensordict[key] = value.reshape(*tensordict.batch_size, *value.shape[1:])
        self._remember(tensordict.reshape(-1), latents, context, index, size)
        return tensordict

    def _begin(self, heads: TensorDictBase, index: int) -> None:
        """Roll out the history of new videos, one for each group, up to a window."""
        self.release()
        geometry, groups = self._model.geometry, len(heads)
        shape = (groups, geometry.context, geometry.channels, *geometry.latent_size)
        device = next(self.transformer.parameters()).device
        self._context = torch.zeros(shape, device=device)
        seeds = heads[HISTORY_SEED].tolist()
        for window in range(index):
            embeds = self._show(heads, window)
            history = self._require_history(seeds)
            history.noise = SeededNoise(seeds, window)
            _, latents = sample_window(history, embeds, self.chunks, window, " of the histories")
            before = window * self.num_frames
            self._context = next_context(self._context, latents, before, geometry.sink)

    def _go_on(self, heads: TensorDictBase) -> None:
        """Append the committed candidate of each group to its history."""
        assert self._committed is not None
        history = self._require_history(heads[HISTORY_SEED].tolist())
        history.append(self._committed, self._show(heads, self._next - 1))
        self._committed = None

    def _fork(
        self, heads: TensorDictBase, embeds: Tensor, seeds: list[int], index: int
    ) -> ChunkStream:
        """The stream of all candidates for this window."""
        going = self.commit == "each" and index == self._next
        if going and self._candidates is not None:
            return self._candidates
        if self._history is None:
            self._candidates = ChunkStream(
                self._model,
                seeds,
                capacity=self.capacity,
                decode=self.decode,
                record=self.record,
                overview=self.overview,
            )
        else:
            frames = self.num_frames * (self.windows if self.commit == "each" else 1)
            self._history.change(self._show(heads, index))
            self._candidates = self._history.fork(seeds, embeds, frames, record=self.record)
        return self._candidates

    def _show(self, heads: TensorDictBase, window: int) -> Tensor:
        """Embeddings of what each group's history shows; the same object while it is the same."""
        prompts = prompts_of_window(list(heads[SCRIPT]), window, self.scene_windows)
        if self._shown is None or prompts != self._seen:
            device = next(self.transformer.parameters()).device
            self._shown = self._model.text(prompts).to(device)
            self._seen = prompts
        return self._shown

    def _require_history(self, seeds: list[int]) -> ChunkStream:
        if self._history is None:
            self._history = ChunkStream(
                self._model,
                seeds,
                capacity=self.capacity,
                decode=self.decode,
                overview=self.overview,
            )
        return self._history

    def _remember(
        self, flat: TensorDictBase, latents: Tensor, context: Tensor, index: int, size: int
    ) -> None:
        """Choose what the next window goes on from."""
        before, sink = index * self.num_frames, self._model.geometry.sink
        self._next, self._groups = index + 1, flat[GROUP].clone()
        if self.commit == "each":
            self._context = next_context(context, latents, before, sink)
            return
        rows = self._rows(flat, index, size)
        self._committed = latents[rows]
        self._context = next_context(context[rows], self._committed, before, sink)

    def _rows(self, flat: TensorDictBase, index: int, size: int) -> Tensor:
        """The committed candidate of each group."""
        firsts = torch.arange(0, len(flat), size)
        if self.judge is not None:
            values = self.judge(flat).reshape(-1, size).nan_to_num(-torch.inf)
            return firsts + values.argmax(1).cpu()
        chosen = [
            int(torch.randint(size, (), generator=torch.Generator().manual_seed(int(seed) + index)))
            for seed in flat[HISTORY_SEED][::size].tolist()
        ]
        return firsts + torch.tensor(chosen)

    def _index(self, flat: TensorDictBase) -> int:
        indices = flat[INDEX].unique().tolist()
        if len(indices) != 1 or indices[0] < 0:
            raise ValueError(
                f"the batch of {len(flat)} videos mixes the windows {indices}, or has one below 0. "
                "Ask for one window of all videos at a time."
            )
        return int(indices[0])

    def _group_size(self, flat: TensorDictBase) -> int:
        groups, counts = torch.unique_consecutive(flat[GROUP], return_counts=True)
        if len(counts.unique()) != 1 or len(groups.unique()) != len(groups):
            raise ValueError(
                f"groups of {counts.tolist()} videos lie next to each other: {groups.tolist()}. "
                "Give whole groups, or an equal part of each, the videos of each together."
            )
        size = int(counts[0])
        scripts, seeds = list(flat[SCRIPT]), flat[HISTORY_SEED].tolist()
        for first in range(0, len(flat), size):
            rows = slice(first, first + size)
            if len(set(scripts[rows])) > 1 or len(set(seeds[rows])) > 1:
                raise ValueError(
                    f"the videos of group {int(flat[GROUP][first])} have the scripts "
                    f"{sorted(set(scripts[rows]))} and the history seeds {seeds[rows]}. "
                    "They share a history: give them one of each."
                )
        return size
