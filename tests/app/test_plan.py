"""What a run needs, found without weights, GPU and network."""

import json
import socket
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from astrolabe import plan_passes
from astrolabe.cli import main
from astrolabe.errors import ConfigError
from astrolabe.load import load
from astrolabe.plan import Question, answer, plan, warnings
from astrolabe.plan_fit import choices, fits, way_out
from astrolabe.plan_memory import GIB, phases, standing
from astrolabe.plan_model import blueprint
from astrolabe.plan_needs import Needs
from astrolabe.plan_rewards import reward_needs, weights_from
from astrolabe.plan_time import CARDS, Work, around
from astrolabe.plan_view import show
from astrolabe.plan_work import average_start, step_work
from astrolabe.registry import find, names
from astrolabe_rollout import rope

MIB = 2**20
#: A model of the Wan family with few, small pictures, which is traced at once.
SMALL = [
    "model.options.height=32",
    "model.options.width=32",
    "rollout.num_frames=3",
    "rollout.num_prompts=2",
    "rollout.group_size=4",
    "rollout.batch_size=1",
    "train.micro_batch=1",
    "lora.rank=8",
    "lora.alpha=8",
]


def small(*changes):
    return load(["self_forcing_multi"], [*SMALL, *changes])


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """What a run needs, and a plan for a card that is too small, without network and weights."""

    def refuse(*_, **__):
        raise AssertionError("the network was used")

    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setenv("HF_HOME", str(home))
        needs = Needs(small())
        made = answer(Question(["self_forcing_multi"], SMALL, memory=36.0), needs)
    assert list(home.iterdir()) == []
    return needs, made


@pytest.fixture(scope="module")
def needs(planned):
    return planned[0]


@pytest.fixture(scope="module")
def made(planned):
    return planned[1]


def total(needs, name):
    return next(phase.total for phase in phases(needs) if phase.name == name)


def test_keys_and_values_and_numbers_are_those_of_the_published_models():
    big = Needs(load(["self_forcing_multi"])).sizes
    assert big.frame == 2 * 30 * 1560 * 1536 * 2 == pytest.approx(274.2 * MIB, rel=1e-4)
    assert big.parameters == 1_418_996_800
    assert big.trained == pytest.approx(350e6, rel=1e-3)
    krea = Needs(load(["krea_14b_multi"])).sizes
    assert krea.parameters == pytest.approx(14.29e9, rel=1e-3)
    assert krea.trained == pytest.approx(1.23e9, rel=1e-2)
    assert 21 * krea.frame == pytest.approx(26.8e9, rel=1e-2)


def test_what_is_there_all_the_time_adds_up(needs):
    sizes, there = needs.sizes, standing(needs)
    assert there["base"] == sizes.base
    assert there["text encoder"] == pytest.approx(10.6 * GIB, rel=0.01)
    of_adapter = ("adapter", "snapshots", "AdamW moments")
    assert sum(there[name] for name in of_adapter) == (4 + 8 + 8) * sizes.trained
    update = next(phase.parts for phase in phases(needs) if phase.name == "update")
    assert update["gradients so far"] == (8 + 4) * sizes.trained
    assert update["gradients and activations"] > 4 * sizes.trained  # those of a backward pass
    behind = standing(needs.of(small("rollout.lag=1")))
    assert behind["snapshots"] == 3 * 4 * sizes.trained
    # The three scores of VideoAlign share one copy.
    rewards = [name for name in there if name.startswith("reward ")]
    assert rewards == ["reward hpsv3", "reward videoalign"]


@pytest.mark.slow
def test_two_small_networks_tell_what_a_large_one_takes(monkeypatch):
    run = small()
    model = replace(blueprint(run.model), layers=7)

    def figures():
        return (plan_passes.learning(run, model, 1), plan_passes.sampling(run, model, 1))

    told = figures()
    monkeypatch.setattr(plan_passes, "MORE", 4)  # then seven blocks are traced as they are
    for some, all_ in zip(told, figures(), strict=True):
        for name, value in vars(all_).items():
            # Rotations of positions are kept from trace to trace.
            assert getattr(some, name) == pytest.approx(value, rel=5e-3), name


