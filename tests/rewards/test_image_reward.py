"""ImageReward against timm's vision tower and BLIP's reading of text written out."""

import json
import time

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional
from torchvision import transforms

from astrolabe_rewards import WeightsError
from astrolabe_rewards.image_reward import ImageReward, skeleton
from astrolabe_rewards.pictures import CLIP_MEAN, CLIP_STD

PROMPTS = ["a red ball rolls to the left", "кот бежит, 猫 [SEP] " + "ball " * 50]
SIDE, EYE, WIDTH, WORDS, LAYERS, HEADS = 32, 48, 24, 60, 2, 2


class SmallImageReward(ImageReward):
    """The reward over a network of the same kind that fits a test."""

    vision = ImageReward.vision | {
        "hidden_size": EYE,
        "intermediate_size": 4 * EYE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "image_size": SIDE,
    }
    text = ImageReward.text | {
        "hidden_size": WIDTH,
        "intermediate_size": 40,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "vocab_size": WORDS,
        "max_position_embeddings": 64,
    }


def vision_tower():
    return VisionTransformer(
        img_size=SIDE,
        patch_size=16,
        embed_dim=EYE,
        depth=LAYERS,
        num_heads=HEADS,
        num_classes=0,
        global_pool="",
    ).eval()


def shapes():
    """Names and shapes of BLIP's reading of text and ImageReward's head, as published."""
    found = {
        "blip.text_encoder.embeddings.word_embeddings.weight": (WORDS, WIDTH),
        "blip.text_encoder.embeddings.position_embeddings.weight": (64, WIDTH),
        "blip.vision_proj.weight": (8, EYE),
        "blip.vision_proj.bias": (8,),
        "blip.text_proj.weight": (8, WIDTH),
        "blip.text_proj.bias": (8,),
    }
    norms = ["embeddings"]
    dense = {}
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        for part, into in (("attention", WIDTH), ("crossattention", EYE)):
            dense[f"{layer}.{part}.self.query"] = (WIDTH, WIDTH)
            dense[f"{layer}.{part}.self.key"] = (WIDTH, into)
            dense[f"{layer}.{part}.self.value"] = (WIDTH, into)
            dense[f"{layer}.{part}.output.dense"] = (WIDTH, WIDTH)
            norms.append(f"{layer}.{part}.output")
        dense[f"{layer}.intermediate.dense"] = (40, WIDTH)
        dense[f"{layer}.output.dense"] = (WIDTH, 40)
        norms.append(f"{layer}.output")
    for name, (out, into) in dense.items():
        found[f"blip.text_encoder.{name}.weight"] = (out, into)
        found[f"blip.text_encoder.{name}.bias"] = (out,)
    for name in norms:
        found |= {
            f"blip.text_encoder.{name}.LayerNorm.{kind}": (WIDTH,) for kind in ("weight", "bias")
        }
    sizes = (WIDTH, 1024, 128, 64, 16, 1)
    for number, into, out in zip((0, 2, 4, 6, 7), sizes, sizes[1:], strict=False):
        found |= {f"mlp.layers.{number}.weight": (out, into), f"mlp.layers.{number}.bias": (out,)}
    return found


@pytest.fixture(scope="session")
def state():
    generator = torch.Generator().manual_seed(5)
    wanted = shapes()
    for name, value in vision_tower().state_dict().items():
        wanted[f"blip.visual_encoder.{name}"] = tuple(value.shape)
    made = {}
    for name, shape in wanted.items():
        made[name] = torch.randn(shape, generator=generator) / max(1, shape[-1]) ** 0.5
        if "norm" in name.lower() and name.endswith("weight"):
            made[name] += 1
    made["blip.text_encoder.embeddings.position_ids"] = torch.arange(64)[None]
    return made


@pytest.fixture(scope="session")
def folder(state, tmp_path_factory):
    from transformers import BertTokenizer

    root = tmp_path_factory.mktemp("image_reward")
    torch.save(state, root / "ImageReward.pt")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[", "]", ",", "sep", "##s"]
    words += [*"abcdefghijklmnopqrstuvwxyz", "red", "ball", "roll", "##ll", "to", "the", "left"]
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(root)
    return root


@pytest.fixture
def make(folder):
    files = {"weights": str(folder), "base": str(folder), "device": "cpu"}
    return lambda **options: SmallImageReward(**(files | options))


@pytest.fixture
def altered(state, tmp_path):
    def write(change):
        copy = dict(state)
        change(copy)
        torch.save(copy, tmp_path / "altered.pt")
        return str(tmp_path / "altered.pt")

    return write


@pytest.fixture(scope="module")
def videos():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 17, 3, 40, 60), dtype=torch.uint8, generator=generator)


def scores(reward, videos, prompts=PROMPTS, fps=16.0):
    return reward.score(videos, list(prompts), torch.full((len(videos),), fps))


