"""A model's own rules while it streams, against the public reference code where it can run."""

from dataclasses import replace

import pytest
import torch
from tensordict import TensorDict

from astrolabe_rollout.chunks import ChunkStream
from astrolabe_rollout.codec import PatchCodec
from astrolabe_rollout.denoiser import Denoiser
from astrolabe_rollout.model import VideoModel
from astrolabe_rollout.schedule import FlowSchedule


class Injected:
    """The noise of a golden case in place of a seed's."""

    def __init__(self, case):
        self.case, self.index = case, 0

    def draw(self, steps, shape, device):
        start = self.case["noise"][:, 3 * self.index : 3 * self.index + 3]
        again = self.case["renoise"][self.index]
        self.index += 1
        return torch.cat([start[None], again[: steps - 1]])


def make(wan, **options):
    torch.manual_seed(0)
    codec = PatchCodec(width=8)
    codec.basis.normal_(std=0.05)
    return VideoModel(wan, None, codec, FlowSchedule(5.0), **options).freeze()


def play(model, case, embeds, cuts=(), decode=False):
    stream = ChunkStream(model, [0], decode=decode)
    stream.noise = Injected(case)
    chunks = [stream.next(e, cut=index in cuts) for index, e in enumerate(embeds)]
    return torch.cat([chunk.latents for chunk in chunks], 1), stream


@pytest.mark.parametrize(
    ("name", "switch"),
    [("iv_switch_global_sink", "recache"), ("iv_switch_reset_sink", "recache_all")],
)
def test_another_prompt_is_met_by_a_recache(golden, golden_wan, name, switch):
    case = golden(name)
    prompts = list(case["prompt_embeds"])
    embeds = [prompts[0]] * 5 + [prompts[1]] * 2 + [prompts[2]]
    model = make(golden_wan(window=12, sink=3), switch=switch)
    latents, _ = play(model, case, embeds)
    torch.testing.assert_close(latents, case["latents"], rtol=0, atol=2e-5)


def test_another_prompt_is_met_by_a_flush_and_a_hard_cut_by_a_jump_in_time(golden, golden_wan):
    case = golden("v_infinity_orig_cut_L6_S1_9")
    prompts = list(case["prompt_embeds"])
    embeds = [prompts[0]] * 4 + [prompts[1]] * 3 + [prompts[2]] * 2
    model = make(golden_wan(window=6, sink=1, relative=True), switch="flush")
    latents, _ = play(model, case, embeds, cuts=(4,))
    torch.testing.assert_close(latents, case["latents"], rtol=0, atol=2e-5)


def test_a_cache_is_computed_anew_for_every_chunk(golden, golden_wan):
    """The public code keeps the first frame in this case; the rule's own end is tested below."""
    case = golden("vii_krea_recompute_ctx6_6")
    model = make(
        golden_wan(window=9), rebuild=6, denoising_steps=(1000, 937, 833, 625), warped=True
    )
    latents, _ = play(model, case, [case["prompt_embeds"]] * 3)
    torch.testing.assert_close(latents, case["latents"][:, :9], rtol=0, atol=2e-5)


def test_a_rebuilt_context_begins_with_an_old_pixel_frame_encoded_again(golden, golden_wan):
    case = golden("vii_krea_recompute_ctx3_6")
    model = make(golden_wan(window=6), rebuild=3)
    latents, stream = play(model, case, [case["prompt_embeds"]] * 3, decode=True)
    whole = model.codec.decode(latents)
    again = model.codec.encode(whole[:, -9:-8])
    context = stream._context(3)
    torch.testing.assert_close(context, torch.cat([again, latents[:, -2:]], 1))


def test_training_sees_the_rebuilt_context_of_sampling(golden_wan):
    options = {"rebuild": 3, "denoising_steps": (1000, 937, 833, 625), "warped": True}
    model = make(golden_wan(window=6), **options)
    embeds = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(0))
    stream = ChunkStream(model, [0], decode=False, record=True)
    chunks = [stream.next(embeds) for _ in range(2)]
    latents = torch.cat([chunk.latents for chunk in chunks], 1)
    for level, sigma in enumerate(model.sigmas):
        noisy = torch.cat([chunk.steps[:, level] for chunk in chunks], 1)
        batch = TensorDict(
            {
                "noisy": {"latents": noisy, "sigma": torch.full((1, 6), sigma)},
                "video": {"latents": latents},
                "window": {"context": latents[:, :3], "index": torch.zeros(1, dtype=torch.int64)},
                "prompt": {"embeds": embeds},
            },
            batch_size=[1],
        )
        found = Denoiser(model, 6)(batch)["denoised", "latents"]
    # The last step's answer is the video; with a rolling cache the second chunk would differ.
    torch.testing.assert_close(found, latents, rtol=0, atol=2e-5)
    rolling = Denoiser(replace(model, rebuild=None), 6)(batch)["denoised", "latents"]
    torch.testing.assert_close(rolling[:, :3], latents[:, :3], rtol=0, atol=2e-5)
    three = replace(make(golden_wan(window=9), **options), rebuild=6)
    with pytest.raises(ValueError, match="from 6 frames for chunks of 3"):
        Denoiser(three, 6)


def test_training_is_told_the_timesteps_of_sampling(golden_wan):
    model = make(golden_wan(), denoising_steps=(1000, 937, 833, 625), warped=True)
    sigma = torch.tensor([*model.sigmas, 0.0])
    assert model.timestep(sigma).tolist() == [1000, 937, 833, 625, 0]
    assert model.sigmas[1] != 0.937
    plain = make(golden_wan())
    assert plain.timestep(torch.tensor([0.625])).tolist() == [625]


def test_the_first_chunk_has_a_step_list_of_its_own(golden_wan):
    model = make(golden_wan(window=6), first_steps=(1000, 750, 500, 250), denoising_steps=(1000,))
    stream = ChunkStream(model, [0], decode=False)
    passes = []
    hook = model.transformer.network.register_forward_hook(lambda *_: passes.append(1))
    embeds = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(0))
    counts = []
    for _ in range(3):
        stream.next(embeds)
        counts.append(len(passes))
        passes.clear()
    hook.remove()
    assert counts == [5, 2, 2]  # denoising steps and the clean pass


def test_a_video_goes_on_from_a_picture_and_from_a_video(golden_wan):
    model = make(golden_wan(window=12, sink=3))
    embeds = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(0))
    whole = ChunkStream(model, [0])
    first = whole.next(embeds)
    second = whole.next(embeds)

    stream = ChunkStream(model, [0])
    stream.noise.draw(4, first.latents.shape[1:], embeds.device)  # what the first chunk took
    given = stream.begin(first.latents, embeds)
    assert torch.equal(given.pixels, first.pixels)
    torch.testing.assert_close(stream.next(embeds).latents, second.latents, rtol=0, atol=1e-5)

    picture = ChunkStream(model, [0])
    picture.begin(first.latents[:, :1], embeds)
    assert [picture.next(embeds).pixels.shape[1] for _ in range(2)] == [12, 12]
    assert picture.cache.end == 7
