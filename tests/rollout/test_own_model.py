"""A video model of one's own, nothing of Wan's in it: what the streaming parts ask of it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from astrolabe_rollout import (
    Denoiser,
    FlowSchedule,
    Geometry,
    PromptEnv,
    StreamingPolicy,
    VideoModel,
    make_collector,
)
from astrolabe_rollout.causal import CausalTransformer
from astrolabe_rollout.keys import CONTEXT, DENOISED, EMBEDS, INDEX, LATENTS, NOISY, PIXELS, SIGMA
from astrolabe_rollout.sampler import prefill


class Block(nn.Module):
    """Attention over frames and a perceptron; text comes in as a shift."""

    def __init__(self, layer, width, heads):
        super().__init__()
        self.layer, self.heads = layer, heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x, shift, plan):  # [B, tokens of all frames, width]
        q, k, v = (
            part.unflatten(-1, (self.heads, -1))
            for part in self.qkv(self.norm(x) + shift).chunk(3, -1)
        )
        x = x + self.out(plan.attend(self.layer, q, k, v).flatten(2))
        return x + self.mlp(self.norm(x))


class Own(CausalTransformer):
    """Tokens of 2 x 2 latent pixels, two blocks."""

    def __init__(self, geometry, width=24, text=8):
        super().__init__(geometry, layers=2, head_dim=12)
        self.fold, self.unfold = nn.PixelUnshuffle(2), nn.PixelShuffle(2)
        self.enter = nn.Linear(4 * geometry.channels, width)
        self.leave = nn.Linear(width, 4 * geometry.channels)
        self.time, self.text = nn.Linear(1, width), nn.Linear(text, width)
        self.blocks = nn.ModuleList(Block(layer, width, 2) for layer in range(2))

    def velocity(self, latents, timestep, embeds, plan):
        patches = self.fold(latents)  # [B, f, 4 C, h / 2, w / 2]
        tokens = patches.flatten(3).transpose(2, 3)  # [B, f, tokens, 4 C]
        x = self.enter(tokens) + self.time(timestep[..., None] / 1000)[:, :, None]
        x, shift = x.flatten(1, 2), self.text(embeds.mean(1))[:, None]
        for block in self.blocks:
            x = block(x, shift, plan)
        out = self.leave(x).reshape(tokens.shape).transpose(2, 3).reshape(patches.shape)
        return self.unfold(out)


class Doubled:
    """A codec of single frames: the first three channels, each latent pixel a square of 2 x 2."""

    def encode(self, pixels):
        small = pixels[..., ::2, ::2].float() / 127.5 - 1
        return torch.cat([small, small[:, :, :1]], 2)

    def decode(self, latents, first=True):
        large = latents[:, :, :3].repeat_interleave(2, -1).repeat_interleave(2, -2)
        return ((large.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)

    def stream(self):
        return self

    def __call__(self, latents):
        return self.decode(latents)

    def fork(self, count):
        return self


class Letters:
    """Embeddings of letters."""

    def embed(self, prompts):
        return torch.tensor([[[p.count(c) for c in "abcdefgh"]] for p in prompts]).float()


def own_model(window=None, sink=0):
    torch.manual_seed(0)
    sizes = {"channels": 4, "spatial": 2, "temporal": 1, "chunk": 2}
    transformer = Own(Geometry(16, 24, window=window, sink=sink, **sizes))
    return VideoModel(transformer, Letters(), Doubled(), FlowSchedule(3.0), (1000, 500)).freeze()


@pytest.mark.parametrize(("window", "sink"), [(None, 0), (4, 2), (5, 1)])
def test_a_chunk_over_the_cache_is_what_full_attention_makes_of_all_frames(window, sink):
    model = own_model(window, sink)
    transformer, generator = model.transformer, torch.Generator().manual_seed(1)
    latents = torch.randn(2, 8, 4, 8, 12, generator=generator)
    embeds, times = torch.randn(2, 1, 8, generator=generator), torch.zeros(2, 8)
    times[:, 6:] = 700.0  # the last chunk is noisy, over clean ones
    cache = transformer.new_cache(8)
    prefill(transformer, latents[:, :6], embeds, cache, 2)
    cache.open(2)
    found = transformer.forward_chunk(latents[:, 6:], times[:, 6:], embeds, cache)
    expected = transformer.forward_window(latents, times, embeds)
    torch.testing.assert_close(found, expected[:, 6:], rtol=0, atol=1e-5)
    without = transformer.forward_window(latents[:, 4:], times[:, 4:], embeds, start=4)
    assert not torch.allclose(found, without[:, 2:], atol=1e-2)  # the past is seen


def test_a_model_of_ones_own_is_collected_and_trained_in_windows():
    model = own_model(window=6, sink=2)
    policy, denoiser = StreamingPolicy(model, 4), Denoiser(model, 4)
    model.transformer.requires_grad_()
    env = PromptEnv(["a bad cafe", "a deaf face"], model, group_size=2, windows=2)
    (batch,) = make_collector(env, policy, steps=1)
    assert batch[PIXELS].shape == (4, 2, 4, 3, 16, 24)  # temporal 1: windows are of one length
    assert policy.cache_bytes == 2 * 2 * 4 * 6 * 24 * 24 * 4
    clips = batch.reshape(-1).select(LATENTS, CONTEXT, INDEX, EMBEDS)
    clips[NOISY], clips[SIGMA] = clips[LATENTS] + 0.1, torch.full((8, 4), policy.sigmas[1])
    denoiser(clips)[DENOISED].square().mean().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in model.transformer.parameters())
    assert denoiser(clips[2:3])[DENOISED].allclose(clips[2:3][DENOISED], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer": nn.Linear(1, 1)}, "transformer is a Linear without forward_chunk, geom"),
        ({"codec": nn.Identity()}, "codec is a Identity without decode, encode, stream"),
        ({"encoder": nn.Identity()}, "encoder is a Identity without embed"),
        ({"schedule": 3.0}, r"schedule is 3\.0\. Give an astrolabe_rollout\.FlowSchedule"),
        ({"fps": 0}, "fps is 0"),
        ({"switch": "recahce"}, "switch is 'recahce'. Choose from: keep"),
        ({"denoising_steps": (500, 1000)}, "no falling list"),
        ({"denoising_steps": ()}, "no falling list"),
        ({"denoising_steps": "1000"}, "is the text '1000'"),
    ],
)
def test_a_part_that_lacks_what_is_asked_of_it_is_named(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        replace(own_model(), **change)


class Sideways(Own):
    def velocity(self, latents, timestep, embeds, plan):
        return super().velocity(latents, timestep, embeds, plan).transpose(1, 2)


class Attending(Own):
    """Calls ``attend`` otherwise than it should."""

    def __init__(self, geometry, change):
        super().__init__(geometry)
        self.change = change

    def velocity(self, latents, timestep, embeds, plan):
        def attend(layer, q, k, v):
            layer, *rest = self.change(layer, q, k, v)
            return plan.attend(layer, *rest) if layer is not None else q

        return super().velocity(latents, timestep, embeds, SimpleNamespace(attend=attend))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layer, *rest: (0, *rest), r"layers \[0, 0\] of 2. Call plan.attend.* 0 to 1"),
        (lambda layer, *rest: (None, *rest), r"layers \[\] of 2"),
        (
            lambda layer, q, k, v: (layer, q, k[:, :9], v),
            r"key float32 \[1, 9, .*layer 0\. Give",
        ),
        (lambda layer, *rest: (layer, *(x[..., :6] for x in rest)), "heads, 12"),
    ],
)
def test_every_layer_attends_once_in_the_shape_that_is_asked_for(change, message):
    model = own_model()
    odd = Attending(model.geometry, change)
    latents = torch.zeros(1, 2, 4, 8, 12)
    sigma, embeds = torch.zeros(1, 2), torch.zeros(1, 1, 8)
    with pytest.raises(ValueError, match=message):
        odd.forward_window(latents, sigma, embeds)
    cache = odd.new_cache(4)
    cache.open(2)
    with pytest.raises(ValueError, match=message):
        odd.forward_chunk(latents, sigma, embeds, cache)


class Floats(Doubled):
    def decode(self, latents, first=True):
        return super().decode(latents).float()


class StreamingOnly:
    """The transformer of a model that is not to be trained."""

    def __init__(self, own):
        self.geometry, self.parameters = own.geometry, own.parameters
        self.new_cache, self.forward_chunk = own.new_cache, own.forward_chunk


def test_what_a_model_returns_is_checked_against_the_geometry():
    model = own_model()
    batch = TensorDict({}, [1])
    batch[EMBEDS], batch["prompt", "seed"] = torch.zeros(1, 1, 8), torch.tensor([1])
    batch[INDEX] = torch.tensor([0])
    sideways = replace(model, transformer=Sideways(model.geometry))
    with pytest.raises(ValueError, match=r"velocity is \[1, 4, 2, 8, 12\] for noisy latents"):
        StreamingPolicy(sideways, 2)(batch)
    with pytest.raises(ValueError, match=r"decodes latents .* to float32 .* has uint8 \[1, 2, 3"):
        StreamingPolicy(replace(model, codec=Floats()), 2)(batch)
    streams = replace(model, transformer=StreamingOnly(model.transformer))
    found = StreamingPolicy(streams, 2)(batch.clone())[PIXELS]
    assert found.equal(StreamingPolicy(model, 2)(batch.clone())[PIXELS])
    with pytest.raises(TypeError, match="a StreamingOnly without forward_window, layers, rule"):
        Denoiser(streams, 2)
    without = replace(model, encoder=None)
    assert StreamingPolicy(without, 2)(batch)[PIXELS].shape == (1, 2, 3, 16, 24)
    with pytest.raises(ValueError, match="no text encoder"):
        without.text(["a"])
