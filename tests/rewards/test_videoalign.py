"""VideoReward against the numbers of its own code, on a tiny Qwen2-VL, and at its real size."""

import gc
import hashlib
import json
import math
import shutil
import threading
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from astrolabe_rewards import CompositeReward, WeightsError
from astrolabe_rewards.frames import (
    count_at_rate,
    evenly_spaced,
    fitted_size,
    grey,
    qwen_patches,
    resized,
)
from astrolabe_rewards.qwen_prompt import PromptEncoder, load_template
from astrolabe_rewards.qwen_weights import LoRA
from astrolabe_rewards.videoalign import VideoAlignMQ, VideoAlignTA, VideoAlignVQ
from astrolabe_rewards.videoalign_files import Settings

KINDS = {"VQ": VideoAlignVQ, "MQ": VideoAlignMQ, "TA": VideoAlignTA}
ONE = torch.ones(1)


@pytest.fixture(scope="module")
def expected(golden):
    return json.loads((golden / "videoalign_golden.json").read_text())


@pytest.fixture(scope="module")
def arrays(golden):
    with np.load(golden / "videoalign_golden.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def videos(arrays):
    return [torch.from_numpy(arrays[f"v{i}"]) for i in range(3)]


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory):
    """The tiny checkpoints laid out as the published one: folder(1) has a head of one output."""
    made = {}

    def lay_out(outputs):
        if outputs not in made:
            made[outputs] = tmp_path_factory.mktemp(f"od{outputs}")
            (made[outputs] / "checkpoint-30").mkdir()
            weights = golden / f"videoalign_tiny_od{outputs}.safetensors"
            shutil.copy(weights, made[outputs] / "checkpoint-30" / "model.safetensors")
            settings = golden / f"videoalign_model_config_od{outputs}.json"
            shutil.copy(settings, made[outputs] / "model_config.json")
        return made[outputs]

    return lay_out


@pytest.fixture(scope="module")
def make(golden, folder):
    def build(dimension="VQ", outputs=1, **options):
        defaults = {
            "weights": str(folder(outputs)),
            "base": str(golden / "tiny-base"),
            "dtype": "float32",
            "device": "cpu",
        }
        return KINDS[dimension](**(defaults | options))

    return build


@pytest.fixture
def altered(golden, tmp_path):
    """The tiny checkpoint after a change: altered(lambda state: ...) gives its folder."""

    def write(change):
        state = load_file(golden / "videoalign_tiny_od1.safetensors")
        change(state)
        save_file(state, tmp_path / "model.safetensors")
        shutil.copy(golden / "videoalign_model_config_od1.json", tmp_path / "model_config.json")
        return str(tmp_path)

    return write


def forwards(reward):
    """A list that grows by the rows of every forward of a reward's network."""
    seen = []
    backbone, _ = reward.load()._model.load()
    backbone.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(len(out.last_hidden_state)), with_kwargs=True
    )
    return seen


def test_the_text_is_that_of_the_checkpoint(golden, expected):
    published = json.loads((golden / "templates.json").read_text())["videoalign"]
    text = "".join(load_template("videoreward").pieces)
    prompts = expected["prompts"]
    assert [text.replace("{text_prompt}", p) for p in prompts] == expected["rendered_texts"]
    assert published["detailed_special"] in text
    digest = hashlib.sha256(published["detailed_special"].encode()).hexdigest()
    assert digest == published["sha256"]


