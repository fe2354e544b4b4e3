"""No video depends on its neighbours: any partition of any scripts gives the same videos."""

import random

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from tensordict import NonTensorStack, TensorDict
from torch import nn

from astrolabe_rollout.chunks import ChunkStream
from astrolabe_rollout.codec import PatchCodec
from astrolabe_rollout.geometry import Geometry
from astrolabe_rollout.group_streaming import GroupStreamingPolicy
from astrolabe_rollout.model import VideoModel
from astrolabe_rollout.schedule import FlowSchedule
from astrolabe_rollout.streaming import StreamingPolicy
from astrolabe_rollout.transformer import CausalWan
from astrolabe_rollout.windows import prompts_of_window

#: The rules of each family, with windows that a short video fills.
FAMILIES = {
    "self_forcing": {"window": 9},
    "self_forcing_global": {},
    "framewise": {"chunk": 1, "window": 5, "first_steps": (1000, 500), "steps": (1000,)},
    "longlive": {"window": 12, "sink": 3, "switch": "recache"},
    "longlive_new_sink": {"window": 9, "sink": 3, "switch": "recache_all"},
    "infinity_rope": {"window": 6, "sink": 1, "relative": True, "switch": "flush"},
    "infinity_rope_wide": {"window": 9, "sink": 3, "relative": True, "switch": "flush"},
    "infinity_rope_recached": {"window": 9, "sink": 3, "relative": True, "switch": "recache"},
    "krea": {"window": 6, "rebuild": 3, "warped": True},
    "krea_flushed": {"window": 9, "rebuild": 3, "switch": "flush"},
    "tiny": {"window": 9, "sink": 3, "steps": (1000, 500)},
}
#: Matrix products of other sizes differ by 1e-6; a wrong decision by 1e-2 and more.
SAME, OTHER = 3e-4, 3e-3
CHUNKS, VIDEOS = 6, 4


class Words(nn.Module):
    """Embeddings of prompts: words at places of their own, as unlike as prompts are."""

    def embed(self, prompts):
        generators = [torch.Generator().manual_seed(sum(map(ord, prompt))) for prompt in prompts]
        return torch.stack([torch.randn(5, 8, generator=g) for g in generators])


def make(name):
    rules = dict(FAMILIES[name])
    options = {key: rules.pop(key) for key in ("switch", "rebuild", "warped") if key in rules}
    first, steps = rules.pop("first_steps", None), rules.pop("steps", (1000,))
    torch.manual_seed(0)
    network = WanTransformer3DModel(
        num_attention_heads=1,
        attention_head_dim=24,
        text_dim=8,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    relative = rules.pop("relative", False)
    wan = CausalWan(network, Geometry(16, 32, **rules), relative)
    codec = PatchCodec(width=8)
    codec.basis.normal_(std=0.05)
    return VideoModel(
        *(wan, Words(), codec, FlowSchedule(3.0)), steps, first_steps=first, **options
    ).freeze()


def scripts(draw):
    """For every video, of each chunk its prompt and whether a hard cut lies before it."""
    made = []
    for video in range(VIDEOS):
        shown, cuts = ["a cat"] * CHUNKS, [False] * CHUNKS
        for chunk in sorted(draw.sample(range(1, CHUNKS), draw.choice((0, 1, 2)))):
            shown[chunk:] = [f"scene {video}{chunk}"] * (CHUNKS - chunk)
            cuts[chunk] = draw.random() < 0.3
        if draw.random() < 0.3:
            cuts[draw.randrange(1, CHUNKS)] = True  # a cut to the same prompt
        made.append((shown, cuts))
    return made


def partition(draw):
    order = draw.sample(range(VIDEOS), VIDEOS)
    while order:
        size = draw.randint(1, len(order))
        yield order[:size]
        order = order[size:]


def film(model, played, rows):
    """The latents of these videos, sampled together: ``[n, f, C, h, w]``."""
    capacity = CHUNKS * model.geometry.chunk if model.geometry.window is None else None
    stream = ChunkStream(model, [100 + row for row in rows], capacity=capacity, decode=False)
    chunks = []
    for chunk in range(CHUNKS):
        embeds = model.text([played[row][0][chunk] for row in rows])
        cuts = [played[row][1][chunk] for row in rows]
        chunks.append(stream.next(embeds, cut=cuts).latents)
    return torch.cat(chunks, 1)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", FAMILIES)
def test_any_partition_of_any_scripts_gives_the_same_videos(name, seed):
    draw = random.Random(f"{name} {seed}")
    model, played = make(name), scripts(draw)
    alone = torch.cat([film(model, played, [row]) for row in range(VIDEOS)])
    for rows in partition(draw):
        found = film(model, played, rows)
        torch.testing.assert_close(found, alone[rows], rtol=0, atol=SAME)


@pytest.mark.parametrize("name", ["longlive", "infinity_rope_wide", "self_forcing", "krea"])
def test_a_neighbour_that_changes_leaves_a_video_alone_and_changes_itself(name):
    model = make(name)
    still = (["a cat"] * CHUNKS, [False] * CHUNKS)
    other = (["a cat"] * 3 + ["a dog"] * 3, [False] * CHUNKS)
    cut = (["a cat"] * CHUNKS, [chunk == 3 for chunk in range(CHUNKS)])
    played = [still, other, cut]
    together, alone = film(model, played, [0, 1, 2]), film(model, played, [0])
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=SAME)
    before = 3 * model.geometry.chunk
    kept = film(model, [still] * 3, [0, 1, 2])
    torch.testing.assert_close(together[:, :before], kept[:, :before], rtol=0, atol=SAME)
    difference = (together - kept)[:, before:].abs().amax((1, 2, 3, 4))
    assert difference[0] <= SAME
    assert difference[1] > OTHER
    assert difference[2] > OTHER or model.rebuild  # whose cache is new for every chunk anyway


