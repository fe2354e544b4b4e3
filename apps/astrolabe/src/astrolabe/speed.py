"""What tuning costs in speed: a run's model without its adapter, with it, and with it merged.

One network is all that there is on the device, so that a model that barely fits can be measured,
and so that the peak of memory is that of one variant. Between videos it is turned from one variant
into the next: ``base`` has no layers of peft at all, as a model that was never tuned.
"""

import json
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astrolabe.checkpoint_files import LORA
from astrolabe.clock import peak_memory
from astrolabe.compose import build_model
from astrolabe.evaluate import make_suite
from astrolabe.generate import length
from astrolabe.run_folder import RunFolder
from astrolabe.sampling import load_trained
from astrolabe_eval.files import write_atomic
from astrolabe_eval.throughput import Speed, Stream, Throughput, compare_in_turn, throughput_table
from astrolabe_rollout.chunks import Chunk, ChunkStream
from astrolabe_rollout.lora import load_lora, merge_lora
from astrolabe_rollout.model import VideoModel

VARIANTS = ("base", "tuned, merged", "tuned, adapter apart")
CHUNKS = 10
"""Chunks that are timed of each video, if no length is given."""

Say = Callable[[str], None]


class Variants:
    """One network that becomes any of `VARIANTS`.

    The base weights stay in host memory: merging overwrites them, and subtracting the adapter again
    would round.

    Args:
        model: The model, with the trained adapter on it; base afterwards.
        adapter: Folder of that adapter.
    """

    def __init__(self, model: VideoModel, adapter: Path) -> None:
        self._network, self._adapter = model.transformer.network, adapter
        self._network.unload_lora()  # type: ignore[no-untyped-call]
        self._apart = False
        self._base = {
            name: value.detach().to("cpu", copy=True)
            for name, value in self._network.state_dict().items()
        }

    def become(self, name: str) -> None:
        """Turn the network into a variant, from whichever it was."""
        network = self._network
        if self._apart:
            network.unload_lora()  # type: ignore[no-untyped-call]
        network.load_state_dict(self._base)
        self._apart = name == VARIANTS[2]
        if name != VARIANTS[0]:
            load_lora(network, self._adapter)
        if name == VARIANTS[1]:
            merge_lora(network)
        if any(module._compiled_call_impl is not None for module in network.modules()):
            # New layers are compiled anew; too many versions, and torch would stop compiling.
            torch.compiler.reset()


def speed(
    path: Path, *, seconds: float | None, repeats: int, say: Say, allow_code: bool = False
) -> dict[str, Any]:
    """Measure a run's model base and tuned, in turn, and write ``speed.json`` and ``speed.md``.

    Args:
        path: Folder of the run.
        seconds: Video that is timed of each repeat, rounded to chunks; None: `CHUNKS` chunks.
        repeats: Rounds over all variants, at least 2.
        say: Shows a line.
        allow_code: As in `RunFolder.open`.

    Returns:
        The content of ``speed.json``; Any, as it is what json reads.

    Raises:
        CheckpointError: If the run has no checkpoint that can be used.
        ConfigError: If it is no run folder, or the length is not above 0.
        ValueError: If there are fewer than 2 repeats.
        OSError: If the files cannot be written.
    """
    folder, run = RunFolder.open(path, allow_code=allow_code)
    prompt = make_suite(run)[0].prompts[0]
    model = build_model(run.model)
    chunks = length(model, None, seconds, CHUNKS * model.geometry.chunk)
    checkpoint = load_trained(model, folder)
    variants = Variants(model, checkpoint / LORA)
    embeds = model.text([prompt]).to(_device(model))
    model.encoder.release()
    protocol = _protocol(model, chunks, repeats) | {"checkpoint": checkpoint.name}
    result: dict[str, Any] = {"protocol": protocol}
    # A model that computes its cache from decoded frames cannot do without them.
    for decode in (True,) if model.rebuild else (True, False):
        title = "with decoding" if decode else "without decoding"
        say(f"Measuring {len(VARIANTS)} variants {title}, {repeats} times in turn ...")
        speeds, peaks = _compare(model, variants, embeds, protocol, decode=decode)
        result[title.replace(" ", "_")] = {
            name: asdict(value) | {"peak_memory_gib": peaks.get(name)}
            for name, value in speeds.items()
        }
        result.setdefault("tables", []).append(_table(title, speeds, peaks))
    protocol["process_peak_memory_gib"] = peak_memory()
    text = "\n".join([*result.pop("tables"), _in_words(protocol)])
    write_atomic(folder.path / "speed.json", (json.dumps(result, indent=2) + "\n").encode())
    write_atomic(folder.path / "speed.md", text.encode())
    say(text)
    return result


