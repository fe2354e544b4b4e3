import json
import math
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from tensordict import TensorDict


def panned(name, height, width, step, num_frames=17):
    """A photograph that slides by under the camera, uint8 [F, 3, H, W]."""
    picture = getattr(skimage.data, name)()[..., :3]
    room = (height + 0.4 * num_frames * step + 4, width + num_frames * step + 4)
    scale = max(room[0] / picture.shape[0], room[1] / picture.shape[1])
    picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    frames = [
        cv2.warpAffine(
            picture,
            np.array([[1, 0, -step * t], [0, 1, -0.4 * step * t]], np.float32),
            (width, height),
            flags=cv2.INTER_CUBIC,
        )
        for t in range(num_frames)
    ]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(
    scope="session",
    params=[
        ("astronaut", 48, 48, 1.5),
        ("coffee", 48, 48, 1.5),
        ("chelsea", 48, 48, 0.8),
        ("astronaut", 160, 240, 4.0),
    ],
    ids=lambda param: f"{param[0]}-{param[1]}x{param[2]}",
)
def real_video(request):
    return panned(*request.param)


def _as_video(frames):
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()


def blurred(video, sigma=1.5):
    frames = video.permute(0, 2, 3, 1).contiguous().numpy()
    return _as_video([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in frames])


def noisy(video, sigma=12):
    noise = np.random.default_rng(0).normal(0, sigma, tuple(video.shape))
    return torch.from_numpy((video.numpy() + noise).round().clip(0, 255).astype(np.uint8))


def flickering(video):
    gain = 1 + 0.12 * torch.where(torch.arange(len(video)) % 2 == 0, 1.0, -1.0)
    return (video * gain[:, None, None, None]).round().clamp(0, 255).to(torch.uint8)


def shuffled(video):
    return video[torch.randperm(len(video), generator=torch.Generator().manual_seed(0))]


