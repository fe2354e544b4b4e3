import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from astrolabe import session
from astrolabe.compose import compose
from astrolabe.load import load
from astrolabe_rollout.tiny import build_tiny, tiny_modules

#: What tests start in processes of their own; doctest would import it.
collect_ignore = ["scripts"]


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Overrides for a run of seconds, on the embedded model with random weights."""
    folder = tmp_path_factory.mktemp("random")
    for name, module in tiny_modules(build_tiny(seed=1, layers=2)).items():
        state = {key: value.clone() for key, value in module.state_dict().items()}
        save_file(state, folder / f"{name}.safetensors")
    return [
        f"model.options.path={str(folder)!r}",
        "model.options.layers=2",
        "lora.rank=2",
        "lora.alpha=2",
        "rollout.num_prompts=2",
        "rollout.group_size=2",
        "rollout.num_frames=6",
        "train.steps=3",
        "train.updates=1",
        "train.lr=1e-3",
        "train.micro_batch=2",
        "snapshots.old_decay=0.5",
        "evaluation.num_videos=2",
        "evaluation.batch_size=2",
        "logging.checkpoint_every=1",
    ]


@pytest.fixture
def small_run(small):
    return load(["tiny"], small)


@pytest.fixture
def parts(small_run):
    return compose(small_run)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def trained(small, tmp_path_factory):
    """A finished run of two steps with both checkpoints."""
    path = tmp_path_factory.mktemp("trained") / "run"
    changes = [
        *("train.steps=2", "logging.checkpoint_every=1", "logging.samples_every=0"),
        *("evaluation.num_videos=4", "evaluation.at_end=false", "evaluation.exact=true"),
        "evaluation.batch_size=1",
    ]
    assert session.start(load(["tiny"], [*small, *changes]), path) == 0
    return path


@pytest.fixture
def processes(tmp_path):
    """Run a script in several processes that torchrun joins; return what the first one prints."""

    def run(script, count, *arguments, **environment):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        done = subprocess.run(
            [*command, f"--nproc-per-node={count}", str(script), *map(str, arguments)],
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return run


@pytest.fixture(scope="session")
def save_small_wan():
    """Saves a transformer of Wan with few weights, as diffusers does, into a folder."""

    def save(folder):
        import torch
        from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

        torch.manual_seed(0)
        WanTransformer3DModel(
            num_attention_heads=1,
            attention_head_dim=128,
            ffn_dim=32,
            text_dim=8,
            freq_dim=16,
            num_layers=2,
        ).save_pretrained(folder)

    return save