def _compare(
    model: VideoModel,
    variants: Variants,
    embeds: Tensor,
    protocol: dict[str, Any],
    *,
    decode: bool,
) -> tuple[dict[str, Speed], dict[str, float]]:
    """Time the variants in turn; return their figures and, of an accelerator, peaks in GiB."""
    cuda = embeds.is_cuda
    chunks, warm_up = protocol["chunks"], protocol["warm_up_chunks"]
    capacity = None if model.geometry.window else (warm_up + chunks) * model.geometry.chunk
    peaks: dict[str, float] = {}

    def video() -> Iterator[Chunk]:
        stream = ChunkStream(model, [0], capacity=capacity, decode=decode)
        while True:
            yield stream.next(embeds)

    def of(name: str) -> Stream:
        def start() -> Iterator[Chunk]:
            variants.become(name)
            next(video())  # weights that have just been moved, kernels that are compiled
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            return video()

        return start

    def done(name: str, run: Throughput) -> None:
        if cuda:
            peaks[name] = max(peaks.get(name, 0.0), peak_memory())

    speeds = compare_in_turn(
        {name: of(name) for name in VARIANTS},
        protocol["repeats"],
        frames_per_chunk=model.geometry.chunk * model.geometry.temporal,
        chunks=chunks,
        warm_up=warm_up,
        synchronise=torch.cuda.synchronize if cuda else None,
        done=done,
    )
    return speeds, peaks


def _protocol(model: VideoModel, chunks: int, repeats: int) -> dict[str, Any]:
    """How it was measured, for whoever wants to measure it again."""
    geometry, device = model.geometry, _device(model)
    # The cache is full from then on, and every chunk costs the same.
    warm_up = -(-geometry.window // geometry.chunk) if geometry.window else 1
    return {
        "astrolabe": version("astrolabe"),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type} ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "dtype": str(next(model.transformer.parameters()).dtype).removeprefix("torch."),
        "height": geometry.height,
        "width": geometry.width,
        "batch": 1,
        "steps": list(model.denoising_steps),
        "latent_frames_per_chunk": geometry.chunk,
        "window": geometry.window,
        "warm_up_chunks": warm_up,
        "chunks": chunks,
        "repeats": repeats,
    }


def _table(title: str, speeds: dict[str, Speed], peaks: dict[str, float]) -> str:
    table = f"## Speed {title}\n\n{throughput_table(speeds)}"
    if peaks:
        memory = ", ".join(f"{name} {peak:.2f} GiB" for name, peak in peaks.items())
        table += f"\nPeak memory of the accelerator: {memory}.\n"
    return table


def _in_words(protocol: dict[str, Any]) -> str:
    cache = (
        f"a cache of {protocol['window']} latent frames that is full"
        if protocol["window"]
        else "a cache that grows with the video"
    )
    return (
        f"{protocol['width']}x{protocol['height']} pixels, steps {protocol['steps']}, "
        f"{protocol['dtype']}, batch 1, {protocol['device']}, {protocol['threads']} threads of "
        f"{protocol['cores']} cores, load average {protocol['load_average']:.1f} at the start, "
        f"peak memory {protocol['process_peak_memory_gib']:.2f} GiB. "
        f"{protocol['repeats']} videos of each variant in turn, {protocol['warm_up_chunks']} "
        f"chunks to warm up and {protocol['chunks']} that are timed, with {cache}. The first frame "
        "is without text encoding and loading; decoded frames stay on the device. The ratio is the "
        "geometric mean over the videos against base's of the same round, with its interval over "
        "rounds: one that contains 1 shows no difference, and there is none for fewer than six "
        "rounds.\n"
    )


def _device(model: VideoModel) -> torch.device:
    return next(model.transformer.parameters()).device
