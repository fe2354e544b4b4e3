"""CLIP, SigLIP, PickScore and the aesthetic predictor against the library's own computation."""

import itertools
import json
import logging
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensordict import TensorDict
from tokenizers.pre_tokenizers import ByteLevel

from astrolabe_rewards import WeightsError
from astrolabe_rewards.aesthetic import LaionAesthetic, rating_head
from astrolabe_rewards.clip import CLIPScore
from astrolabe_rewards.image_text import frames_at
from astrolabe_rewards.pickscore import PickScore
from astrolabe_rewards.pictures import Pictures

PROMPTS = ["A red ball rolls to the LEFT", "猫が走る, Привет! 😀 {x} </w>"]
SIDE = 32


def clip_tokenizer():
    """A real tokenizer of CLIP, whose vocabulary is the bytes and a few words."""
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e</w>"), ("a", "l"), ("al", "l</w>"), ("r", "o")]
    words = [*letters, *(f"{c}</w>" for c in letters), *("".join(pair) for pair in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges)


def siglip_tokenizer():
    """A real tokenizer of SigLIP 2, whose vocabulary is letters and bytes."""
    from transformers import Siglip2Tokenizer

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {word: i for i, word in enumerate(words)}
    return Siglip2Tokenizer(vocab=vocabulary, merges=[], padding_side="right")


def filled(network):
    """Give every tensor values that matter: initial ones are small, and biases zero."""
    generator = torch.Generator().manual_seed(7)
    for name, value in network.state_dict().items():
        if name != "logit_scale":
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(0.2 * noise + (value == 1))  # 1: the scale of a layer norm
    return network


TOWER = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A small CLIP, SigLIP and aesthetic head as they lie on the hub."""
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    root = tmp_path_factory.mktemp("models")
    vision = TOWER | {"hidden_size": 32, "image_size": SIDE, "patch_size": 16}
    words = clip_tokenizer()
    text = TOWER | {"hidden_size": 24, "vocab_size": len(words), "max_position_embeddings": 77}
    text |= {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)
    filled(CLIPModel(config)).save_pretrained(root / "clip")
    words.save_pretrained(root / "clip")
    settings = {"crop_size": SIDE, "do_center_crop": True, "size": SIDE, "resample": 3}
    settings |= {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    (root / "clip" / "preprocessor_config.json").write_text(json.dumps(settings))

    words = siglip_tokenizer()
    text = TOWER | {"hidden_size": 32, "vocab_size": len(words), "max_position_embeddings": 64}
    config = SiglipConfig(text_config=text, vision_config=vision)
    filled(SiglipModel(config)).save_pretrained(root / "siglip")
    words.save_pretrained(root / "siglip")
    settings = {"size": {"height": SIDE, "width": SIDE}, "resample": 2}
    settings |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (root / "siglip" / "preprocessor_config.json").write_text(json.dumps(settings))

    head = filled(rating_head(20)).state_dict()
    state = {f"layers.{name}": value for name, value in head.items()}
    torch.save(state, root / "sac+logos+ava1-l14-linearMSE.pth")
    return root


@pytest.fixture
def copied(folders, tmp_path):
    """A copy of one of the folders, to be spoiled."""

    def copy(name):
        shutil.copytree(folders / name, tmp_path / name)
        return tmp_path / name

    return copy


@pytest.fixture
def altered(copied):
    """A copy of the CLIP whose tensors were changed."""

    def write(change):
        folder = copied("clip")
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")
        return folder

    return write


def clip(folder, **options):
    return CLIPScore(weights=str(folder), device="cpu", **options)


def aesthetic(folders, **options):
    files = {"weights": str(folders), "base": str(folders / "clip"), "device": "cpu"}
    return LaionAesthetic(**(files | options))


def pickscore(folders, **options):
    files = {"weights": str(folders / "clip"), "base": str(folders / "clip"), "device": "cpu"}
    return PickScore(**(files | options))


@pytest.fixture(scope="module")
def videos():
    return torch.randint(
        0, 256, (2, 33, 3, 40, 57), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def scores(reward, videos, prompts=PROMPTS, fps=16.0):
    fps = torch.full((len(videos),), fps)
    return reward.score(videos, list(prompts), fps)


def library(folder, frames, prompts, kind):
    """Logits of frames and prompts, and cosines, by the library's own model and processor."""
    import transformers

    model = getattr(transformers, f"{kind}Model").from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pictures = getattr(transformers, f"{kind}ImageProcessorPil").from_pretrained(folder)
    processor = getattr(transformers, f"{kind}Processor")(pictures, tokenizer)
    length = model.config.text_config.max_position_embeddings
    given = processor(
        images=[frame.permute(1, 2, 0).numpy() for frame in frames],
        text=list(prompts),
        return_tensors="pt",
        padding="max_length",
        truncation=True,
        max_length=length,
    )
    if kind == "Siglip":
        given.pop("attention_mask", None)  # it was trained without
    with torch.no_grad():
        found = model(**given)
    cosines = found.image_embeds @ found.text_embeds.T
    return found.logits_per_image, cosines, found.image_embeds


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("size", [(40, 57), (57, 40), (32, 32), (9, 31), (240, 416)])
def test_pictures_are_prepared_as_by_the_processor(folders, kind, size):
    import transformers

    name = {"clip": "CLIP", "siglip": "Siglip"}[kind]
    processor = getattr(transformers, f"{name}ImageProcessorPil").from_pretrained(folders / kind)
    frames = torch.randint(0, 256, (3, 3, *size), dtype=torch.uint8)
    expected = processor([f.permute(1, 2, 0).numpy() for f in frames], return_tensors="pt")
    found = Pictures.read(folders / kind / "preprocessor_config.json")(frames)
    torch.testing.assert_close(found, expected["pixel_values"], atol=1e-5, rtol=0)


def test_pictures_of_the_published_size_are_those_of_clip():
    from transformers import CLIPImageProcessorPil

    frames = torch.randint(0, 256, (1, 3, 100, 173), dtype=torch.uint8)
    expected = CLIPImageProcessorPil()([frames[0].permute(1, 2, 0).numpy()], return_tensors="pt")
    torch.testing.assert_close(Pictures()(frames), expected["pixel_values"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_normalize": False}, "does not normalize"),
        ({"do_center_crop": False}, "cuts no picture"),
        ({"size": 16}, "cuts 32x32 from a side of 16"),
        ({"image_mean": None}, "does not say how pictures are prepared"),
        ({"size": 64, "crop_size": 64}, r"gives pictures of \(64, 64\), the network reads"),
    ],
)
def test_other_ways_to_prepare_pictures_are_refused(copied, change, message):
    file = copied("clip") / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(WeightsError, match=message):
        clip(file.parent)


@pytest.mark.parametrize(("folder", "kind"), [("clip", "CLIP"), ("siglip", "Siglip")])
def test_clip_score_is_a_hundred_times_the_cosine_of_the_library(folders, videos, folder, kind):
    path = folders / folder
    frames = videos[:, :6]
    _, cosines, _ = library(path, frames.flatten(0, 1), PROMPTS, kind)
    each = 100 * torch.stack([cosines[:6, 0], cosines[6:, 1]]).clamp(min=0)
    assert each.max() > 1
    found = scores(clip(path, fps=None), frames)
    torch.testing.assert_close(found, each.mean(1), atol=1e-4, rtol=0)


def test_no_cosine_counts_less_than_zero(folders, videos, altered):
    def turn(state):
        state["text_projection.weight"] *= -1

    straight, turned = scores(clip(folders / "clip"), videos), scores(clip(altered(turn)), videos)
    _, cosines, _ = library(folders / "clip", videos[:, ::8].flatten(0, 1), PROMPTS, "CLIP")
    each = 100 * torch.stack([cosines[:5, 0], cosines[5:, 1]])
    assert each.min() < -1
    assert each.max() > 1
    torch.testing.assert_close(straight, each.clamp(min=0).mean(1), atol=1e-4, rtol=0)
    torch.testing.assert_close(turned, (-each).clamp(min=0).mean(1), atol=1e-4, rtol=0)


def test_pickscore_is_the_logit_of_the_library(folders, videos):
    logits, _, _ = library(folders / "clip", videos[:, :6].flatten(0, 1), PROMPTS, "CLIP")
    expected = torch.stack([logits[:6, 0].mean(), logits[6:, 1].mean()])
    found = scores(pickscore(folders, fps=None), videos[:, :6])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_aesthetic_rating_is_the_product_of_five_matrices(folders, videos):
    _, _, vectors = library(folders / "clip", videos[:, :6].flatten(0, 1), PROMPTS, "CLIP")
    state = torch.load(folders / "sac+logos+ava1-l14-linearMSE.pth")
    for layer in (0, 2, 4, 6, 7):
        vectors = vectors @ state[f"layers.{layer}.weight"].T + state[f"layers.{layer}.bias"]
    found = scores(aesthetic(folders, fps=None), videos[:, :6], ["", ""])
    torch.testing.assert_close(found, vectors.reshape(2, 6).mean(1), atol=1e-4, rtol=1e-5)


def test_every_tensor_of_the_aesthetic_head_matters(folders, videos, tmp_path):
    file = folders / "sac+logos+ava1-l14-linearMSE.pth"
    base = scores(aesthetic(folders), videos[:1], [""])
    for name in torch.load(file):
        state = torch.load(file)
        state[name] = state[name] + 0.5
        torch.save(state, tmp_path / f"{name}.pth")
        changed = aesthetic(folders, weights=str(tmp_path / f"{name}.pth"))
        assert (scores(changed, videos[:1], [""]) - base).abs() > 1e-4, name


def test_the_aesthetic_predictor_needs_no_text_tower(folders, videos, altered):
    def cut(state):
        for name in list(state):
            if name.startswith("text_"):
                del state[name]

    reward = aesthetic(folders, base=str(altered(cut)))
    assert not reward.needs_text
    assert scores(reward, videos, ["", ""]).equal(scores(aesthetic(folders), videos, ["", ""]))


@pytest.mark.parametrize("make", [aesthetic, pickscore, lambda f, **o: clip(f / "siglip", **o)])
def test_a_batch_scores_like_its_videos_whatever_the_micro_batch(folders, videos, make):
    alone = torch.cat(
        [scores(make(folders), videos[i : i + 1], PROMPTS[i : i + 1]) for i in (0, 1)]
    )
    for size in (1, 3, 64):
        found = scores(make(folders, micro_batch=size), videos)
        torch.testing.assert_close(found, alone, atol=1e-4, rtol=0)


def test_frames_are_taken_by_time(folders, videos, make_batch):
    sampled, whole = clip(folders / "clip"), clip(folders / "clip", fps=None)
    by_time = scores(sampled, videos)
    torch.testing.assert_close(by_time, scores(whole, videos[:, ::8]), atol=1e-4, rtol=0)
    batch = TensorDict.cat(
        [make_batch(videos[:1], PROMPTS[:1]), make_batch(videos[1:], PROMPTS[1:], 4.0)]
    )
    mixed = sampled(batch)["score", "clip"]
    assert mixed[0, 0] == by_time[0]
    torch.testing.assert_close(
        mixed[1], scores(whole, videos[1:, ::2], PROMPTS[1:]), atol=1e-4, rtol=0
    )


def test_frames_at_a_rate():
    assert frames_at(81, 16.0, 2.0) == list(range(0, 81, 8))
    assert frames_at(20, 15.0, 2.0) == [0, 8, 15]  # 7.5 is nearer to none: the later one
    assert frames_at(1, 16.0, 2.0) == frames_at(7, 16.0, 0.01) == [0]
    assert frames_at(5, 2.0, 24.0) == [0, 1, 2, 3, 4]
    for count, fps, rate in itertools.product((1, 2, 17), (7.9, 16.0, 29.97), (0.3, 2.0, 7.0)):
        found = frames_at(count, fps, rate)
        assert found == sorted(set(found))
        assert max(found) < count
    for fps in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="frames per second"):
            frames_at(5, fps, 2.0)


