import gc
import logging
import weakref

import pytest
import torch

from astrolabe.errors import ConfigError
from astrolabe.memory_retry import MicroBatch, is_out_of_memory

TOO_MUCH = 2**60


def test_an_allocation_that_fails_is_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(TOO_MUCH, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    with pytest.raises(MemoryError) as caught:
        bytearray(TOO_MUCH)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    ],
)
def test_the_texts_of_cuda_are_out_of_memory(error):
    assert is_out_of_memory(error)


def test_other_errors_are_not():
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(caught.value)
    assert not is_out_of_memory(ValueError("CUDA error: out of memory"))


def test_sizes_halve_down_to_one_and_each_is_told(caplog):
    micro_batch = MicroBatch(6)
    sizes = []
    with caplog.at_level(logging.WARNING, "astrolabe.memory_retry"):
        for _ in range(2):
            micro_batch.halve(MemoryError())
            sizes.append(micro_batch.size)
    assert sizes == [3, 1]
    assert len(caplog.records) == 2
    assert "train.micro_batch = 6; from now on it is 3. The effective batch stays" in caplog.text


def test_a_single_window_that_is_too_much_is_refused_with_the_way_out():
    error = MemoryError()
    with pytest.raises(ConfigError, match=r"gradient_checkpointing to true.*num_fr") as caught:
        MicroBatch(1).halve(error)
    assert caught.value.__cause__ is error


def test_the_tensors_of_the_failed_pass_are_freed_while_the_error_is_handled():
    alive = []

    def failing_pass():
        weight = torch.ones(10, requires_grad=True)
        hidden = (weight * 2).exp()
        alive.append(weakref.ref(hidden))
        try:
            torch.empty(TOO_MUCH, dtype=torch.uint8)
        except RuntimeError as error:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory") from error
        return hidden

    try:
        failing_pass()
    except RuntimeError as error:
        gc.collect()
        assert alive[0]() is not None  # the error holds them
        MicroBatch(2).halve(error)
        assert alive[0]() is None