@pytest.mark.slow
def test_two_windows_and_three_tell_what_five_take(needs):
    run = replace(needs.run, train=replace(needs.run.train, micro_batch=5))
    told = needs.of(run).learned()
    assert told.peak == pytest.approx(plan_passes.learning(run, needs.model, 5).peak, rel=5e-3)


@pytest.mark.parametrize(
    ("change", "phase"),
    [
        ("train.micro_batch=2", "update"),
        ("train.gradient_checkpointing=false", "update"),
        pytest.param("rollout.num_frames=6", "update", marks=pytest.mark.slow),
        ("lora.rank=16", "update"),
        ("rollout.batch_size=4", "sample"),
        ("rollout.batch_size=4", "decode"),
        ("rewards.hpsv3.options.dtype='float32'", "score"),
    ],
)
def test_more_work_takes_more_memory(needs, change, phase):
    more = needs.of(small(change))
    assert total(more, phase) > total(needs, phase)


def test_sharding_divides_the_base_and_gathers_two_blocks(needs):
    run = small("distributed.base=sharded")
    eight = Needs(run, 8)
    eight._found = needs._found
    whole, parts = eight.sizes, standing(eight)
    assert parts["base"] == whole.base // 8
    assert parts["gathered blocks"] == 2 * whole.block
    assert parts["adapter"] == 4 * whole.trained
    both = replace(run, distributed=replace(run.distributed, lora="sharded"))
    assert standing(eight.of(both))["adapter"] == 4 * (whole.trained // 8)
    update = next(phase.parts for phase in phases(eight.of(both)) if phase.name == "update")
    assert update["gradients so far"] == (8 + 4) * (whole.trained // 8)
    halves = replace(run, distributed=replace(run.distributed, shard_ranks=2))
    assert standing(eight.of(halves))["base"] == whole.base // 2


@pytest.mark.slow
def test_a_history_is_made_once_for_a_group(needs):
    shared = needs.of(small("rollout.length=9", "rollout.start=last", "rollout.batch_size=2"))
    apart = needs.of(small("rollout.windows=2", "rollout.commit=each", "rollout.batch_size=2"))
    assert (shared.run.rollout.shared, apart.run.rollout.shared) == (True, False)
    frame, tokens = shared.sizes.frame, 512
    prompt = 2 * 30 * tokens * 1536 * 2 + tokens * 4096 * 2  # keys, values and the prompt itself
    # One cache of 21 frames and two windows of 3, against two caches.
    assert shared.sampled().held - 3 * prompt == pytest.approx((21 + 2 * 3) * frame, rel=0.05)
    assert apart.sampled().held - 2 * prompt == pytest.approx(2 * 21 * frame, rel=0.05)


def test_average_start_follows_the_schedule():
    def start(*changes):
        return average_start(load(["tiny"], list(changes)).rollout)

    assert start() == 0
    assert start("rollout.length=5", "rollout.start=last") == 4
    assert start("rollout.curriculum=[[0, 1], [5, 11]]", "rollout.start=uniform") == 5
    assert start("rollout.length=9", "rollout.start=choice", "rollout.starts=[0, 4]") == 2


@pytest.mark.slow
def test_sampling_computes_more_with_windows_and_with_their_history(needs):
    def flops(*changes):
        return step_work(needs.of(small("rollout.batch_size=2", *changes)))["sample"].flops

    assert flops("rollout.windows=2", "rollout.commit=each") == pytest.approx(2 * flops(), rel=1e-3)
    near, far = (flops(f"rollout.length={n}", "rollout.start=last") for n in (3, 4))
    assert far > 1.05 * near > 1.05 * flops()


def test_the_largest_batches_fit_and_the_next_do_not(needs):
    usable = int(1.02 * max(phase.total for phase in phases(needs)))
    for choice in choices(needs, usable):
        train = replace(
            needs.run.train,
            gradient_checkpointing=choice.gradient_checkpointing,
            micro_batch=choice.micro_batch,
        )
        rollout = replace(needs.run.rollout, batch_size=choice.batch_size)
        assert fits(needs.of(replace(needs.run, train=train, rollout=rollout)), usable)
        if choice.micro_batch < needs.share.windows:
            more = replace(train, micro_batch=choice.micro_batch + 1)
            assert not fits(needs.of(replace(needs.run, train=more, rollout=rollout)), usable)
    assert all((one.batch_size, one.micro_batch) == (0, 0) for one in choices(needs, 1))


def test_the_way_out_is_enough_and_takes_no_more_than_it_must(needs):
    def changed(values):
        return small(*values)

    most = max(phase.total for phase in phases(needs))
    values, helped = way_out(needs, most - 5 * GIB, changed)
    assert (values, helped) == (["model.options.text_device=cpu"], True)
    assert fits(needs.of(changed(values)), most - 5 * GIB)
    values, helped = way_out(needs, most - 15 * GIB, changed)
    assert helped
    assert "rewards.hpsv3.options.quantization=8bit" in values
    assert not way_out(needs, GIB, changed)[1]


def test_what_is_proposed_can_be_set(needs):
    def changed(values):
        return small(*values)

    values, helped = way_out(needs, 5 * GIB, changed)
    assert helped
    assert {"rewards.hpsv3.name=remote", "rewards.videoalign_ta.name=remote"} <= set(values)
    assert not any("quantization" in value or "max_tokens" in value for value in values)
    eight = Needs(needs.run, 8)
    eight._found = needs._found
    values, _ = way_out(eight, GIB, changed)
    assert "distributed.lora=sharded" in values
    assert eight.of(changed(values)).ranks == 8


def test_a_change_is_no_stronger_than_it_must_be(needs):
    def changed(values):
        return small(*values)

    without = needs.of(small("model.options.text_device=cpu", "rewards.hpsv3.name=remote"))
    usable = max(phase.total for phase in phases(without)) + int(6.5 * GIB)
    values, helped = way_out(needs, usable, changed)
    assert helped
    assert "rewards.hpsv3.options.quantization=4bit" in values
    assert not any("remote" in value or "videoalign" in value for value in values)


def test_what_was_counted_before_changes_no_count():
    run = small()
    model = blueprint(run.model)
    rope._rotations.cache_clear()
    assert plan_passes.sampling(run, model, 1) == plan_passes.sampling(run, model, 1)


def test_a_worker_scores_where_it_is_told():
    worker = 'rewards.far={name="worker", options={target="hpsv3", device="cpu"}}'
    assert [one.weights for one in reward_needs(load(["tiny"], [worker]), 33)][-1] == 0


def test_weights_are_what_rewards_say_of_themselves():
    memory = "14.4 GiB bf16, 28.9 fp32, 8.3 at 8 bit, 5.7 at 4 bit"
    assert weights_from(memory, "4bit") == int(5.7 * GIB)
    for name in names("rewards"):
        memory = find("rewards", name, "rewards").memory
        if "fp32" in memory:
            assert weights_from(memory, "float32") > weights_from(memory, "bfloat16") > 0


def test_rewards_on_a_cpu_or_elsewhere_take_nothing_of_the_gpu():
    on_cpu = 'rewards.hpsv3.options={device="cpu"}'
    far = 'rewards.far={name="remote", options={address="127.0.0.1:9"}}'
    needed = reward_needs(load(["tiny"], [on_cpu, far]), 33)
    assert {(one.weights, one.activations, one.known) for one in needed} == {(0, 0, True)}


def test_a_phase_takes_as_long_as_the_slower_of_arithmetic_and_traffic():
    card = CARDS[2]
    assert Work(flops=card.bf16).seconds(card, 0.5) == 2
    assert Work(flops=card.bf16, traffic=5 * card.bandwidth).seconds(card, 0.5) == 5
    assert Work(network=3 * card.link).seconds(card, 0.5) == 3
    assert around(100.0, 1) == 0
    assert around(100.0, 4) == 150


def test_the_json_has_a_stable_shape(made):
    found = made.to_dict()
    assert json.loads(json.dumps(found)) == found
    assert list(found) == [
        *("recipes", "model", "device", "parameters", "trained", "gpus", "videos", "batch_size"),
        *("windows", "micro_batch", "keys_and_values_of_a_frame", "phases", "host", "disk"),
        *("network", "flops", "verdicts", "warnings", "schema"),
    ]
    assert found["schema"] == 1
    assert [row["name"] for row in found["phases"]] == [
        *("load", "sample", "decode", "score", "update", "save")
    ]
    for row in found["phases"]:
        assert row["total"] == sum(row["parts"].values()) > 0
    (verdict,) = found["verdicts"]
    assert list(verdict) == [
        *("card", "memory", "usable", "fits", "over", "seconds", "choices", "changes", "helped")
    ]
    assert list(verdict["seconds"]) == ["sample", "decode", "score", "update", "step"]
    assert list(verdict["choices"][0]) == [
        *("gradient_checkpointing", "base", "batch_size", "micro_batch")
    ]


def test_a_person_reads_what_is_large_whether_it_fits_and_what_to_set(made):
    console = Console(width=120, record=True, file=StringIO())
    show(made, console)
    told = console.export_text()
    for word in ("update", "36 GiB", "too big", "it fits with", "model.options.text_device=cpu"):
        assert word in told


def test_a_narrow_terminal_cuts_no_word(needs, made):
    eight = Needs(needs.run, 8)
    eight._found = needs._found
    wide = replace(made.verdicts[0], choices=choices(eight, GIB), card=CARDS[0].name)
    console = Console(width=80, record=True, file=StringIO())
    show(replace(made, verdicts=[wide]), console)
    told = console.export_text()
    assert "…" not in told
    assert "without     without  with        with" in told
    assert "replicated  sharded  replicated  sharded" in told


@pytest.mark.parametrize(
    ("question", "told"),
    [
        (Question(["tiny"], memory=0.0), "--memory is 0"),
        (Question(["tiny"], gpus=0), "--gpus is 0"),
        (Question(["tiny"], reserve=1.0), "--reserve is 1"),
        (Question(["tiny"], utilisation=0.0), "--utilisation is 0"),
        (Question(["tiny"], gpus=7), "7 processes cannot share evenly. Start 1, 2, 3, 4, 6 or 12"),
        (Question(["tiny"], gpus=32), "96 windows of a step in 8 updates (train.updates)"),
        (Question(["tiny"], ["rollout.batch_size=32"], gpus=2), "rollout.batch_size is 32"),
        (
            Question(["tiny"], ["distributed.base='sharded'", "distributed.shard_ranks=3"], gpus=4),
            "shard_ranks is 3",
        ),
        (Question(["tiny"], ["distributed.rollout_ranks=1"], gpus=2), "ask twice"),
        (Question(["tiyn"]), "Did you mean 'tiny'"),
        (Question(["self_forcing_multi"], ["model.options.size='2b'"]), "choose dtype"),
        (Question(["self_forcing_multi"], ["model.options.hight=480"]), "Did you mean 'height'?"),
        (Question(["self_forcing_multi"], ["model.options.height=481"]), "Choose multiples of 16"),
        (
            Question(["tiny"], ["model.name='astrolabe_rollout.tiny:build_tiny'"]),
            "neither the embedded",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(question, told):
    with pytest.raises(ConfigError) as refused:
        plan(question)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_allowed_and_not_meant_is_warned_of(needs):
    *_, told = warnings(needs.of(small("rollout.length=2", "rollout.batch_size=2")))
    assert "With rollout.batch_size=4 it is made once" in told
    uneven = Needs(small("rollout.num_prompts=3", "rollout.length=2", "rollout.batch_size=0"), 2)
    uneven._found = needs._found
    *_, told = warnings(uneven)
    assert "groups span processes unevenly" in told


def test_files_that_training_will_miss_are_warned_of_and_not_needed(needs):
    run = small("rollout.prompts='./none.txt'", "evaluation.prompts='tiny_heldout'")
    told = list(warnings(needs.of(replace(run, lora=replace(run.lora, start="./none")))))
    assert [line.split(": ")[0] for line in told] == ["train will not start without it"] * 2
    assert "no LoRA './none'" in told[0]
    assert "no prompt file './none.txt'" in told[1]


def test_the_command_refuses_in_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["plan", "tiny", "--memory", "0"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: --memory is 0. Give GiB above 0, such as 80.\n"


@pytest.mark.slow
def test_a_plan_of_the_embedded_model_is_what_a_process_takes():
    tool = Path(__file__).parents[2] / "tools" / "validate_plan.py"
    command = [sys.executable, tool, "--frames", "9", "--videos", "16"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
