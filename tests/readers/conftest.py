"""All that reads a file which others may have made or damaged, each with a good one."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from astrolabe import (
    checkpoint_files,
    jobs,
    metrics_file,
    rank_log,
    state_files,
    trackers,
    tracking,
    video_list,
    watch_data,
    watch_metrics,
)
from astrolabe.generation import read_scripts
from astrolabe.load import from_json, load
from astrolabe.run_folder import RunFolder
from astrolabe.run_lock import RunLock
from astrolabe_eval import (
    SuiteFolder,
    load_suite,
    read_mp4,
    read_results,
    read_vbench_prompts,
    read_votes,
    script_suite,
    write_mp4,
)
from astrolabe_eval.scoring import Evaluation
from astrolabe_eval.suites import Suite
from astrolabe_eval.vbench_environment import _full_info
from astrolabe_eval.vbench_run import _collect
from astrolabe_rewards import video_file, weights
from astrolabe_rewards.matcher import load_matcher
from astrolabe_rewards.model_folder import ModelFolder
from astrolabe_rewards.pictures import Pictures
from astrolabe_rewards.qwen_prompt import PromptEncoder, load_template
from astrolabe_rewards.qwen_weights import _config as qwen_config
from astrolabe_rewards.videoalign_files import Settings
from astrolabe_rollout import wan_components
from astrolabe_rollout.checkpoints import load_checkpoint, read_config
from astrolabe_rollout.lora_files import read_lora
from astrolabe_rollout.prompts import read_prompt_table, read_prompts
from astrolabe_rollout.tiny import load_tiny

ROOT = Path(__file__).parents[2]
LORA = {f"blocks.0.attn1.to_q.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
TENSORS = {"a": torch.ones(2, 3), "b": torch.zeros(2)}
STEPS = '{"step": 1, "reward/total": 0.5}\n{"step": 2, "reward/total": null}\n'
GOOD = json.loads(Path(__file__).with_name("good.json").read_text())
PEFT, VBENCH, PLAN, KEY, VOTES, IMAGES, ALIGN, MADE = GOOD.values()


@dataclass(frozen=True)
class Reader:
    """What reads the file ``name`` of a folder.

    ``good`` is its content or writes it, ``read`` gets the path; else ``refused`` in these words.
    """

    name: str
    good: object
    read: object
    refused: str = ""


def torch_file(tensors, **options):
    return lambda path: torch.save(tensors, path, **options)


def safetensors(tensors, **metadata):
    return lambda path: save_file(tensors, path, metadata)


def beside(name, content):
    """Write another file of the same folder before the reader's own."""

    def write(path, own):
        (path.parent / name).write_text(json.dumps(content))
        path.write_text(json.dumps(own))

    return write


def suite_folder(path):
    suite = Suite("s", ("a cat",), (3,))
    top = path.parent if path.name == "manifest.json" else path.parents[1]
    made = SuiteFolder(top, suite, fps=8, protocol={"model": "m"})
    frames = np.full((3, 3, 16, 16), 99, dtype=np.uint8)
    made.put(0, frames, Evaluation(suite=suite, rewards={"total": np.ones(1)}))


def checkpoint(path):
    step = next(part for part in path.parents if part.name == "step-000001")
    part = step.with_name("part")
    state_files.write_tensors(part, {"reward/a": torch.ones(3)}, None)
    state_files.write_rest(part, '{"step": 1, "reward": {}}')
    checkpoint_files.publish(part, step, 1.0)


def checkpoint_of(path):
    found = next(part for part in path.parents if part.name == "step-000001")
    checkpoint_files.damage(found)
    checkpoint_files.reward_of(found)
    state_files.read_state(found)


def run_folder(path):
    folder = RunFolder(path.parent)
    folder.begin(load(["tiny"]))
    folder.metrics.write_text(STEPS)


def sample_index(path):
    run_folder(path.parent.parent.parent / "config.json")
    write_mp4(path.parent / "0.mp4", np.zeros((2, 3, 16, 16), np.uint8), 8)
    path.write_text('{"step": 1, "videos": [{"file": "0.mp4", "prompt": "a", "scores": {"r": 1}}]}')


def watched(path):
    """The settings of a run, as the page shows them."""
    watch_data.find_runs(path.parent)
    watch_data.describe(path.parent)
    watch_data.summarise(path.parent)


def metrics(path):
    watch_metrics.read_piece(path)
    watch_metrics.last_entry(path)
    tracking.read_curves(RunFolder(path.parent))
    metrics_file.go_on_after(path, 1)


def video(path):
    write_mp4(path, np.arange(3 * 3 * 16 * 16, dtype=np.uint8).reshape(3, 3, 16, 16), 8)


