"""diffusers' switches for speed: blocks compiled one by one, and another attention back end.

Dynamo as such is tested by torch's back end "eager", which needs no C++ compiler; what inductor
makes of it is a slow test.
"""

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import attention_backend
from torch._dynamo.testing import CompileCounterWithBackend

from astrolabe_rollout.geometry import Geometry
from astrolabe_rollout.lora import add_lora
from astrolabe_rollout.sampler import sample_chunk
from astrolabe_rollout.transformer import CausalWan

SIGMAS = (1.0, 0.9, 0.6)
CHUNKS = 6  # the window is full after 3, and the fourth drops frames


def make(layers=3, relative=False):
    torch.manual_seed(0)
    network = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        text_dim=16,
        freq_dim=32,
        ffn_dim=64,
        num_layers=layers,
    )
    geometry = Geometry(48, 48, chunk=2, window=7, sink=1)
    return CausalWan(network.requires_grad_(False), geometry, relative)


def compile_blocks(wan, backend="eager"):
    """Compile a model's blocks; return what counts the graphs."""
    counter = CompileCounterWithBackend(backend)
    wan.network.compile_repeated_blocks(backend=counter)
    return counter


def randn(*size, seed=1):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


EMBEDS = randn(1, 5, 16)


def stream(wan, chunks=CHUNKS, cache=None, first=0):
    """Sample chunks one after the other; those before ``first`` are in the cache already."""
    cache = wan.new_cache() if cache is None else cache
    noise = randn(chunks, len(SIGMAS), 1, 2, 16, 6, 6)
    latents = [
        sample_chunk(wan, SIGMAS, EMBEDS, cache, noise[chunk].__getitem__, 2)
        for chunk in range(first, chunks)
    ]
    return torch.cat(latents, 1), cache


def gradients(wan, prefix):
    """Velocity of a window whose noisy chunks see clean ones and a prefix; and its gradients."""
    record, embeds, zero = {}, EMBEDS.expand(2, -1, -1), torch.zeros(2, 8)
    clean, noisy = randn(2, 8, 16, 6, 6), randn(2, 8, 16, 6, 6, seed=2)
    with torch.no_grad():
        wan.forward_window(clean, zero, embeds, prefix=prefix, record=record)
    velocity = wan.forward_window(noisy, zero + 700, embeds, prefix=prefix, clean=record)
    trained = [p for p in wan.network.parameters() if p.requires_grad]
    return [velocity.detach(), *torch.autograd.grad(velocity.square().mean(), trained)]


def add_trained_lora(wan):
    add_lora(wan.network, rank=2, alpha=2)
    for name, parameter in wan.network.named_parameters():
        if "lora_B" in name:  # zeros at first: A would have no gradient
            parameter.data.copy_(randn(*parameter.shape) / 10)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.fixture(autouse=True)
def _nothing_compiled_before_or_after():
    torch._dynamo.reset()
    # Beyond its limit dynamo would go on without compiling, and nothing would grow any more.
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("backend", "relative"),
    [("eager", False), ("eager", True), pytest.param("inductor", True, marks=pytest.mark.slow)],
)
def test_a_compiled_stream_equals_eager_and_compiles_nothing_from_chunk_3(backend, relative):
    expected, _ = stream(make(relative=relative))
    wan = make(relative=relative)
    counter = compile_blocks(wan, backend)
    begun, cache = stream(wan, 2)
    graphs = counter.frame_count
    assert graphs > 0
    with torch._dynamo.config.patch(error_on_recompile=True):
        rest, _ = stream(wan, cache=cache, first=2)
    assert counter.frame_count == graphs
    close(torch.cat([begun, rest], 1), expected)


def test_all_layers_share_what_is_compiled():
    graphs = set()
    for layers in (1, 4):
        torch._dynamo.reset()
        wan = make(layers)
        counter = compile_blocks(wan)
        stream(wan, 3)
        graphs.add(counter.frame_count)
    assert len(graphs) == 1


@pytest.mark.parametrize(
    ("backend", "lora", "checkpointing"),
    [
        ("eager", False, True),
        pytest.param("inductor", True, False, marks=pytest.mark.slow),
        pytest.param("inductor", True, True, marks=pytest.mark.slow),
    ],
)
# Dynamo looks at every tensor's .grad where a graph goes on; torch itself hides the warning only
# from its default filter.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_gradients_of_a_compiled_window_equal_eager(backend, lora, checkpointing):
    plain, wan = make(), make()
    for each in (plain, wan):
        if lora:
            add_trained_lora(each)
        else:
            each.network.requires_grad_(True)
        if checkpointing:
            each.network.enable_gradient_checkpointing()
    _, prefix = stream(plain, 3)
    expected = gradients(plain, prefix)

    counter = compile_blocks(wan, backend)
    gradients(wan, prefix)
    graphs = counter.frame_count
    assert graphs > 0
    _, longer = stream(plain, 4)
    with torch._dynamo.config.patch(error_on_recompile=True):
        gradients(wan, longer)
        close(gradients(wan, prefix), expected)
    assert counter.frame_count == graphs


def test_another_attention_back_end_gives_the_same_numbers():
    wan = make()
    wan.network.requires_grad_(True)
    expected, cache = stream(wan)
    window = gradients(wan, cache)
    with attention_backend("native"):  # restores diffusers' global default, which is set here too
        wan.network.set_attention_backend("_native_math")
        close(stream(wan)[0], expected)
        close(gradients(wan, cache), window)


@pytest.mark.parametrize(("part", "other"), [("attn1", "attn2"), ("attn2", "attn1")])
def test_each_attention_uses_the_back_end_that_was_set(part, other):
    wan = make()
    with attention_backend("native"):
        wan.network.set_attention_backend("_native_cudnn")  # there is none on a CPU
    for block in wan.network.blocks:
        getattr(block, other).processor._attention_backend = None
    with pytest.raises(RuntimeError, match="No viable backend"):
        stream(wan, 1)
    wan.network.reset_attention_backend()
    stream(wan, 1)
