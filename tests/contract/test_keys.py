"""The packages agree on the entries of a batch, and a real batch has them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from astrolabe.keys_table import PACKAGES, put_table

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def every_text():
    for package, tables in PACKAGES.items():
        for direction, table in zip(("reads", "writes"), tables, strict=True):
            for key, text in table.items():
                yield package, direction, key, text


def test_packages_that_name_the_same_entry_give_it_the_same_text():
    texts = {}
    for package, _, key, text in every_text():
        first = texts.setdefault(key, (package, text))
        assert first[1] == text, f"{first[0]} and {package} disagree about {key}"


def test_every_entry_that_is_read_has_a_writer():
    writes = {key for _, direction, key, _ in every_text() if direction == "writes"}
    reads = {key for _, direction, key, _ in every_text() if direction == "reads"}
    assert reads <= writes


@pytest.mark.parametrize(("package", "direction", "key", "text"), list(every_text()))
def test_every_text_starts_with_type_and_shape(package, direction, key, text):
    assert re.match(r"(str|dict|bool|int64|uint8|float16|float32) \[[^\]]*\] \S", text)


def test_the_readme_shows_the_present_table():
    text = README.read_text()
    assert put_table(text) == text, "run: uv run python tools/key_table.py"


@pytest.fixture(scope="session")
def batch():
    """One step of the real loop on the real model: every package has written its entries."""
    from astrolabe_objectives import (
        CMGRPOLoss,
        DPOLoss,
        GroupAdvantage,
        NFTLoss,
        RankDisagreement,
        RWRLoss,
        Snapshots,
    )
    from astrolabe_rewards import CompositeReward, FlowMQ, Monitors, SharpnessVQ
    from astrolabe_rollout import (
        Denoiser,
        PromptEnv,
        StreamingPolicy,
        add_lora,
        make_collector,
        trainable_parameters,
    )
    from astrolabe_rollout.tiny import build_tiny

    model = build_tiny().freeze()
    add_lora(model.transformer.network, rank=2, alpha=2)
    snapshots = Snapshots(trainable_parameters(model.transformer.network), "old", "reference")
    rows = [{"prompt": "a red circle spins", "count": 1}, {"prompt": "a blue square", "count": 1}]
    env = PromptEnv(rows, model, group_size=2)
    policy = StreamingPolicy(model, 3, record=True, overview=5)
    (batch,) = make_collector(env, policy, 1)
    rewards = {"sharpness_vq": (SharpnessVQ(), 1.0), "flow_mq": (FlowMQ(), 1.0)}
    Monitors()(CompositeReward(rewards)(batch))
    GroupAdvantage()(batch)
    RankDisagreement("sharpness_vq", ["flow_mq"])(batch)
    losses = TensorDict()
    for other in (RWRLoss, DPOLoss, CMGRPOLoss):
        losses.update(other(Denoiser(model, 3), snapshots, model.sigmas)(batch))
    loss = NFTLoss(Denoiser(model, 3), snapshots, model.sigmas)
    batch["noisy", "seed"] = torch.arange(4).view(4, 1)  # as the app's loop does
    noised = loss.noise(batch)
    batch.update(noised.reshape(batch.batch_size))
    batch.update(Denoiser(model, 3)(noised).reshape(batch.batch_size))
    return batch, losses.update(loss(batch))


LETTERS = {
    "F": 9,
    "f": 3,
    "C": 16,
    "H": 48,
    "W": 48,
    "h": 6,
    "w": 6,
    "c": 6,
    "L": 12,
    "D": 96,
    "K": 4,
    "P": 768,
    "O": 5,
}


@pytest.mark.parametrize(
    ("key", "text"), sorted({(key, text) for _, _, key, text in every_text()}, key=str)
)
def test_a_real_batch_has_what_the_texts_say(batch, key, text):
    data, losses = batch
    dtype, shape = re.match(r"(\w+) \[([^\]]*)\]", text).groups()
    if key[-1] == "*":
        values = list(data[key[:-1]].values())
        assert values
    elif isinstance(key, str) and "*B" not in shape:
        values = [losses[key]]
    else:
        values = [data[key]]
    for value in values:
        if dtype in ("str", "dict"):
            assert [[type(one).__name__ for one in row] for row in value] == [[dtype]] * 4
            continue
        sizes = [name.strip() for name in shape.split(",") if name.strip()]
        expected = []
        for name in sizes:
            expected += [4, 1] if name == "*B" else [LETTERS.get(name) or int(name)]
        assert list(value.shape) == expected
        assert value.dtype == getattr(torch, dtype)


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("astrolabe.cli", {"torch", "torchrl", "diffusers", "transformers", "cv2", "matplotlib"}),
        ("astrolabe_rollout", {"torch", "torchrl", "diffusers"}),
        ("astrolabe_rewards", {"torchrl", "diffusers", "cv2", "skimage"}),
        ("astrolabe_eval", {"torch", "torchrl", "diffusers", "matplotlib", "av"}),
    ],
)
def test_imports_stay_light(module, heavy):
    code = f"import {module}, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not heavy & set(loaded.stdout.split())