def picture(path):
    import av

    frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
    with av.open(path, "w", format="image2") as container:
        stream = container.add_stream("png", width=16, height=16)
        stream.pix_fmt = "rgb24"
        container.mux([*stream.encode(frame), *stream.encode(None)])


def tiny(path):
    shipped = ROOT / "packages/astrolabe-rollout/src/astrolabe_rollout/tiny_weights"
    for file in shipped.glob("*.safetensors"):
        shutil.copy(file, path.parent)


def tensors_of(path):
    files = weights.TensorFiles([path])
    with files.opened() as read:
        for name in files.shapes:
            read(name)
    weights.digest([path])


def described(path):
    published = type("P", (), {})  # only what ModelFolder asks of a model that is on this machine
    folder = ModelFolder.__new__(ModelFolder)
    folder._asker, folder._folder = "clip", path.parent
    folder._wanted = published()
    folder._wanted.inside = lambda place, name: place / name
    folder.config("clip")


READERS = {
    "recipe": Reader("a.toml", "[train]\nsteps = 2\n", lambda p: load(["tiny", str(p)])),
    "settings of a run": Reader("config.json", run_folder, from_json),
    "settings that are watched": Reader("config.json", run_folder, watched),
    "index of samples": Reader(
        "samples/step-000001/index.json",
        sample_index,
        lambda p: watch_data.read_samples(p.parents[2], 1),
    ),
    "metrics": Reader("metrics.jsonl", run_folder, metrics),
    "log": Reader(
        "rank-000.jsonl",
        '{"time": 0, "step": 1, "phase": "", "level": "", "logger": "", "message": ""}\n',
        lambda p: rank_log.read_tail(p, 5),
    ),
    "runs of trackers": Reader(
        "trackers.json", '{"wandb": "a"}', lambda p: trackers.known_runs(p.parent)
    ),
    "lock": Reader(
        ".lock",
        '{"pid": 1, "host": "a", "since": "b"}',
        lambda p: RunLock(p.parent, str)._refusal(p.read_bytes() if p.is_file() else b""),
    ),
    "manifest of videos": Reader(
        "manifest.jsonl",
        json.dumps(MADE) + "\n",
        lambda p: video_list.find_prompts([p.parent / "a.mp4", p], [], None),
    ),
    "table of videos": Reader("a.csv", "path,prompt\na.mp4,a cat\n", video_list.read_table),
    "digest": Reader("a", "content", jobs.digest),
    "manifest of a checkpoint": Reader("step-000001/manifest.json", checkpoint, checkpoint_of),
    "state": Reader("step-000001/state.json", checkpoint, checkpoint_of),
    "tensors of a state": Reader(
        "step-000001/tensors/shard-00001-model-00001-of-00001.safetensors",
        checkpoint,
        checkpoint_of,
    ),
    "interactive scripts": Reader(
        "a.jsonl", '{"prompts": ["a", "b"]}\n', lambda p: read_scripts([], p, [40])
    ),
    **{
        f"prompts{ending}": Reader(f"a{ending}", content, read)
        for ending, content, read in (
            (".txt", "a cat[2s] | a dog\n", lambda p: read_scripts([], p, [])),
            (".csv", 'prompt,kind\n"a, b",1\n', read_prompts),
            (".tsv", "prompt\tkind\na\t1\n", read_prompts),
            (".json", '[{"prompt": "a", "b": {"c": [1]}}, "d"]', read_prompt_table),
            (".jsonl", '{"prompt": "a"}\n"b"\n', read_prompt_table),
        )
    },
    "weights.pt": Reader("a.pt", torch_file({"model": TENSORS}), load_checkpoint),
    "old weights.pt": Reader(
        "a.pt", torch_file(TENSORS, _use_new_zipfile_serialization=False), load_checkpoint
    ),
    "weights.safetensors": Reader("a.safetensors", safetensors(TENSORS), load_checkpoint),
    "index of shards": Reader(
        "m.index.json",
        lambda p: (
            save_file(TENSORS, p.parent / "s.safetensors"),
            p.write_text('{"weight_map": {"a": "s.safetensors"}}'),
        ),
        lambda p: load_checkpoint(p.parent),
    ),
    "configuration": Reader(
        "config.json", '{"_class_name": "WanTransformer3DModel"}', lambda p: read_config(p.parent)
    ),
    "scheduler": Reader(
        "scheduler/scheduler_config.json",
        '{"prediction_type": "flow_prediction"}',
        lambda p: read_config(p.parents[1]),
    ),
    "part of a model": Reader(
        "vae/config.json", '{"z_dim": 16}', lambda p: wan_components._config(p.parent)
    ),
    "lora.pt": Reader("a.pt", torch_file(LORA | {"alpha": 2}), read_lora),
    "lora.safetensors": Reader("a.safetensors", safetensors(LORA, lora_alpha="4"), read_lora),
    "lora of a folder": Reader(
        "pytorch_lora_weights.safetensors", safetensors(LORA, r="2"), lambda p: read_lora(p.parent)
    ),
    "settings of a lora": Reader(
        "adapter_config.json",
        lambda p: (
            save_file(LORA, p.parent / "adapter_model.safetensors"),
            p.write_text(json.dumps(PEFT)),
        ),
        lambda p: read_lora(p.parent),
    ),
    "embedded model": Reader("transformer.safetensors", tiny, lambda p: load_tiny(p.parent)),
    "suite": Reader("a.txt", "a cat\na dog\n", load_suite),
    "scripts": Reader("a.txt", "a cat [2s] | b\n", script_suite),
    "list of VBench": Reader("V.json", json.dumps(PLAN), read_vbench_prompts),
    "installed list of VBench": Reader(
        "VBench_full_info.json", json.dumps(PLAN), lambda p: _full_info([p.parent])
    ),
    "results of VBench": Reader("a_eval_results.json", json.dumps(VBENCH), read_results),
    "flat results": Reader("a.json", '{"Scene": "50%", "color": 0.5}', read_results),
    "folder of results": Reader(
        "m/a_eval_results.json", json.dumps(VBENCH), lambda p: read_results(p.parents[1])
    ),
    "plan of VBench": Reader(
        "a_full_info.json",
        lambda p: beside("r.json", VBENCH)(p, PLAN),
        lambda p: _collect(p.parent / "r.json", p, "standard"),
    ),
    "key of votes": Reader(
        "key.json",
        lambda p: beside("votes.json", VOTES)(p, KEY),
        lambda p: read_votes(p.parent / "votes.json", p),
    ),
    "votes": Reader(
        "votes.json",
        lambda p: beside("key.json", KEY)(p, VOTES),
        lambda p: read_votes(p, p.parent / "key.json"),
    ),
    "manifest of an evaluation": Reader(
        "manifest.json", suite_folder, lambda p: SuiteFolder.open(p.parent).evaluation()
    ),
    "manifest that is gone on with": Reader(
        "manifest.json",
        suite_folder,
        lambda p: SuiteFolder(
            p.parent, Suite("s", ("a cat",), (3,)), fps=8, protocol={"model": "m"}
        ),
    ),
    "scores of a video": Reader(
        "scores/000000.json",
        suite_folder,
        lambda p: SuiteFolder.open(p.parents[1]).evaluation(),
    ),
    "video of an evaluation": Reader(
        "videos/000000.mp4",
        suite_folder,
        lambda p: SuiteFolder.open(p.parents[1]).evaluation().videos[0],
    ),
    "video": Reader("a.mp4", video, read_mp4),
    "video to score": Reader("a.mp4", video, video_file.read_video),
    "picture": Reader("a.png", picture, read_mp4),
    "picture to score": Reader("a.png", picture, video_file.read_video),
    "tensors.pt": Reader("a.pth", torch_file(TENSORS), tensors_of),
    "tensors.safetensors": Reader("a.safetensors", safetensors(TENSORS), tensors_of),
    "matcher": Reader(
        "a.safetensors",
        lambda p: shutil.copy(
            ROOT / "packages/astrolabe-rewards/src/astrolabe_rewards/weights/tiny_ta.safetensors", p
        ),
        load_matcher,
    ),
    "pictures": Reader("preprocessor_config.json", json.dumps(IMAGES), Pictures.read),
    "settings of VideoReward": Reader("model_config.json", json.dumps(ALIGN), Settings.read),
    "model of transformers": Reader("config.json", '{"model_type": "clip"}', described),
    "model of Qwen": Reader(
        "config.json", '{"model_type": "qwen2_vl"}', lambda p: qwen_config(p, 9)
    ),
    "tokenizer of Qwen": Reader(
        "tokenizer.json",
        '{"added_tokens": [{"content": "a", "id": 0}], "model": {"type": "WordLevel"}}',
        lambda p: PromptEncoder(p, load_template("videoreward")),
        "is no tokenizer of Qwen2-VL",
    ),
}


def pytest_generate_tests(metafunc):
    if "reader" in metafunc.fixturenames:
        metafunc.parametrize("reader", READERS.values(), ids=READERS)


@pytest.fixture
def readers():
    return READERS
