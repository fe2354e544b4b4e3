"""Run a model over a prompt suite.

The model is any callable on a TensorDict, so this file knows no network, no text encoder and no
sampler.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeAlias

from astrolabe_eval.keys import FPS, INDEX, PIXELS, SEED, TEXT
from astrolabe_eval.suites import Suite
from astrolabe_eval.torch_extra import require_torch

if TYPE_CHECKING:
    from tensordict import TensorDict

#: Takes a batch, writes entries into it or a copy of it, and returns that.
Step: TypeAlias = "Callable[[TensorDict], TensorDict]"
#: Called with the number of finished samples and of all samples.
Progress: TypeAlias = Callable[[int, int], None]


def generate(
    sample: Step,
    suite: Suite,
    *,
    fps: float,
    batch_size: int = 8,
    on_progress: Progress | None = None,
) -> "Iterator[TensorDict]":
    """Generate one video for each sample of a suite, in order, without gradients.

    Args:
        sample: Reads ``("prompt","text")``, ``("prompt","seed")``, ``("window","index")`` (all 0)
            and ``("video","fps")`` of a batch ``[n]``; returns it with ``("video","pixels")``. The
            noise must follow from the seeds alone, else ``batch_size`` changes the videos.
        suite: The prompts and seeds.
        fps: Frames per second of the model's videos.
        batch_size: Samples per call; the last call may have fewer.
        on_progress: Told after each batch.

    Yields:
        What ``sample`` returned, one batch at a time: nothing else is held in memory.

    Raises:
        ModuleNotFoundError: Without torch and tensordict, the extra ``torch``.
        TypeError: If ``sample`` is no function, or returns no batch.
        ValueError: If an option is out of range, or ``sample`` lost, reordered or did not make a
            video.
    """
    require_torch("generate")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}. Use 1 or more.")
    if not fps > 0:
        raise ValueError(f"fps is {fps!r}. Use more than 0 frames per second.")
    check_step("sample", sample)
    return _batches(sample, suite, fps, batch_size, on_progress)


def check_step(name: str, step: object) -> None:
    """Refuse a model or a scorer that is none.

    Raises:
        TypeError: Names it.
    """
    if not callable(step):
        raise TypeError(
            f"{name} is {step!r:.80}. Give a function of a TensorDict that returns it with its own "
            "entries added."
        )


def _batches(
    sample: Step, suite: Suite, fps: float, batch_size: int, on_progress: Progress | None
) -> "Iterator[TensorDict]":
    import torch

    for start in range(0, len(suite), batch_size):
        request = _request(suite, slice(start, start + batch_size), fps)
        # Around the call only: a generator that holds no_grad open would switch it for its caller.
        with torch.no_grad():
            batch = sample(request.clone())
        _check_answer(request, batch)
        yield batch
        if on_progress is not None:
            on_progress(min(start + batch_size, len(suite)), len(suite))


def _request(suite: Suite, part: slice, fps: float) -> "TensorDict":
    """The entries that a model needs for some samples of the suite, ``[n]``."""
    import torch
    from tensordict import TensorDict

    seeds = torch.tensor(suite.seeds[part], dtype=torch.int64)
    request = TensorDict(batch_size=seeds.shape)
    request[TEXT] = list(suite.prompts[part])
    request[SEED] = seeds
    request[INDEX] = torch.zeros_like(seeds)
    request[FPS] = torch.full(seeds.shape, fps, dtype=torch.float32)
    return request


def _check_answer(request: "TensorDict", batch: "TensorDict") -> None:
    """Refuse an answer whose videos may belong to other prompts."""
    import torch
    from tensordict import TensorDictBase

    if not isinstance(batch, TensorDictBase):
        raise TypeError(
            f"sample returned a {type(batch).__name__}. "
            "Return the batch it was given with ('video', 'pixels') added."
        )
    missing = [key for key in (TEXT, SEED, PIXELS) if key not in batch.keys(include_nested=True)]
    if missing:
        raise ValueError(
            f"sample returned no {', '.join(map(str, missing))}. "
            "Return the batch it was given with ('video', 'pixels') added."
        )
    pixels = batch[PIXELS]
    count = len(request)
    fits = pixels.ndim == 5 and len(pixels) == count and pixels.shape[2] == 3
    if not fits or pixels.dtype != torch.uint8 or not pixels.numel():
        raise ValueError(
            f"sample returned pixels {pixels.dtype} {tuple(pixels.shape)} for {count} prompts. "
            f"Return uint8 ({count}, frames, 3, height, width)."
        )
    same_seeds = torch.equal(batch[SEED].reshape(-1).cpu(), request[SEED])
    if not same_seeds or list(batch[TEXT]) != list(request[TEXT]):
        raise ValueError(
            "sample returned the prompts or seeds in another order. "
            "Keep the order of the batch: videos are compared by position."
        )
