import weakref

import pytest
import torch
from torch import nn

from astrolabe.gradients import Gradients
from astrolabe.world import ALONE


def made(sizes=((3, 2), (5,))):
    return {str(index): nn.Parameter(torch.zeros(size)) for index, size in enumerate(sizes)}


def give(parameters, generator):
    for value in parameters.values():
        scale = 10.0 ** torch.randint(-6, 7, value.shape, generator=generator)
        value.grad = torch.randn(value.shape, generator=generator) * scale


def test_the_order_of_micro_batches_leaves_no_trace():
    sums = []
    for order in (range(64), reversed(range(64))):
        parameters = made()
        gradients = Gradients(parameters, ALONE)
        gradients.clear()
        for micro in order:
            give(parameters, torch.Generator().manual_seed(micro))
            gradients.add()
            assert all(value.grad is None for value in parameters.values())
        gradients.reduce()
        sums.append([value.grad for value in parameters.values()])
    assert all(torch.equal(a, b) for a, b in zip(*sums, strict=True))
    assert all(value.dtype == torch.float32 for value in sums[0])


def test_the_sum_is_that_of_all_and_a_new_one_begins_empty():
    parameters = made()
    gradients = Gradients(parameters, ALONE)
    for _ in range(2):
        gradients.clear()
        give(parameters, torch.Generator().manual_seed(0))
        gradients.add()
        gradients.clear()  # that attempt ran out of memory
        for micro in range(3):
            for value in parameters.values():
                value.grad = torch.full_like(value, float(micro))
            gradients.add()
        gradients.reduce()
        assert all((value.grad == 3.0).all() for value in parameters.values())


def test_a_process_without_a_part_gets_a_gradient_all_the_same():
    parameters = made()
    gradients = Gradients(parameters, ALONE)
    gradients.clear()
    gradients.reduce()
    assert all((value.grad == 0.0).all() for value in parameters.values())


def test_between_updates_nothing_is_kept():
    parameters = made()
    gradients = Gradients(parameters, ALONE)
    gradients.clear()
    give(parameters, torch.Generator().manual_seed(0))
    gradients.add()
    gradients.reduce()
    handed = [weakref.ref(value.grad) for value in parameters.values()]
    for value in parameters.values():
        value.grad = None
    assert not any(one() for one in handed)
    with pytest.raises(RuntimeError, match=r"Call clear\(\)"):
        gradients.add()


def test_many_small_gradients_of_a_short_precision_add_up():
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    gradients = Gradients({"weight": parameter}, ALONE)
    gradients.clear()
    for value in (1.0, *[1e-3] * 1000):
        parameter.grad = torch.full_like(parameter, value)
        gradients.add()
    gradients.reduce()
    small = float(torch.tensor(1e-3, dtype=torch.bfloat16))
    assert parameter.grad.tolist() == pytest.approx([1 + 1000 * small] * 3, rel=2**-8)
