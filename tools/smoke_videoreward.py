"""Score a clip once with a VideoReward of real size and random weights, on the CPU in bf16.

    uv run python tools/smoke_videoreward.py --out /tmp/smoke

Writes a checkpoint with the published names and shapes (5 GB), LoRA layers and all, loads it
as the reward does, merges, and scores one clip of 81 frames in colour and in grey. Tells seconds
and peak memory of each part. It shows that sizes and names fit and what they cost; the scores mean
nothing. The tokenizer is the small one of the tests.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from smoke_wan import measured
from tensordict import TensorDict
from transformers import Qwen2VLConfig, Qwen2VLModel

from astrolabe_rewards.videoalign import VideoAlignMQ, VideoAlignTA

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "rewards"
ROWS, RANK = 151_660, 64
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CONFIG = {
    "model_type": "qwen2_vl",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "vocab_size": ROWS,
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "hidden_size": 1536,
        "mlp_ratio": 4,
        "model_type": "qwen2_vl",
        "num_heads": 16,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}


def published(shapes: dict[str, torch.Size]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes as a checkpoint of VideoReward has them, from those of the network."""
    yield "rm_head.weight", (1, CONFIG["hidden_size"])
    yield "lm_head.weight", (ROWS, CONFIG["hidden_size"])
    for name, shape in shapes.items():
        layer, _, kind = name.rpartition(".")
        if layer.startswith("language_model.") and layer.endswith(ADAPTED):
            yield f"model.{layer}.base_layer.{kind}", tuple(shape)
            if kind == "weight":
                yield f"model.{layer}.lora_A.default.weight", (RANK, shape[1])
                yield f"model.{layer}.lora_B.default.weight", (shape[0], RANK)
        else:
            yield f"model.{name}", tuple(shape)


def write_files(out: Path) -> None:
    """Write the checkpoint and the base folder."""
    with torch.device("meta"):
        network = Qwen2VLModel(Qwen2VLConfig(**CONFIG))
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in published(shapes):
        spread = 0.02 * torch.randn(shape, generator=generator)
        centre = float("norm" in name and name.endswith("weight"))
        state[f"base_model.model.{name}"] = (spread + centre).to(torch.bfloat16)
    count = sum(value.numel() for value in state.values())
    print(f"{len(state)} tensors, {count / 1e9:.3f} B numbers", flush=True)
    folder = out / "VideoReward" / "checkpoint-11352"
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors")
    settings = json.loads((GOLDEN / "videoalign_model_config_od1.json").read_text())
    settings["peft_lora_config"].update(lora_r=RANK, lora_alpha=2 * RANK)
    (out / "VideoReward" / "model_config.json").write_text(json.dumps(settings))
    (out / "base").mkdir()
    tokenizer = GOLDEN / "tiny-base" / "tokenizer.json"
    shutil.copy(tokenizer, out / "base")
    added = json.loads(tokenizer.read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in added}
    slots = {f"{kind}_token_id": ids[f"<|{kind}_pad|>"] for kind in ("image", "video")}
    (out / "base" / "config.json").write_text(json.dumps(CONFIG | slots))


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder, removed at the end")
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True)
    try:
        with measured("write the checkpoint"):
            write_files(out)
        where = {"weights": str(out / "VideoReward"), "base": str(out / "base"), "device": "cpu"}
        with measured("find and check"):
            colour, grey = VideoAlignTA(**where), VideoAlignMQ(**where)
        with measured("load and merge"):
            colour.load()
        pixels = torch.randint(
            0,
            256,
            (1, 81, 3, 480, 832),
            dtype=torch.uint8,
            generator=torch.Generator().manual_seed(0),
        )
        batch = TensorDict({"video": {"pixels": pixels, "fps": torch.ones(1) * 16}}, batch_size=[1])
        batch["prompt", "text"] = ["a red ball rolls to the left"]
        for name, reward in (("colour (TA, VQ)", colour), ("grey (MQ)", grey)):
            with measured(f"score in {name}"):
                scored = reward(batch)
        print({name: float(value) for name, value in scored["score"].items()})
    finally:
        shutil.rmtree(out)


if __name__ == "__main__":
    main()