def frozen(video):
    return video[len(video) // 2].expand_as(video).contiguous()


def shaken(video):
    moves = np.random.default_rng(0).integers(-1, 2, (len(video), 2))
    return torch.stack(
        [torch.roll(f, (int(a), int(b)), (1, 2)) for f, (a, b) in zip(video, moves, strict=True)]
    )


def wobbling(video, amount=1.0):
    rng = np.random.default_rng(0)
    height, width = video.shape[-2:]
    across, down = np.meshgrid(
        np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    )
    frames = []
    for frame in video.permute(0, 2, 3, 1).contiguous().numpy():
        bend = rng.normal(0, amount, (6, 6, 2)).astype(np.float32)
        bend = cv2.resize(bend, (width, height), interpolation=cv2.INTER_CUBIC)
        frames.append(
            cv2.remap(
                frame,
                across + bend[..., 0],
                down + bend[..., 1],
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
        )
    return _as_video(frames)


@pytest.fixture(scope="session")
def spoil():
    """Spoil a video in a named way: spoil("noisy", video)."""
    kinds = (blurred, noisy, flickering, shuffled, frozen, shaken, wobbling)
    return lambda kind, *args: {function.__name__: function for function in kinds}[kind](*args)


@pytest.fixture
def make_batch():
    """Pixels and texts as the batch that rewards read."""

    def build(pixels, texts=None, fps=16.0):
        shape = pixels.shape[:-4]
        batch = TensorDict(
            {"video": {"pixels": pixels, "fps": torch.full(shape, fps)}}, batch_size=shape
        )
        if texts is not None:
            batch.set(("prompt", "text"), texts)
        return batch

    return build


@pytest.fixture(scope="session")
def golden():
    """The folder of golden numbers; tests/golden/README.md says where they came from."""
    return Path(__file__).parents[1] / "golden" / "rewards"


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """A machine without a network, whose hub cache is empty."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


#: What Qwen2-VL-2B-Instruct and Qwen2-VL-7B-Instruct say in config.json, as far as it counts here.
QWEN = {
    "2B": {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28},
}


def qwen_config(size):
    text = QWEN[size]
    return text | {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "hidden_act": "silu",
        "num_hidden_layers": 28,
        "num_key_value_heads": {"2B": 2, "7B": 4}[size],
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "max_position_embeddings": 32768,
        "tie_word_embeddings": size == "2B",
        "vocab_size": {"2B": 151936, "7B": 152064}[size],
        "image_token_id": 151655,
        "video_token_id": 151656,
        "torch_dtype": "bfloat16",
        "vision_config": {
            "depth": 32,
            "embed_dim": 1280,
            "hidden_size": text["hidden_size"],
            "in_chans": 3,
            "mlp_ratio": 4,
            "model_type": "qwen2_vl",
            "num_heads": 16,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
    }


def published_shapes(config, rows, lora_rank=None):
    """Names and shapes of a Qwen2-VL as transformers 4.45 wrote them, derived from its sizes."""
    width, mlp = config["hidden_size"], config["intermediate_size"]
    cross = width // config["num_attention_heads"] * config["num_key_value_heads"]
    vision = config["vision_config"]
    eye, deep = vision["embed_dim"], vision["embed_dim"] * vision["mlp_ratio"]
    shapes = {"visual.patch_embed.proj.weight": (eye, 3, 2, 14, 14)}
    shapes |= {f"visual.merger.ln_q.{kind}": (eye,) for kind in ("weight", "bias")}
    for name, out, into in (("0", 4 * eye, 4 * eye), ("2", width, 4 * eye)):
        shapes[f"visual.merger.mlp.{name}.weight"] = (out, into)
        shapes[f"visual.merger.mlp.{name}.bias"] = (out,)
    for i in range(vision["depth"]):
        block = f"visual.blocks.{i}"
        for name, out, into in (
            ("attn.qkv", 3 * eye, eye),
            ("attn.proj", eye, eye),
            ("mlp.fc1", deep, eye),
            ("mlp.fc2", eye, deep),
        ):
            shapes[f"{block}.{name}.weight"] = (out, into)
            shapes[f"{block}.{name}.bias"] = (out,)
        for name in ("norm1", "norm2"):
            shapes |= {f"{block}.{name}.{kind}": (eye,) for kind in ("weight", "bias")}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for name, out, into in (
            ("self_attn.q_proj", width, width),
            ("self_attn.k_proj", cross, width),
            ("self_attn.v_proj", cross, width),
            ("self_attn.o_proj", width, width),
            ("mlp.gate_proj", mlp, width),
            ("mlp.up_proj", mlp, width),
            ("mlp.down_proj", width, mlp),
        ):
            inner = "" if lora_rank is None else ".base_layer"
            shapes[f"{layer}.{name}{inner}.weight"] = (out, into)
            if name[-6:] in ("q_proj", "k_proj", "v_proj"):
                shapes[f"{layer}.{name}{inner}.bias"] = (out,)
            if lora_rank is not None:
                shapes[f"{layer}.{name}.lora_A.default.weight"] = (lora_rank, into)
                shapes[f"{layer}.{name}.lora_B.default.weight"] = (out, lora_rank)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}.{name}.weight"] = (width,)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        shapes[name] = (rows, width)
    return shapes | {"model.norm.weight": (width,)}


@pytest.fixture(scope="session")
def real():
    """Sizes of the published checkpoints: real("config", "2B"), real("shapes", config, rows)."""
    makers = {"config": qwen_config, "shapes": published_shapes}
    return lambda kind, *args: makers[kind](*args)


@pytest.fixture
def sparse_file(tmp_path):
    """A safetensors file with a true header and nothing in it: real sizes at no cost."""

    def make(name, shapes, dtypes=("BF16", 2)):
        header, end = {}, 0
        for key, shape in shapes.items():
            size = math.prod(shape) * dtypes[1]
            header[key] = {"dtype": dtypes[0], "shape": shape, "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header).encode()
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)
        return path

    return make
