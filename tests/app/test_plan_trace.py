"""Bytes and operations of code on tensors without values."""

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from astrolabe.plan_trace import recompute, traced

MIB = 2**20


def empty(*shape, **options):
    return torch.empty(*shape, device="meta", **options)


def test_what_is_alive_counts_and_views_count_once():
    with traced("cuda") as trace:
        values = empty(256, 1024)  # 1 MiB
        rows = values[:10].view(-1)
        assert trace.live == MIB
        doubled = values * 2
        assert trace.live == trace.peak == 2 * MIB
        del values, rows
        assert trace.live == MIB
        del doubled
    assert (trace.live, trace.peak) == (0, 2 * MIB)


def test_what_was_there_before_counts_as_nothing():
    weight = empty(1024, 1024)
    with traced("cuda") as trace:
        weight.mul_(2)
        seen = weight.t()
        product = empty(1, 1024) @ seen
    assert trace.peak == product.nbytes * 2


def test_operations_are_two_for_each_multiplication_and_told_by_their_precision():
    with traced("cuda") as trace:
        empty(8, 16) @ empty(16, 32)
        assert trace.flops == trace.flops_fp32 == 2 * 8 * 16 * 32
        empty(8, 16, dtype=torch.bfloat16) @ empty(16, 32, dtype=torch.bfloat16)
    assert (trace.flops, trace.flops_fp32) == (4 * 8 * 16 * 32, 2 * 8 * 16 * 32)


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_attention_has_no_matrix_of_scores_and_keeps_what_its_gradient_needs(kind):
    tokens = 4096
    query, key, value = (empty(1, 2, tokens, 8, requires_grad=True) for _ in range(3))
    with traced(kind) as trace:
        out = scaled_dot_product_attention(query, key, value)
        saved = trace.live - out.nbytes
        assert 2 * tokens * 4 <= saved < 4 * tokens * 4  # one number for each query and head
        torch.autograd.backward(out.sum())
    assert trace.peak < 2 * tokens * tokens * 4 / 8
    assert query.grad.shape == query.shape


def test_a_real_attention_on_this_cpu_takes_the_kernel_that_is_traced():
    query = torch.randn(1, 2, 64, 8, requires_grad=True)
    found = scaled_dot_product_attention(query, query, query).grad_fn.name()
    assert found == "ScaledDotProductFlashAttentionForCpuBackward0"


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 4096), nn.Linear(4096, 8)

    def forward(self, x):
        heads = x.view(1, 1, -1, 8)
        mixed = scaled_dot_product_attention(heads, heads, heads).view_as(x)
        return self.down(torch.tanh(self.up(mixed)))


def test_recomputed_activations_are_not_kept_and_are_traced_alike():
    with torch.device("meta"):
        blocks = [Block() for _ in range(4)]

    def peak(run):
        x = empty(1024, 8, requires_grad=True)
        with traced("cuda") as trace:
            out = x
            for block in blocks:
                out = run(block, out)
            kept = trace.live
            torch.autograd.backward(out.sum())
        return kept, trace.flops

    plain, flops = peak(lambda block, x: block(x))
    kept, more = peak(recompute("cuda"))
    assert kept < plain / 10
    assert 1.1 * flops < more < 4 / 3 * flops  # the last products need not be made again