def test_tokens_are_those_of_the_reference(golden, expected, arrays):
    template = load_template("videoreward")
    encoder = PromptEncoder(golden / "tiny-base" / "tokenizer.json", template)
    for i, prompt in enumerate(expected["prompts"]):
        ids, asked = encoder.encode(prompt, int(arrays["video_grid_thw"][i].prod()) // 4)
        length = int(arrays["attention_mask"][i].sum())
        assert ids == arrays["input_ids"][i][:length].tolist()
        assert [ids[place] for place in asked] == expected["special_token_ids"]


def test_frames_are_those_of_the_reference(arrays, videos):
    chosen = evenly_spaced(21, 10)
    assert chosen == arrays["frame_idx_21"].tolist()
    assert evenly_spaced(81, 10) == arrays["frame_idx_81"].tolist()
    frames = resized(videos[0][chosen], (336, 588))
    np.testing.assert_array_equal(frames[:, :, ::24, ::24], arrays["processed0"])
    patches = qwen_patches(frames)
    np.testing.assert_allclose(patches[:64], arrays["pixel_values_head"], atol=1e-6)


def test_sizes_and_counts_are_those_of_the_reference(expected):
    geometry = expected["geometry"]
    for height, width, *wanted in geometry["smart_resize_max200704_min100352"]:
        assert list(fitted_size(height, width, 100352, 200704)) == wanted
    for height, width, *wanted in geometry["smart_resize_min_eq_max_200704"]:
        assert list(fitted_size(height, width, 200704, 200704)) == wanted
    for num_frames, fps, wanted in geometry["smart_nframes_fps2"]:
        assert count_at_rate(num_frames, fps, 2.0) == wanted


def test_grey_is_cut_off_not_rounded():
    pixels = torch.tensor([[[[255, 10]], [[0, 20]], [[0, 30]]]], dtype=torch.uint8)
    assert grey(pixels).tolist() == [[[[76, 18]]]]  # 76.2, 18.1


@pytest.mark.parametrize("outputs", [1, 3])
def test_single_videos_score_as_in_the_reference(make, expected, videos, outputs):
    wanted = expected[f"od{outputs}"]
    rewards = {
        "VQ": make("VQ", outputs),
        "MQ_gray": make("MQ", outputs),
        "MQ": make("MQ", outputs, grayscale=False),
        "TA": make("TA", outputs),
    }
    for i, (video, prompt) in enumerate(zip(videos, expected["prompts"], strict=True)):
        raw = rewards["VQ"].raw_scores(video[None], [prompt], ONE)
        np.testing.assert_allclose(raw[0], wanted["raw_single"][i], atol=1e-4)
        for name, reward in rewards.items():
            found = reward.score(video[None], [prompt], ONE)
            np.testing.assert_allclose(found, [wanted["scorer"][name][i]], atol=1e-4)


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_batch_scores_as_in_the_reference(make, expected, videos, make_batch, outputs):
    # Ten frames of the reference's size are looked at as they are: three videos, one batch.
    ready = [resized(video[evenly_spaced(len(video), 10)], (336, 588)) for video in videos]
    reward = make("VQ", outputs, max_tokens=100_000)
    reward._shared._answers.clear()
    seen = forwards(reward)
    raw = reward.raw_scores(torch.stack(ready), expected["prompts"], torch.ones(3))
    np.testing.assert_allclose(raw, expected[f"od{outputs}"]["raw"], atol=1e-4)
    assert seen == [3]

    # Grey comes before the resize, so only the two of one size make a batch.
    pair = torch.stack([videos[i][evenly_spaced(len(videos[i]), 10)] for i in (0, 2)])
    batch = make_batch(pair, [expected["prompts"][i] for i in (0, 2)])
    found = make("MQ", outputs)(batch)["score", "videoalign_mq"][:, 0]
    wanted = expected[f"od{outputs}"]["scorer"]["MQ_gray"]
    np.testing.assert_allclose(found, [wanted[0], wanted[2]], atol=1e-4)


def test_micro_batches_change_no_score(make, expected, videos):
    pixels = torch.stack([videos[0][:6], videos[2]])
    prompts = [expected["prompts"][0], expected["prompts"][2]]
    found = []
    for max_tokens in (1, 100_000):
        reward = make("TA", max_tokens=max_tokens)
        reward._shared._answers.clear()
        found.append(reward.score(pixels, prompts, torch.ones(2)))
    np.testing.assert_allclose(found[0], found[1], atol=2e-5)


def test_raw_and_normalised_scores_differ_by_the_published_numbers(make, expected, videos):
    means = {"VQ": (3.6757, 2.2476), "MQ": (1.1646, 1.3811), "TA": (2.8105, 2.5121)}
    for dimension, (mean, std) in means.items():
        raw, normal = (
            make(dimension, scale=scale).score(videos[1][None], [expected["prompts"][1]], ONE)
            for scale in ("raw", "normalised")
        )
        np.testing.assert_allclose(normal, (raw - mean) / std, atol=1e-6)


def test_what_the_loader_that_drops_lora_makes_of_it_does_not_come_out(make, expected, videos):
    wrong = expected["od1"]["as_shipped_loader"]["scores_raw"][0]
    found = make().raw_scores(videos[0][None], [expected["prompts"][0]], ONE)[0]
    assert np.abs(found.numpy() - np.array(wrong)).max() > 0.5


def lora_names(golden):
    state = load_file(golden / "videoalign_tiny_od1.safetensors")
    return [name for name in state if ".lora_" in name]


def test_every_lora_weight_is_needed(make, golden, altered):
    names = lora_names(golden)
    assert len(names) == 2 * 7 * 2  # A and B of seven layers in two blocks
    for name in names:
        with pytest.raises(WeightsError, match=r"1 missing \(language_model\..*lora_[AB]\)"):
            make(weights=altered(lambda state, name=name: state.pop(name)))


def test_every_lora_weight_is_merged(make, golden):
    state = load_file(golden / "videoalign_tiny_od1.safetensors")
    backbone, _ = make().load()._model.load()
    loaded = backbone.state_dict()
    for name in lora_names(golden):
        layer = name.partition(".lora_")[0]
        before = state[f"{layer}.base_layer.weight"]
        up, down = (state[f"{layer}.lora_{part}.default.weight"] for part in "BA")
        ours = layer.replace("base_model.model.model.", "language_model.")
        after = loaded[f"{ours}.weight"]
        torch.testing.assert_close(after, before + 8 / 4 * up @ down)
        assert (after - before).abs().max() > 1e-3


@pytest.mark.slow
def test_every_lora_weight_changes_the_scores(make, golden, altered, videos):
    pixels = videos[1][None, :2]
    whole = make(sampling="native").raw_scores(pixels, ["a cat"], ONE)
    for name in lora_names(golden):
        weights = altered(lambda state, name=name: state[name].zero_())
        found = make(weights=weights, sampling="native").raw_scores(pixels, ["a cat"], ONE)
        assert (found - whole).abs().max() > 1e-3, name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("base_model.model.rm_head.weight"), r"1 missing \(rm_head"),
        (lambda s: s.pop("base_model.model.model.norm.weight"), "1 missing"),
        (lambda s: s.update({"model.norm.weight": torch.zeros(64)}), "1 unexpected"),
        (
            lambda s: s.update({"base_model.model.rm_head.weight": torch.zeros(2, 64)}),
            "a head of 2 outputs",
        ),
        (
            lambda s: [s.pop(name) for name in list(s) if ".lora_" in name],
            "28 missing",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fill_its_network_is_refused(make, altered, change, message):
    with pytest.raises(WeightsError, match=message):
        make(weights=altered(change))


def test_three_scores_cost_one_forward_in_colour_and_one_in_grey(
    make, expected, videos, make_batch
):
    rewards = {dimension: make(dimension) for dimension in KINDS}
    assert len({id(reward._shared) for reward in rewards.values()}) == 1
    rewards["VQ"]._shared._answers.clear()
    seen = forwards(rewards["VQ"])
    reward = CompositeReward({name: (term, 1.0) for name, term in rewards.items()})
    pixels = torch.stack([videos[0][:6], videos[2]])
    batch = reward(make_batch(pixels, expected["prompts"][:2]))
    assert seen == [2, 2]
    changed = pixels.clone()
    changed[0, 0] = 255 - changed[0, 0]  # one frame of one video: it alone is looked at again
    seen.clear()
    reward(make_batch(changed, expected["prompts"][:2]))
    reward(make_batch(changed, expected["prompts"][:2]))
    assert seen == [1, 1]

    alone = make("TA")
    alone._shared._answers.clear()
    found = alone(make_batch(pixels, expected["prompts"][:2]))["score", "videoalign_ta"]
    torch.testing.assert_close(batch["score", "TA"], found, atol=1e-6, rtol=0)


def test_the_same_video_in_a_batch_is_looked_at_once(make, videos):
    reward = make("TA")
    reward._shared._answers.clear()
    seen = forwards(reward)
    found = reward.score(videos[1][None].expand(3, -1, -1, -1, -1), ["a", "b", "a"], torch.ones(3))
    assert seen == [2]
    assert found[0] == found[2] != found[1]


def test_the_prompt_counts_for_text_alignment_alone(make, videos):
    pixels = videos[1][None].expand(2, -1, -1, -1, -1)
    first, second = make().raw_scores(pixels, ["a cat plays piano", "the moon"], torch.ones(2))
    torch.testing.assert_close(first[:2], second[:2], atol=1e-5, rtol=0)
    assert abs(first[2] - second[2]) > 1e-2


def test_threads_share_answers_too(make, expected, videos):
    rewards = [make("VQ"), make("TA"), make("VQ", scale="raw")]
    rewards[0]._shared._answers.clear()
    seen = forwards(rewards[0])
    found = {}

    def work(index):
        pixels, prompts = videos[1][None], expected["prompts"][1:2]
        found[index] = float(rewards[index].score(pixels, prompts, ONE)[0])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1]
    wanted = expected["od1"]
    assert found[0] == pytest.approx(wanted["scorer"]["VQ"][1], abs=1e-4)
    assert found[1] == pytest.approx(wanted["scorer"]["TA"][1], abs=1e-4)
    assert found[2] == pytest.approx(wanted["raw"][1][0], abs=1e-4)


