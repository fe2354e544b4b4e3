"""Measure what the rolling KV cache is worth, against no cache and against lists of tensors.

    uv run python tools/bench_rollout.py
    uv run python tools/bench_rollout.py --window 21 --sink 0 --chunks 7 --attention _native_math
    uv run python tools/bench_rollout.py --device cuda --dtype bfloat16 --frame 480 832 --compile

One network with random weights samples one video in three ways, four denoising steps a chunk:

- ``rolling``: the package's sampler. Keys and values lie in buffers of ``--window`` frames and are
  written in place; a fifth pass over a chunk leaves the clean ones.
- ``recompute``: no cache. Every step runs the sink, the newest clean chunks (at timestep 0) and the
  noisy one through the network together, block-causally: the frames that ``rolling`` can see.
- ``concatenate``: keys and values kept as lists of tensors. Every layer of every pass joins its
  whole history by ``torch.cat``, clones it and cuts it to sink and window.

First the latents are compared: those of ``concatenate`` over the whole video, those of
``recompute`` for as long as no frame has been dropped. After that they differ by right: what a
cache holds of a frame was computed while that frame still saw the dropped ones. In float32 a
difference of 1e-4 or more ends the program with status 1.

Then the three take turns, so that a busy machine slows them alike. A token counts once, as part of
the finished video, however many passes it took. Bytes are keys and values of frames held at one
time, a layer's joined copies included; the prompt's are remembered by all three and left out.
"""

import argparse
import sys
import time
from statistics import median

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

from astrolabe_rollout.attention import Backend, KeyValue, WindowPlan
from astrolabe_rollout.cache_rule import CacheRule
from astrolabe_rollout.geometry import Geometry
from astrolabe_rollout.rope import rotate, rotations
from astrolabe_rollout.sampler import sample_chunk
from astrolabe_rollout.schedule import FlowSchedule
from astrolabe_rollout.transformer import CausalWan

SIGMAS = FlowSchedule().warp((1000, 750, 500, 250))
TOLERANCE = 1e-4
HEAD, TEXT = 128, 64  # size of Wan's attention heads, tokens of the prompt


