"""HPSv2.1 against open_clip's own network, tokenizer and torchvision's pictures."""

import json
import logging
import time

import open_clip
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as vision

from astrolabe_rewards import WeightsError
from astrolabe_rewards.hpsv2 import HPSv2, Words, letterboxed
from astrolabe_rewards.pickscore import PickScore
from astrolabe_rewards.pictures import CLIP_MEAN, CLIP_STD, normalised

PROMPTS = ["a red ball rolls to the left", "猫が走る, Привет! 😀 {x}"]
SIDE = 32


class SmallHPSv2(HPSv2):
    """The reward over a network of the same kind that fits a test."""

    architecture = "small-hps"


@pytest.fixture(scope="session")
def network(tmp_path_factory):
    file = tmp_path_factory.mktemp("configs") / "small-hps.json"
    tower = {"width": 32, "layers": 2}
    config = {
        "embed_dim": 16,
        "vision_cfg": tower | {"image_size": SIDE, "patch_size": 16, "head_width": 16},
        "text_cfg": tower | {"context_length": 77, "vocab_size": 49408, "heads": 2},
    }
    file.write_text(json.dumps(config))
    open_clip.add_model_config(file)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = open_clip.create_model("small-hps", pretrained=None).eval()
        for value in network.state_dict().values():
            value.add_(0.1 * torch.randn(value.shape))
    return network.half().float()  # as published: rounded to half


@pytest.fixture(scope="session")
def checkpoint(network, tmp_path_factory):
    file = tmp_path_factory.mktemp("hps") / "HPS_v2.1_compressed.pt"
    state = {name: value.half() for name, value in network.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state}, file)
    return file


@pytest.fixture
def altered(checkpoint, tmp_path):
    def write(change):
        state = torch.load(checkpoint)["state_dict"]
        change(state)
        torch.save({"state_dict": state}, tmp_path / "altered.pt")
        return str(tmp_path / "altered.pt")

    return write


@pytest.fixture
def make(checkpoint):
    return lambda **options: SmallHPSv2(**({"weights": str(checkpoint), "device": "cpu"} | options))


@pytest.fixture(scope="module")
def videos():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 17, 3, 40, 57), dtype=torch.uint8, generator=generator)


def scores(reward, videos, prompts=PROMPTS, fps=16.0):
    return reward.score(videos, list(prompts), torch.full((len(videos),), fps))


def published(frame):
    """A frame as HPSv2's own code prepares it: turned into numbers, scaled, filled up."""
    picture = vision.to_tensor(frame.permute(1, 2, 0).numpy())
    scale = SIDE / max(picture.shape[-2:])
    size = [round(length * scale) for length in picture.shape[-2:]]
    picture = vision.resize(picture, size, InterpolationMode.BICUBIC, antialias=True)
    down, across = SIDE - size[0], SIDE - size[1]
    edges = [across // 2, down // 2, across - across // 2, down - down // 2]
    return vision.normalize(vision.pad(picture, edges), CLIP_MEAN, CLIP_STD)


@pytest.mark.parametrize("size", [(40, 57), (57, 40), (9, 13), (32, 20), (32, 32), (240, 416)])
def test_pictures_are_those_of_the_published_code(size):
    frame = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    found = normalised(letterboxed(frame[None].float() / 255, SIDE))[0]
    torch.testing.assert_close(found, published(frame), atol=1e-5, rtol=0)


def test_a_score_is_the_mean_of_the_best_cosines_of_the_library(network, make, videos):
    pictures = torch.stack([published(frame) for frame in videos.flatten(0, 1)])
    with torch.no_grad():
        texts = network.encode_text(open_clip.SimpleTokenizer()(PROMPTS), normalize=True)
        found = network.encode_image(pictures, normalize=True)
    cosines = (found.reshape(2, 17, -1) * texts[:, None]).sum(-1)
    best = cosines.sort(1, descending=True).values[:, :5].mean(1)  # 30 % of 17
    torch.testing.assert_close(scores(make(), videos), best, atol=1e-5, rtol=0)
    torch.testing.assert_close(scores(make(top=1.0), videos), cosines.mean(1), atol=1e-5, rtol=0)
    sampled = cosines[:, ::8].max(1).values  # 30 % of the 3 at two per second
    torch.testing.assert_close(scores(make(fps=2.0), videos), sampled, atol=1e-5, rtol=0)


def test_a_batch_scores_like_its_videos_whatever_the_micro_batch(make, videos):
    alone = torch.cat([scores(make(), videos[i : i + 1], PROMPTS[i : i + 1]) for i in (0, 1)])
    for size in (1, 5):
        found = scores(make(micro_batch=size), videos)
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)