def test_weights_are_freed_with_the_last_reward(golden, make):
    vq, ta = make("VQ", max_tokens=3, dtype="bfloat16"), make("TA", dtype="bfloat16")
    held = weakref.ref(vq.load()._model.load()[0])
    del vq
    gc.collect()
    assert held() is not None
    del ta
    gc.collect()
    assert held() is None


def test_native_sampling_is_the_reference_for_what_the_model_was_made_for(make):
    shared = make()._shared
    assert shared._chosen(81, 16.0, "native") == shared._chosen(81, 16.0, "reference")
    assert fitted_size(480, 832, 100352, shared.settings.most_pixels) == (336, 588)


def test_native_sampling_keeps_shape_and_rate(make):
    reward = make("VQ", sampling="native")
    reward._shared._answers.clear()
    seen = []
    backbone, _ = reward.load()._model.load()
    hook = backbone.visual.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["grid_thw"].tolist()), with_kwargs=True
    )
    pixels = torch.randint(0, 256, (1, 33, 3, 64, 40), dtype=torch.uint8)
    reward.score(pixels, ["a cat"], torch.tensor([11.0]))
    hook.remove()
    height, width = fitted_size(64, 40, 100352, 200704)
    assert height > width
    assert seen == [[[3, height // 14, width // 14]]]  # 33 / 11 · 2 = 6 frames, two to a patch


@pytest.mark.parametrize("sampling", ["reference", "native"])
def test_one_frame_is_a_video(make, make_batch, sampling):
    pixels = torch.zeros(1, 1, 3, 8, 8, dtype=torch.uint8)
    reward = make("MQ", sampling=sampling)
    assert reward(make_batch(pixels, [""]))["score", "videoalign_mq"].shape == (1, 1)


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize("sampling", ["reference", "native"])
def test_a_frame_rate_that_is_none_is_refused(make, make_batch, fps, sampling):
    pixels = torch.zeros(1, 5, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"Give frames per second, above 0"):
        make(sampling=sampling)(make_batch(pixels, ["a"], fps=fps))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "zscore"}, r"scale is 'zscore'\. Choose from: \('normalised', 'raw'\)"),
        ({"sampling": "all"}, r"sampling is 'all'\. Choose from: \('reference', 'native'\)"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"dtype": "half"}, "dtype is 'half'"),
    ],
)
def test_options_out_of_range_are_refused_before_weights_are_looked_for(options, message):
    with pytest.raises(ValueError, match=message):
        VideoAlignMQ(weights="/nowhere", **options)


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'grayscale'"):
        VideoAlignTA(grayscale=True)


