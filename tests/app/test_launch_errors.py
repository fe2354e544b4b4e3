import re
import socket
from dataclasses import replace
from datetime import timedelta

import pytest
import torch.distributed as dist

from astrolabe.config import Distributed
from astrolabe.errors import ConfigError
from astrolabe.launch_errors import check_devices, check_world, explained, world_size

TORCHRUN = {
    "RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.fixture
def join(monkeypatch):
    """Join the processes with an environment, as `World.start` does."""

    def run(**changes):
        for name, value in (TORCHRUN | changes).items():
            monkeypatch.setenv(name, value)
        with explained():
            dist.init_process_group("gloo", timeout=timedelta(seconds=1))

    yield run
    assert not dist.is_initialized()


@pytest.fixture
def taken():
    """A port at which somebody listens."""
    with socket.socket() as somebody:
        somebody.bind(("127.0.0.1", 0))
        somebody.listen()
        yield str(somebody.getsockname()[1])


@pytest.fixture
def free(taken):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_a_port_that_is_taken_is_one_line_with_three_ways_out(join, taken):
    with pytest.raises(
        ConfigError, match=rf"127.0.0.1:{taken} is taken.*--master-port.*"
    ) as caught:
        join(MASTER_PORT=taken)
    assert "\n" not in str(caught.value)
    assert "--rdzv-endpoint" in str(caught.value)
    assert "--standalone" in str(caught.value)


def test_processes_that_do_not_come_are_looked_for(join, free):
    with pytest.raises(ConfigError, match=r"not all processes came .* 1/2 clients joined"):
        join(MASTER_PORT=free)


def test_a_rank_0_that_does_not_answer_is_looked_for(join, free):
    with pytest.raises(ConfigError, match=rf"rank 0 cannot be reached at 127.0.0.1:{free}.*firewa"):
        join(MASTER_PORT=free, RANK="1", LOCAL_RANK="1")


def test_ranks_that_do_not_answer_in_time_are_named():
    said = r"came to .*: ranks \[3\] did not join within 0:01:00\. "
    with pytest.raises(ConfigError, match=said), explained():
        raise RuntimeError("ranks [3] did not join within 0:01:00")


def test_other_errors_pass_as_they_are(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(RuntimeError, match="a bug"), explained():
        raise RuntimeError("a bug")


def test_without_torchrun_there_is_one_process():
    assert world_size({"MASTER_ADDR": "left over", "LOCAL_RANK": "3"}) == 1
    assert world_size(TORCHRUN) == 2
    assert world_size({name: TORCHRUN[name] for name in TORCHRUN if "LOCAL_W" not in name}) == 2


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_an_environment_with_a_part_missing_is_refused_by_its_name(name):
    rest = {key: value for key, value in TORCHRUN.items() if key != name}
    with pytest.raises(ConfigError, match=f"but not {name}. Start with `torchrun"):
        world_size(rest)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"RANK": "2"}, r"RANK is '2' .* from 0 to 1 \(WORLD_SIZE is 2"),
        ({"RANK": "a"}, "RANK is 'a'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK is '2'"),
        ({"LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE is '3'"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT is '99999'"),
    ],
)
def test_an_environment_that_contradicts_itself_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        world_size(TORCHRUN | changes)


def test_more_processes_than_gpus_are_refused_with_the_number_that_fits():
    with pytest.raises(ConfigError, match=r"8 processes .* 4 GPUs.*--nproc-per-node 4\."):
        check_devices(8, 4, nccl=True)
    with pytest.raises(ConfigError, match="without NCCL"):
        check_devices(1, 1, nccl=False)
    check_devices(8, 8, nccl=True)
    check_devices(8, 0, nccl=False)


def with_rollout(run, updates=1, **changes):
    rollout = replace(run.rollout, **changes)
    return replace(run, rollout=rollout, train=replace(run.train, updates=updates))


@pytest.fixture
def paper(small_run):
    return with_rollout(small_run, num_prompts=48, group_size=24)


@pytest.mark.parametrize("size", [1, 2, 8, 16, 48, 64])
def test_sizes_that_divide_the_videos_are_taken(paper, size):
    check_world(paper, size)


def test_a_size_that_does_not_divide_names_sizes_and_prompts_that_do(paper):
    with pytest.raises(ConfigError, match=r"1152 videos .* which 7 processes cannot") as caught:
        check_world(paper, 7)
    processes, prompts = re.fullmatch(
        r".* Start (.*) processes, or set rollout.num_prompts to (.*)\.", str(caught.value)
    ).groups()
    sizes = [int(size) for size in re.findall(r"\d+", processes)]
    assert {6, 8} <= set(sizes)
    for size in sizes:
        check_world(paper, size)
    assert prompts == "42 or 49"
    for number in (42, 49):
        check_world(with_rollout(paper, num_prompts=number), 7)


def test_updates_batches_and_shared_histories_must_divide_too(paper):
    with pytest.raises(ConfigError, match=r"1152 windows of a step in 64 updates .* 32 processes"):
        check_world(with_rollout(paper, updates=64), 32)
    with pytest.raises(ConfigError, match="batch_size is 32, which does not divide the 144 videos"):
        check_world(with_rollout(paper, batch_size=32), 8)
    shared = with_rollout(paper, length=4)
    assert shared.rollout.shared
    check_world(paper, 36)
    with pytest.raises(ConfigError, match="48 prompts cannot be dealt whole to 36 processes"):
        check_world(shared, 36)


def test_shards_divide_the_processes(paper):
    sharded = replace(paper, distributed=Distributed(base="sharded", shard_ranks=3))
    with pytest.raises(ConfigError, match="Set it to 1, 2, 4 or 8, or to 0 for all"):
        check_world(sharded, 8)
    check_world(replace(paper, distributed=Distributed(base="sharded", shard_ranks=4)), 8)


def test_processes_that_sample_and_those_that_learn_share_alike(paper):
    def apart(count, run=paper):
        return replace(run, distributed=Distributed(rollout_ranks=count))

    check_world(apart(24), 8 + 24)
    with pytest.raises(ConfigError, match=r"8 of 8 processes, which leaves none .* Start 9"):
        check_world(apart(8), 8)
    with pytest.raises(ConfigError, match=r"which 7 processes that learn cannot share"):
        check_world(apart(1), 8)
    with pytest.raises(ConfigError, match=r"which 7 processes that sample cannot share"):
        check_world(apart(7), 8)
    # Candidates of a group share a history where they are sampled, not where they are learned.
    shared = with_rollout(paper, length=4)
    check_world(apart(16, shared), 16 + 36)
    with pytest.raises(ConfigError, match=r"dealt whole to 36 processes that sample"):
        check_world(apart(36, shared), 36 + 16)