def test_long_prompts_are_cut_counted_and_named_once(folders, videos, caplog):
    reward = clip(folders / "clip")
    long = "all the " * 60
    with caplog.at_level(logging.WARNING):
        found = scores(reward, videos, [long, long + "ro"])
    assert reward.cut == 2
    (record,) = [r for r in caplog.records if r.name.startswith("astrolabe")]
    assert "clip: 2 of 2 prompts are longer than the 77 tokens that it reads" in record.message
    _, cosines, _ = library(folders / "clip", videos[0, ::8], [long], "CLIP")
    torch.testing.assert_close(found[0], 100 * cosines.clamp(min=0).mean(), atol=1e-4, rtol=0)
    scores(reward, videos)
    assert reward.cut == 0


@pytest.mark.parametrize("folder", ["clip", "siglip"])
def test_control_tokens_in_a_prompt_are_letters(folders, videos, folder):
    reward = clip(folders / folder, fps=None)
    end = {"clip": "<|endoftext|>", "siglip": "<eos>"}[folder]
    texts = [f"a {end} b", f"a {end} c", "a", "", "\ud800 \x00"]
    ids, _ = reward._tokens([text.encode("utf-8", "replace").decode() for text in texts])
    assert len({tuple(row) for row in ids.tolist()}) == 5
    found = scores(reward, videos[:1, :1].expand(5, -1, -1, -1, -1), texts)
    assert found.isfinite().all()