@pytest.mark.usefixtures("offline")
def test_absent_weights_are_named_with_the_command_that_fetches_them(make, tmp_path):
    with pytest.raises(WeightsError) as caught:
        VideoAlignTA()
    for part in (
        "model_config.json and checkpoint-*/*.pth",
        "of KlingTeam/VideoReward) are not on this machine",
        "`hf download KlingTeam/VideoReward --include 'model_config.json'",
        "set weights=DIR",
    ):
        assert part in str(caught.value)
    with pytest.raises(WeightsError, match=r"checkpoint-11352/model\.pth of KlingTeam"):
        VideoAlignTA(weights="KlingTeam/VideoReward/checkpoint-11352/model.pth")
    with pytest.raises(WeightsError, match=r"has no model\.safetensors or model\.pth.*hf download"):
        make(weights=str(tmp_path))


def test_the_newest_checkpoint_of_a_folder_is_taken(make, folder, golden, tmp_path, expected):
    shutil.copytree(folder(1), tmp_path / "run")
    for number, outputs in ((4, 3), (200, 3)):
        (tmp_path / "run" / f"checkpoint-{number}").mkdir()
        weights = load_file(golden / f"videoalign_tiny_od{outputs}.safetensors")
        torch.save(weights, tmp_path / "run" / f"checkpoint-{number}" / "model.pth")
    reward = make(weights=str(tmp_path / "run"))
    assert [path.parent.name for path in reward._model.checkpoint.files.paths] == ["checkpoint-200"]
    assert reward._model.checkpoint.head.out_features == 3