def test_the_same_prompt_in_another_tensor_is_no_new_prompt():
    model = make("longlive")
    one, again = (ChunkStream(model, [1], decode=False) for _ in range(2))
    embeds = model.text(["a cat"])
    for _ in range(4):
        expected = one.next(embeds).latents
        # The rounding of an encoder that met the prompt in another batch.
        found = again.next(embeds * (1 + 1e-3 * torch.rand_like(embeds))).latents
    torch.testing.assert_close(found, expected, rtol=0, atol=OTHER)


def test_caches_that_are_alike_again_are_one_again():
    model = make("longlive")
    stream = ChunkStream(model, [1, 2, 3], decode=False)
    for prompts in (["a", "b", "c"], ["a", "b", "d"], ["a", "e", "d"]):
        stream.next(model.text(prompts))
        assert [part.rows for part in stream.cache.parts] == [None]
    flushed = ChunkStream(make("infinity_rope_wide"), [1, 2, 3], decode=False)
    for prompts in (["a", "b", "c"], ["a", "b", "c"], ["a", "b", "d"]):
        flushed.next(model.text(prompts))
    assert sorted(part.rows.tolist() for part in flushed.cache.parts) == [[0, 1], [2]]


def test_as_many_cuts_as_videos_are_asked_for():
    model = make("infinity_rope")
    stream = ChunkStream(model, [1, 2], decode=False)
    with pytest.raises(ValueError, match="1 cuts for 2 videos"):
        stream.next(model.text(["a", "b"]), cut=[True])


SCRIPTS = ["a cat", "a dog | it barks", "a sun | a moon | a star", "a cat", "one | two"]
WINDOW = 6


def request(model, rows, window, size=1):
    """What the environment asks for: ``size`` videos of each of these scripts."""
    texts = [SCRIPTS[row] for row in rows for _ in range(size)]
    ids = torch.tensor(rows).repeat_interleave(size)
    return TensorDict(
        {
            "prompt": {
                "embeds": model.text(prompts_of_window(texts, window, 1)),
                "seed": 10 * ids + torch.arange(size).repeat(len(rows)),
                "group": ids,
                "script": NonTensorStack(*texts),
                "history_seed": ids + 1000,
            },
            "window": {"index": torch.full((len(texts),), window)},
        },
        batch_size=[len(texts)],
    )


WINDOWED = [name for name in FAMILIES if name not in ("self_forcing_global", "framewise")]


@pytest.mark.parametrize("name", WINDOWED)
def test_windows_of_scripts_do_not_depend_on_the_batch(name):
    model = make(name)

    def film(rows):
        policy = StreamingPolicy(model, WINDOW, decode=False)
        windows = [policy(request(model, rows, window)) for window in range(3)]
        return torch.cat([w["video", "latents"] for w in windows], 1)

    together = film([0, 1, 2, 3, 4])
    for rows in ([0], [1, 2], [3, 4]):
        torch.testing.assert_close(film(rows), together[rows], rtol=0, atol=SAME)


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("name", WINDOWED)
def test_histories_of_groups_do_not_depend_on_the_batch(name, start):
    model, size = make(name), 2

    def film(rows):
        policy = GroupStreamingPolicy(model, WINDOW, decode=False, scene_windows=1)
        windows = [policy(request(model, rows, window, size)) for window in range(start, start + 2)]
        latents = torch.cat([w["video", "latents"] for w in windows], 1)
        contexts = torch.cat([w["window", "context"] for w in windows], 1)
        return latents.unflatten(0, (-1, size)), contexts.unflatten(0, (-1, size))

    latents, contexts = film([0, 1, 2])
    for rows in ([0], [1], [2, 1]):
        found = film(rows)
        torch.testing.assert_close(found[0], latents[rows], rtol=0, atol=SAME)
        torch.testing.assert_close(found[1], contexts[rows], rtol=0, atol=SAME)