class Uncached:
    """To `sample_chunk`, both the model and its cache; what the two slow ways have in common."""

    def __init__(self, wan: CausalWan) -> None:
        self.wan, self.end, self.nbytes = wan, 0, 0
        self.text: dict[int, KeyValue] = {}
        self.chunks: list[Tensor] = []  # clean latents

    def open(self, frames: int, cut: bool) -> None:
        """Begin a chunk."""
        self.frames = frames  # also what a plan tells of its pass
        first, dropped = self.wan.rule.visible(self.end + frames)
        self.sink, self.first = (self.wan.rule.sink, first) if dropped else (0, 0)

    def close(self) -> None:
        """End it."""
        self.end += self.frames

    def rotation(self, frames: list[int], x: Tensor) -> Tensor:
        """Rotation of these frames' tokens."""
        size = (side // self.wan.geometry.patch for side in x.shape[-2:])
        return rotations(frames, *size, HEAD, x.device)


class Recompute(Uncached):
    """All visible frames go through the network at every step."""

    def forward_chunk(self, x: Tensor, timestep: Tensor, embeds: Tensor, _: object) -> Tensor:
        """Predict the velocity."""
        seen = [*range(self.sink), *range(self.first, self.end + self.frames)]
        latents = torch.cat([*self.chunks, x], 1)[:, seen]
        timesteps = torch.cat([timestep.new_zeros(1, len(seen) - self.frames), timestep], 1)
        odd = len(seen) % self.frames  # where sink or window split a chunk
        sizes = [odd] * (odd > 0) + [self.frames] * (len(seen) // self.frames)
        rule = CacheRule(self.wan.rule.tokens)  # only what is seen is here
        plan = WindowPlan(rule, self.rotation(seen, x), sizes)
        plan.text = self.text
        velocity = self.wan.velocity(latents, timesteps, embeds, plan)
        width = self.wan.network.patch_embedding.out_channels
        token = 2 * width * x.element_size()  # one layer's are gone when the next one's come
        self.nbytes = max(self.nbytes, token * len(seen) * self.wan.rule.tokens)
        return velocity[:, -self.frames :]


class Concatenate(Uncached):
    """Keys and values in lists; it is the plan of its passes, too."""

    def __init__(self, wan: CausalWan) -> None:
        super().__init__(wan)
        self.past: list[list[KeyValue]] = [[] for _ in range(wan.layers)]
        self.own: dict[int, KeyValue] = {}

    def forward_chunk(self, x: Tensor, timestep: Tensor, embeds: Tensor, _: object) -> Tensor:
        """Predict the velocity."""
        self.turn = self.rotation([*range(self.end, self.end + self.frames)], x)
        return self.wan.velocity(x, timestep, embeds, self)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, to: Backend) -> Tensor:
        """Attend to all of the history that may be seen."""
        self.own[layer] = (rotate(key, self.turn), value)
        both = zip(*self.past[layer], self.own[layer], strict=True)
        keys, values = (torch.cat(tensors, 1).clone() for tensors in both)
        held = [keys, values, *(t for pairs in self.past for pair in pairs for t in pair)]
        self.nbytes = max(self.nbytes, sum(tensor.nbytes for tensor in held))
        if self.first:
            first, sink = (n * self.wan.rule.tokens for n in (self.first, self.sink))
            keys, values = (torch.cat([x[:, :sink], x[:, first:]], 1) for x in (keys, values))
        return dispatch_attention_fn(rotate(query, self.turn), keys, values, backend=to)

    def close(self) -> None:
        """Keep what the last pass computed."""
        super().close()
        for layer, pair in self.own.items():
            self.past[layer].append(pair)


def sample(way: str, wan: CausalWan, embeds: Tensor, noise: Tensor) -> tuple[Tensor, int, float]:
    """Sample a video; return its latents, the bytes of keys and values, and the seconds."""
    start, clean, f = time.perf_counter(), way != "recompute", wan.geometry.chunk
    if way == "rolling":
        model, cache, chunks = wan, wan.new_cache(), []
    else:
        model = cache = Recompute(wan) if way == "recompute" else Concatenate(wan)
        chunks = cache.chunks  # it reads them
    for each in noise:
        step = each.__getitem__
        chunks.append(sample_chunk(model, SIGMAS, embeds, cache, step, f, clean=clean))
    latents = torch.cat(chunks, 1).float().cpu()  # waits for the device
    return latents, cache.nbytes, time.perf_counter() - start


def main() -> None:
    """Compare, measure, print."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--width", type=int, default=384, help=f"a multiple of {HEAD}")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--frame", type=int, nargs=2, default=(160, 208), metavar=("H", "W"))
    parser.add_argument("--window", type=int, default=12, help="latent frames attention sees")
    parser.add_argument("--sink", type=int, default=3, help="of these, the first of the video")
    parser.add_argument("--chunks", type=int, default=8, help="of three latent frames")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="compile the blocks")
    parser.add_argument("--attention", metavar="NAME", help="one of diffusers' back ends")
    args = parser.parse_args()

    torch.manual_seed(0)
    network = WanTransformer3DModel(
        num_attention_heads=args.width // HEAD,
        attention_head_dim=HEAD,
        text_dim=args.width,
        ffn_dim=args.width * 35 // 6,  # as in Wan 1.3B
        num_layers=args.layers,
    )
    geometry = Geometry(*args.frame, window=args.window, sink=args.sink)
    wan = CausalWan(network, geometry).to(args.device, getattr(torch, args.dtype))
    if args.attention:
        network.set_attention_backend(args.attention)
    if args.compile:
        network.compile_repeated_blocks()
    size = (args.chunks, len(SIGMAS), 1, geometry.chunk, geometry.channels, *geometry.latent_size)
    weight = network.patch_embedding.weight
    noise, embeds = torch.randn(size).to(weight), torch.randn(1, TEXT, args.width).to(weight)

    ways = ("rolling", "recompute", "concatenate")
    latents, held, _ = zip(*(sample(way, wan, embeds, noise) for way in ways), strict=True)
    tokens, equal = args.chunks * geometry.chunk * geometry.tokens, True
    until = {"recompute": args.window // geometry.chunk * geometry.chunk, "concatenate": None}
    for way, other in zip(ways[1:], latents[1:], strict=True):
        off = (other - latents[0])[:, : until[way]].abs()
        print(f"{way} differs from rolling by {off.max():.1e} at most in {off.shape[1]} frames")
        equal = equal and bool(off.max() < TOLERANCE)
    if args.dtype == "float32" and not equal:
        sys.exit(f"the latents are not equal to within {TOLERANCE}.")

    rates: dict[str, list[float]] = {way: [] for way in ways}
    for way in ways * args.repeats:
        rates[way].append(tokens / sample(way, wan, embeds, noise)[2])
    print(f"{'tokens/s':12}{'min':>10}{'median':>10}{'max':>10}{'ratio':>8}{'KV MiB':>10}")
    for way, nbytes in zip(ways, held, strict=True):
        low, middle, high = min(rates[way]), median(rates[way]), max(rates[way])
        ratio, mib = middle / median(rates["rolling"]), nbytes / 2**20
        print(f"{way:12}{low:10.1f}{middle:10.1f}{high:10.1f}{ratio:8.2f}{mib:10.1f}")


if __name__ == "__main__":
    main()