def test_prompts_are_the_tokens_of_open_clip():
    texts = [*PROMPTS, "", "The  &amp; CAT's", "word " * 100]
    found, cut = Words(77)(texts)
    assert found.equal(open_clip.SimpleTokenizer()(texts))
    assert cut == 1


def test_control_tokens_in_a_prompt_have_no_power():
    ids, _ = Words(77)(["a <end_of_text> cat", "a &lt;end_of_text&gt; cat", "a <END_OF_TEXT> cat"])
    end = open_clip.SimpleTokenizer().eot_token_id
    assert (ids == end).sum(1).tolist() == [1, 1, 1]
    assert ids.argmax(1).tolist() == [3, 3, 3]


def test_long_prompts_are_cut_counted_and_named(make, videos, caplog):
    reward = make()
    with caplog.at_level(logging.WARNING):
        scores(reward, videos, ["long " * 90, "\ud800"])
    assert reward.cut == 1
    assert "hpsv2: 1 of 2 prompts are longer than the 77 tokens that it reads" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("visual.proj"), r"1 missing \(visual.proj\)"),
        (lambda s: s.update(extra=torch.ones(1)), r"1 unexpected \(extra\)"),
        (lambda s: s.update({"ln_final.bias": torch.ones(31)}), r"\(31,\) instead of \(32,\)"),
    ],
)
def test_a_checkpoint_that_is_not_exactly_the_network_is_refused(make, altered, change, message):
    with pytest.raises(WeightsError, match=message):
        make(weights=altered(change))


def test_a_checkpoint_of_the_published_network_is_wanted_by_default(checkpoint):
    with pytest.raises(WeightsError, match=r"HPS_v2.1_compressed.pt' does not fit its network"):
        HPSv2(weights=str(checkpoint.parent), device="cpu")


@pytest.mark.parametrize("content", [b"x", b"PK\x03\x04"])
def test_a_damaged_file_is_named(make, tmp_path, content):
    (tmp_path / "hps.pt").write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be read as weights") as refused:
        make(weights=str(tmp_path / "hps.pt"))
    assert "\n" not in str(refused.value)


def test_without_files_and_network_it_is_said_at_once_how_to_get_them(offline):
    start = time.perf_counter()
    with pytest.raises(
        WeightsError, match=r"hf download xswu/HPSv2 HPS_v2.1_compressed.pt .* weights=DIR"
    ) as refused:
        HPSv2()
    assert time.perf_counter() - start < 5
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("top", [0, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(top):
    with pytest.raises(ValueError, match=r"not in \(0, 1\]"):
        HPSv2(weights="/nowhere", top=top)


def test_bfloat16_is_near(make, videos):
    found, expected = scores(make(dtype="bfloat16"), videos), scores(make(), videos)
    assert not found.equal(expected)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


def test_the_memory_is_what_the_published_size_comes_to():
    with torch.device("meta"):
        network = open_clip.CLIP(**open_clip.get_model_config(HPSv2.architecture))
    count = sum(value.numel() for value in network.parameters()) / 2**30
    assert HPSv2.memory == PickScore.memory == f"{4 * count:.1f} GiB fp32, {2 * count:.1f} bf16"