def test_adapter_and_rest_in_two_files_are_read(make, golden, tmp_path, expected, videos):
    state = load_file(golden / "videoalign_tiny_od1.safetensors")
    adapter = {
        name.replace(".default", ""): state.pop(name) for name in list(state) if ".lora_" in name
    }
    save_file(adapter, tmp_path / "adapter_model.safetensors")
    torch.save(state, tmp_path / "non_lora_state_dict.pth")
    shutil.copy(golden / "videoalign_model_config_od1.json", tmp_path / "model_config.json")
    reward = make(weights=str(tmp_path))
    found = reward.raw_scores(videos[1][None], [expected["prompts"][1]], ONE)
    np.testing.assert_allclose(found[0], expected["od1"]["raw"][1], atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["data_config"].update(eval_dim=["VQ"]), "not VQ, MQ and TA"),
        (lambda c: c["data_config"].update(prompt_template_type="none"), "not VQ, MQ and TA"),
        (lambda c: c.pop("peft_lora_config"), "KeyError: 'peft_lora_config'"),
        (lambda c: c["inference_config"].pop("MQ_std"), "KeyError: 'MQ_std'"),
        (lambda c: c["inference_config"].update(MQ_std=0.0), "cannot normalise"),
    ],
)
def test_settings_of_another_model_are_refused(golden, tmp_path, change, message):
    settings = json.loads((golden / "videoalign_model_config_od1.json").read_text())
    change(settings)
    file = tmp_path / "model_config.json"
    file.write_text(json.dumps(settings))
    with pytest.raises(WeightsError, match=message):
        Settings.read(file)


def test_settings_are_those_of_the_file_or_the_published_ones(golden):
    found = Settings.read(golden / "videoalign_model_config_od1.json")
    assert found == Settings(lora=LoRA(4, 2.0))
    assert Settings.read(None).lora == LoRA(64, 2.0)


def test_the_published_checkpoint_fits_by_name_shape_and_count(
    make, golden, real, sparse_file, tmp_path
):
    def wrapped(shapes, outputs, width):
        shapes = shapes | {"rm_head.weight": (outputs, width)}
        return {f"base_model.model.{name}": shape for name, shape in shapes.items()}

    tiny_config = json.loads((golden / "tiny-base" / "config.json").read_text())
    for outputs in (1, 3):
        listed = json.loads((golden / f"videoalign_state_keys_od{outputs}.json").read_text())
        derived = wrapped(real("shapes", tiny_config, 377, 4), outputs, 64)
        assert derived == {name: tuple(shape) for name, (shape, _) in listed.items()}

    config = real("config", "2B")
    shapes = wrapped(real("shapes", config, 151660, 64), 1, 1536)
    assert len(shapes) == 1123
    assert sum(map(math.prod, shapes.values())) == 2_515_372_032
    published_bytes = 5_031_072_529  # two for each number, and some 300 of header for each tensor
    assert 250 < (published_bytes - 2 * 2_515_372_032) / 1123 < 350

    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(config))
    shutil.copy(golden / "tiny-base" / "tokenizer.json", base)
    settings = json.loads((golden / "videoalign_model_config_od1.json").read_text())
    settings["peft_lora_config"].update(lora_r=64, lora_alpha=128)
    sparse_file("VideoReward/checkpoint-11352/model.safetensors", shapes)
    (tmp_path / "VideoReward" / "model_config.json").write_text(json.dumps(settings))
    reward = make(weights=str(tmp_path / "VideoReward"), base=str(base))
    network = reward._model.checkpoint.backbone
    assert sum(value.numel() for value in network.parameters()) == 2_208_561_664
    assert {value.device.type for value in network.parameters()} == {"meta"}
    lora = [name for name in reward._model.checkpoint.shapes() if ".lora_" in name]
    assert len(lora) == 2 * 7 * 28


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantised_layers_score_nearly_alike(make, videos, quantization):
    pytest.importorskip("bitsandbytes")
    pixels = videos[1][None, :2]
    whole = make(sampling="native").raw_scores(pixels, ["a cat"], ONE)
    reward = make(sampling="native", quantization=quantization)
    found = reward.raw_scores(pixels, ["a cat"], ONE)
    assert 0 < (found - whole).abs().max() < 5
    backbone, head = reward._model.load()
    assert "bitsandbytes" in type(backbone.language_model.layers[1].mlp.up_proj).__module__
    assert type(backbone.visual.blocks[0].mlp.fc1) is torch.nn.Linear
    assert head.weight.dtype == torch.float32
