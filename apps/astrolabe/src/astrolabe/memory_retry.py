"""When memory runs out in an update: smaller micro-batches, the same update."""

import gc
import logging
import traceback

import torch

from astrolabe.errors import ConfigError

log = logging.getLogger(__name__)

#: What a ``RuntimeError`` says when an allocation failed: on the CPU, in CUDA, in its libraries.
MARKS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of the CPU or of a GPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in MARKS)


class MicroBatch:
    """How many windows go through the network together; less when memory runs out.

    Micro-batches add up to the gradient of the whole minibatch, so that their size changes memory
    and speed, not results.

    Args:
        size: Windows, at least 1.

    Attributes:
        size: As it is now; it never grows again.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def halve(self, error: BaseException) -> None:
        """Go on with half the size, and free what the failed pass holds.

        Args:
            error: That of the failed pass, which keeps its tensors alive by its traceback.

        Raises:
            ConfigError: If a single window is too much.
        """
        release(error)
        if self.size == 1:
            raise ConfigError(
                "memory ran out with a single window at a time (train.micro_batch = 1). Set "
                "train.gradient_checkpointing to true, lower rollout.num_frames, or share the "
                "weights over more processes with distributed.base = 'sharded'."
            ) from error
        before, self.size = self.size, self.size // 2
        log.warning(
            "memory ran out with train.micro_batch = %d; from now on it is %d. The effective "
            "batch stays as it is, and so do the results. Start the next run with "
            "--set train.micro_batch=%d.",
            before,
            self.size,
            self.size,
        )


def release(error: BaseException) -> None:
    """Free the tensors of the finished calls in an error's traceback, and CUDA's cache."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__context__
    gc.collect()  # graphs hold cycles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