def test_siglip_2_reads_small_letters_padded_to_the_right_as_it_was_trained(
    folders, videos, copied
):
    file = copied("siglip") / "tokenizer_config.json"  # as it is published: of another model
    described = json.loads(file.read_text()) | {"tokenizer_class": "GemmaTokenizer"}
    del described["padding_side"]
    file.write_text(json.dumps(described))
    found = scores(clip(file.parent), videos)
    assert found.equal(scores(clip(folders / "siglip"), videos))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("visual_projection.weight"), r"1 missing \(visual_projection.weight\)"),
        (lambda s: s.update(extra=torch.ones(1)), r"1 unexpected \(extra\)"),
        (
            lambda s: s.update({"text_projection.weight": torch.ones(20, 23)}),
            r"text_projection.weight \(20, 23\) instead of \(20, 24\)",
        ),
    ],
)
def test_a_checkpoint_that_is_not_exactly_the_network_is_refused(altered, change, message):
    with pytest.raises(WeightsError, match=message):
        clip(altered(change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layers.4.bias"), r"1 missing \(layers.4.bias\)"),
        (lambda s: s.update({"layers.8.bias": torch.ones(1)}), r"1 unexpected \(layers.8.bias\)"),
        (lambda s: s.update({"layers.7.bias": torch.ones(2)}), r"\(2,\) instead of \(1,\)"),
    ],
)
def test_a_head_that_is_not_exactly_the_head_is_refused(folders, tmp_path, change, message):
    state = torch.load(folders / "sac+logos+ava1-l14-linearMSE.pth")
    change(state)
    torch.save(state, tmp_path / "head.pth")
    with pytest.raises(WeightsError, match=message):
        aesthetic(folders, weights=str(tmp_path / "head.pth"))