def prepared(frame):
    pipeline = transforms.Compose(
        [
            transforms.ToPILImage(),
            transforms.Resize(SIDE, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(SIDE),
            transforms.ToTensor(),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    return pipeline(frame)


def dense(state, name, value):
    return functional.linear(value, state[f"{name}.weight"], state[f"{name}.bias"])


def settled(state, name, value):
    weight, bias = state[f"{name}.LayerNorm.weight"], state[f"{name}.LayerNorm.bias"]
    return functional.layer_norm(value, (WIDTH,), weight, bias, 1e-12)


def attended(state, name, value, context, mask):
    """One attention of BERT: of words to words, or of words to the picture."""
    parts = [
        dense(state, f"{name}.self.{kind}", given).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for kind, given in (("query", value), ("key", context), ("value", context))
    ]
    mixed = functional.scaled_dot_product_attention(*parts, attn_mask=mask)
    out = dense(state, f"{name}.output.dense", mixed.transpose(1, 2).flatten(2))
    return settled(state, f"{name}.output", out + value)


def expected(state, folder, frames, prompt):
    """Scores of frames for one prompt, from the published names and the published formulas."""
    from transformers import AutoTokenizer

    tower = vision_tower()
    prefix = "blip.visual_encoder."
    tower.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    )
    read = {k.removeprefix("blip.text_encoder."): v for k, v in state.items()}
    tokenizer = AutoTokenizer.from_pretrained(folder, split_special_tokens=True)
    given = tokenizer(
        [prompt] * len(frames),
        padding="max_length",
        truncation=True,
        max_length=35,
        return_tensors="pt",
    )
    mask = given["attention_mask"].bool()[:, None, None]
    with torch.no_grad():
        seen = tower.forward_features(torch.stack([prepared(frame) for frame in frames]))
        value = read["embeddings.word_embeddings.weight"][given["input_ids"]]
        value = value + read["embeddings.position_embeddings.weight"][:35]
        value = settled(read, "embeddings", value)
        for i in range(LAYERS):
            layer = f"encoder.layer.{i}"
            value = attended(read, f"{layer}.attention", value, value, mask)
            value = attended(read, f"{layer}.crossattention", value, seen, None)
            inner = functional.gelu(dense(read, f"{layer}.intermediate.dense", value))
            value = settled(
                read, f"{layer}.output", dense(read, f"{layer}.output.dense", inner) + value
            )
        first = value[:, 0]
        for number in (0, 2, 4, 6, 7):
            first = dense(state, f"mlp.layers.{number}", first)
    return (first[:, 0] - 0.16717362830052426) / 1.0333394966054072


def test_scores_are_those_of_the_published_formulas(state, folder, make, videos):
    wanted = [
        expected(state, folder, video[::8], prompt).mean()
        for video, prompt in zip(videos, PROMPTS, strict=True)
    ]
    found = scores(make(), videos)
    torch.testing.assert_close(found, torch.stack(wanted), atol=1e-4, rtol=1e-5)
    assert (found[0] - found[1]).abs() > 1e-3  # tenfold the tolerance


def test_a_batch_scores_like_its_videos_whatever_the_micro_batch(make, videos):
    alone = torch.cat([scores(make(), videos[i : i + 1], PROMPTS[i : i + 1]) for i in (0, 1)])
    for size in (1, 4):
        found = scores(make(micro_batch=size), videos)
        torch.testing.assert_close(found, alone, atol=1e-4, rtol=0)


def test_only_35_tokens_are_read(make, videos):
    reward = make()
    found = scores(reward, videos[:1].expand(2, -1, -1, -1, -1), ["ball " * 33, "ball " * 40])
    assert reward.cut == 1
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("blip.visual_encoder.blocks.1.attn.qkv.bias"),
            r"1 missing \(visual_encoder.encoder.layers.1.self_attn.qkv.bias\)",
        ),
        (lambda s: s.update({"blip.extra": torch.ones(1)}), r"1 unexpected \(blip.extra\)"),
        (lambda s: s.update({"mlp.layers.7.bias": torch.ones(2)}), r"\(2,\) instead of \(1,\)"),
    ],
)
def test_a_checkpoint_that_is_not_exactly_the_network_is_refused(make, altered, change, message):
    with pytest.raises(WeightsError, match=message):
        make(weights=altered(change))


def test_a_tokenizer_of_another_model_is_refused(make, folder, tmp_path):
    described = json.loads((folder / "tokenizer.json").read_text())
    described["model"]["vocab"] |= {f"word{i}": 43 + i for i in range(30)}
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    settings = (folder / "tokenizer_config.json").read_text()
    (tmp_path / "tokenizer_config.json").write_text(settings)
    with pytest.raises(WeightsError, match="the network knows 60"):
        make(base=str(tmp_path))


def test_without_files_and_network_it_is_said_at_once_how_to_get_them(offline, folder):
    start = time.perf_counter()
    with pytest.raises(WeightsError, match=r"hf download google-bert/bert-base-uncased .*base=DIR"):
        ImageReward()
    with pytest.raises(
        WeightsError, match=r"hf download THUDM/ImageReward ImageReward.pt .*weights=DIR"
    ) as refused:
        ImageReward(base=str(folder))
    assert time.perf_counter() - start < 5
    assert "\n" not in str(refused.value)


def test_the_memory_is_what_the_published_size_comes_to():
    network = skeleton(ImageReward.vision, ImageReward.text)
    count = sum(value.numel() for value in network.parameters()) / 2**30
    assert ImageReward.memory == f"{4 * count:.1f} GiB fp32, {2 * count:.1f} bf16"