def test_older_formats_score_the_same(folders, videos, copied):
    """pytorch_model.bin with position_ids, as CLIP was published in 2021, and parts."""
    expected = scores(clip(folders / "clip"), videos)
    folder = copied("clip")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    half = len(state) // 2
    items = list(state.items())
    save_file(dict(items[:half]), folder / "model-00001-of-00002.safetensors")
    save_file(dict(items[half:]), folder / "model-00002-of-00002.safetensors")
    assert scores(clip(folder), videos).equal(expected)
    for part in folder.glob("model-*"):
        part.unlink()
    for tower in ("text", "vision"):
        state[f"{tower}_model.embeddings.position_ids"] = torch.arange(5)[None]
    torch.save(state, folder / "pytorch_model.bin")
    assert scores(clip(folder), videos).equal(expected)
    assert scores(clip(folder / "pytorch_model.bin"), videos).equal(expected)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "has no model\\*.safetensors or"),
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "has no preprocessor_config.json"),
        (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "the tokenizer in .* cannot be read"),
        (lambda f: (f / "config.json").write_text("{"), "is no configuration of clip or siglip"),
        (lambda f: (f / "config.json").write_text('{"model_type": "siglip2"}'), "'siglip2'"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x"), "cannot be read as weights"),
    ],
)
def test_absent_or_damaged_files_are_named_at_once(copied, spoil, message):
    folder = copied("clip")
    spoil(folder)
    with pytest.raises(WeightsError, match=message) as refused:
        clip(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("vocab_size", 100, "the network knows 100. Take both from one model"),
        ("eos_token_id", 5, "ends texts with token 5, the tokenizer with"),
    ],
)
def test_a_tokenizer_of_another_model_is_refused(copied, part, change, message):
    file = copied("clip") / "config.json"
    config = json.loads(file.read_text())
    config["text_config"][part] = change
    file.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=message):
        clip(file.parent)


def test_configurations_from_before_2023_mean_the_largest_token(folders, videos, copied):
    file = copied("clip") / "config.json"
    config = json.loads(file.read_text())
    config["text_config"]["eos_token_id"] = 2
    file.write_text(json.dumps(config))
    assert scores(clip(file.parent), videos).equal(scores(clip(folders / "clip"), videos))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (CLIPScore, "hf download openai/clip-vit-base-patch32 .*pytorch_model.*weights=DIR"),
        (PickScore, "hf download yuvalkirstain/PickScore_v1 .*weights=DIR"),
        (LaionAesthetic, "hf download openai/clip-vit-large-patch14 .*base=DIR"),
    ],
)
def test_without_files_and_network_it_is_said_at_once_how_to_get_them(offline, make, named):
    start = time.perf_counter()
    with pytest.raises(WeightsError, match=named) as refused:
        make()
    assert time.perf_counter() - start < 5
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 0.0}, "fps is 0.0. Give the frames per second"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"micro_batch": 0}, "micro_batch is 0"),
        ({"dtype": "float16"}, "Choose from: "),
        ({"device": "tpu"}, "device is 'tpu'"),
    ],
)
def test_options_out_of_range_are_refused_before_any_file_is_looked_for(options, message):
    with pytest.raises(ValueError, match=message):
        CLIPScore(weights="/nowhere", **options)


def test_weights_are_read_at_the_first_score_and_once_for_equal_rewards(folders, videos, caplog):
    with caplog.at_level(logging.INFO, "astrolabe_rewards"):
        state = torch.get_rng_state()
        first, second = pickscore(folders), pickscore(folders)
        assert caplog.messages == []
        assert scores(first, videos).equal(scores(second.load(), videos))
        assert torch.get_rng_state().equal(state)
    assert [m for m in caplog.messages if "reading" in m] == caplog.messages
    assert len(caplog.messages) == 1


def test_bfloat16_is_near_and_keeps_the_scale_exact(folders, videos):
    found = scores(pickscore(folders, dtype="bfloat16"), videos)
    expected = scores(pickscore(folders), videos)
    assert not found.equal(expected)
    torch.testing.assert_close(found, expected, atol=0.3, rtol=0)
    assert pickscore(folders, dtype="bfloat16")._network.load().logit_scale.dtype == torch.float32


def test_fingerprints_tell_options_and_weights_apart(folders, altered):
    def change(state):
        state["text_projection.weight"] += 1

    prints = [
        clip(folder, fps=fps).fingerprint()
        for folder in (folders / "clip", altered(change))
        for fps in (None, 1.0, 2.0)
    ]
    assert len(set(prints)) == 6
    assert clip(folders / "clip").fingerprint() == prints[2]


def test_the_memory_is_what_the_published_sizes_come_to():
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModelWithProjection

    large = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        patch_size=14,
        projection_dim=768,
    )
    with torch.device("meta"):
        networks = {
            CLIPScore: CLIPModel(CLIPConfig()),  # ViT-B/32
            LaionAesthetic: CLIPVisionModelWithProjection(large),
        }
    for reward, network in networks.items():
        count = sum(value.numel() for value in network.parameters()) / 2**30
        assert reward.memory == f"{4 * count:.1f} GiB fp32, {2 * count:.1f} bf16"
