"""Scores in another process: the same, in order, and nothing is lost when the process dies.

Starting a real worker takes as long as importing torch does, some seconds. So the fast tests of
crashes use a process that speaks the same protocol without torch; ``slow`` ones repeat them with
the real one.
"""

import gc
import json
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from astrolabe_rewards import CompositeReward, FlowMQ, SharpnessVQ, TinyTextReward, channel
from astrolabe_rewards.errors import RewardError
from astrolabe_rewards.scoring_process import ScoringProcess
from astrolabe_rewards.wire import Request, UnavailableError
from astrolabe_rewards.worker import ScoringWorker
from astrolabe_rewards.worker_process import build

#: A reward that does what the first prompt says.
OBEDIENT = """
import os, signal, time
from pathlib import Path
import torch
from astrolabe_rewards import FlowMQ, Reward, SharpnessVQ, TinyTextReward

class Obedient(Reward):
    name, unit, needs_text = "obedient", "level", True

    def __init__(self, *, once="", missing=None):
        super().__init__()
        if missing:
            raise ValueError(f"missing is {missing!r}")
        self._once = once
        built_in = (SharpnessVQ(), FlowMQ(), TinyTextReward())
        self.others = {reward.name: reward for reward in built_in}

    def score(self, pixels, prompts, fps):
        print("this must not disturb anybody", flush=True)
        order, _, rest = prompts[0].partition(":")
        if order in self.others:
            return self.others[order].score(pixels, [rest] * len(prompts), fps)
        if order == "raise":
            raise ValueError(f"cannot score {rest}")
        if order == "write":
            pixels.zero_()
        if order == "sleep":
            time.sleep(float(rest))
        if order == "die" or (order == "die once" and not Path(self._once).exists()):
            Path(self._once).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return pixels[:, 0, 0, 0, 0].float() + fps / 1024

def plain(*, name):
    return lambda batch: batch.set(("score", name), batch["video", "fps"] * 2)
"""

#: The same protocol without torch: one video, whose score is its first pixel. Its options say what
#: happens at which batch, over all processes of the test.
LIGHT = f"""
import importlib.util, json, os, signal, socket, struct, sys, time
spec = importlib.util.spec_from_file_location("channel", {channel.__file__!r})
channel = importlib.util.module_from_spec(spec)
spec.loader.exec_module(channel)
line = socket.socket(fileno=os.dup(0))
setup = json.loads(channel.receive_memory(line)[:])
options = setup.get("options", setup)
reward = dict(name="light", unit="level", needs_text=False, deterministic=True, may_fail=False,
    fingerprint=options.get("fingerprint", ""), higher_is_better=True)
hello = dict(schema=options.get("schema", 1), reward=reward)
if options.get("changes"):
    reward["fingerprint"] = str(os.getpid())
time.sleep(options.get("start", 0))
channel.send_reply(line, channel.HELLO, json.dumps(hello).encode())
while True:
    data = channel.receive_memory(line)
    with open(options["log"], "a") as log:
        print(os.getpid(), file=log)
    batch = len(open(options["log"]).readlines())
    if batch in options.get("die", []):
        os.kill(os.getpid(), signal.SIGKILL)
    if batch in options.get("exit", []):
        sys.exit(3)
    if batch in options.get("hang", []):
        time.sleep(60)
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    level = data[start + header["pixels"]["data_offsets"][0]]
    answer = dict(scores=dict(dtype="F32", shape=[1], data_offsets=[0, 4]),
        __metadata__=dict(schema="1", fingerprint="", errors="[null]"))
    text = json.dumps(answer).encode()
    packed = len(text).to_bytes(8, "little") + text + struct.pack("<f", level)
    channel.send_reply(line, channel.ANSWER, packed)
"""


def request(level):
    return Request(torch.full((1, 2, 3, 4, 4), level, dtype=torch.uint8), [""], torch.ones(1))


def alive(pid):
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(*pids, seconds=10):
    """Whether processes end within some seconds."""
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(alive, pids))


def open_files():
    """How many files this process has open or mapped, and what lies in shared memory of ours.

    Other programs have their own things in /dev/shm, that come and go.
    """
    names = [path.name for path in Path("/dev/shm").iterdir() if "sem." not in path.name]
    mapped = Path("/proc/self/maps").read_text().count("memfd:astrolabe")
    return len(os.listdir("/proc/self/fd")), mapped, names


@pytest.fixture
def light(tmp_path):
    """Make a process without torch: light(die=[2]) dies at its second batch."""
    made = []

    def make(seconds=30.0, **options):
        options |= {"log": str(tmp_path / "log")}
        script = tmp_path / "light.py"
        script.write_text(LIGHT)
        process = ScoringProcess([sys.executable, "-S", str(script)], options, "light", seconds)
        made.append(process)
        return process

    yield make
    for process in made:
        process.close()


@pytest.fixture
def interpreter(tmp_path):
    """What a worker can be told to take for python: the process without torch."""
    (tmp_path / "light.py").write_text(LIGHT)
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\nexec {sys.executable} -S {tmp_path / 'light.py'}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """A file that is there after the obedient reward has died once."""
    return tmp_path_factory.mktemp("once") / "died"


@pytest.fixture(scope="module")
def obedient(tmp_path_factory, once):
    """One real worker for all that does not end it, with the files that were open before."""
    folder = tmp_path_factory.mktemp("scorers")
    (folder / "obedient.py").write_text(OBEDIENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        worker = ScoringWorker(
            target="obedient:Obedient", options={"once": str(once)}, timeout=60, retries=1
        )
        with worker:
            yield worker


def levels(make_batch, *values, order=""):
    pixels = torch.tensor(values, dtype=torch.uint8)[:, None, None, None, None]
    return make_batch(pixels.expand(-1, 3, 3, 8, 8), [order] * len(values), fps=16.0)


def score(worker, batch):
    return worker(batch)["score", worker.name].flatten().tolist()


@pytest.mark.parametrize("kind", [SharpnessVQ, FlowMQ, TinyTextReward])
def test_scores_of_a_worker_are_those_of_this_process_bit_for_bit(kind, obedient, make_batch):
    pixels = torch.randint(0, 256, (3, 9, 3, 48, 48), dtype=torch.uint8)
    texts = ["a red circle spins"] * 3
    reward = kind()
    here = reward(make_batch(pixels, texts))["score", reward.name]
    there = obedient(make_batch(pixels, [f"{reward.name}:{text}" for text in texts]))
    assert torch.equal(there["score", "obedient"], here)


def test_a_worker_tells_of_its_reward_what_the_reward_would(obedient):
    assert (obedient.name, obedient.unit, obedient.needs_text) == ("obedient", "level", True)
    assert obedient.out_keys == [("score", "obedient")]
    assert len(obedient.fingerprint()) == 16


def test_a_worker_is_a_term_of_a_composite_reward_under_any_name(obedient, make_batch):
    composite = CompositeReward({"level": (obedient, 2.0), "sharp": (SharpnessVQ(), 0.0)})
    batch = composite(levels(make_batch, 1, 5))
    assert batch["score", "level"].flatten().tolist() == [1 + 1 / 64, 5 + 1 / 64]
    assert batch["next", "reward"].flatten().tolist() == [2 + 1 / 32, 10 + 1 / 32]


def test_batches_of_two_dimensions_and_empty_ones_are_scored(obedient, make_batch):
    batch = levels(make_batch, *range(6), order="x").reshape(2, 3)
    expected = torch.arange(6.0).reshape(2, 3, 1) + 1 / 64
    assert torch.equal(obedient(batch)["score", "obedient"], expected)
    assert obedient(levels(make_batch, 1)[:0])["score", "obedient"].shape == (0, 1)


def test_submitted_batches_are_scored_in_order_and_the_queue_is_bounded(obedient, make_batch):
    ended, slow = [], levels(make_batch, 0, order="sleep:0.3")
    futures = [obedient.submit(slow)]
    begun = time.monotonic()
    for level in range(1, 6):
        futures.append(obedient.submit(levels(make_batch, level)))
        futures[-1].add_done_callback(lambda _, level=level: ended.append(level))
    assert time.monotonic() - begun > 0.15  # two places: it waited for the slow one
    results = [future.result()["score", "obedient"].item() for future in futures]
    assert results == [level + 1 / 64 for level in range(6)]
    assert ended == sorted(ended)


def test_errors_of_the_scorer_come_back_with_their_class_and_are_not_tried_again(
    obedient, make_batch, caplog
):
    pid = obedient.pid
    with pytest.raises(ValueError, match="cannot score this") as caught:
        obedient(levels(make_batch, 1, order="raise:this"))
    assert str(caught.value) == "cannot score this"
    assert "In the worker's process" in caught.value.__notes__[0]
    assert obedient.pid == pid
    assert not caplog.records
    future = obedient.submit(levels(make_batch, 1, order="raise:that"))
    with pytest.raises(ValueError, match="cannot score that"):
        future.result()


def test_a_scorer_that_writes_into_its_pixels_is_refused_and_does_not_change_ours(
    obedient, make_batch
):
    batch = levels(make_batch, 3, order="write")
    with pytest.raises(RewardError, match=r"obedient changed \('video', 'pixels'\) .* in place"):
        score(obedient, batch)
    assert batch["video", "pixels"].min() == 3


def test_scoring_leaves_no_open_file_and_nothing_in_shared_memory(obedient, make_batch):
    score(obedient, levels(make_batch, 1))
    before = open_files()
    for level in range(20):
        score(obedient, levels(make_batch, level))
    assert open_files() == before


def test_a_process_that_is_killed_in_the_middle_of_a_batch_loses_nothing(light, tmp_path, caplog):
    process = light(die=[2, 4])
    process.start()
    with caplog.at_level(logging.WARNING):
        scores = [process.score(request(level), 20, retries=1).item() for level in range(5)]
    assert scores == [0, 1, 2, 3, 4]
    assert len(set((tmp_path / "log").read_text().split())) == 3
    assert caplog.text.count("killed by SIGKILL") == 2


def test_a_process_that_died_while_idle_costs_no_retry(light):
    process = light()
    process.start()
    os.kill(process.pid, signal.SIGKILL)
    gone(process.pid)
    assert process.score(request(9), 20, retries=0).item() == 9


def test_a_process_that_dies_each_time_fails_the_batch_and_then_goes_on(light):
    process = light(exit=[1, 2, 3])
    with pytest.raises(UnavailableError, match=r"light: .* died .*exit code 3"):
        process.score(request(1), 20, retries=2)
    assert process.score(request(2), 20, retries=0).item() == 2


def test_a_worker_that_dies_each_time_makes_videos_invalid_or_raises(
    interpreter, tmp_path, make_batch
):
    options = {"die": list(range(1, 9)), "log": str(tmp_path / "log")}
    before = open_files()
    with ScoringWorker(target="any:thing", python=interpreter, options=options) as worker:
        batch = levels(make_batch, 1)
        with pytest.raises(UnavailableError, match=r"any:thing: .*SIGKILL.*, 2 tries in a row"):
            CompositeReward({"light": (worker, 1.0)})(batch.copy())
        scored = CompositeReward({"light": (worker, 1.0)}, on_error="invalid")(batch)
        assert scored["next", "valid"].tolist() == [[False]]
        assert scored["next", "reward"].isnan().all()
        assert scored["score", "light"].isnan().all()
    assert open_files() == before


def test_leaving_a_block_by_an_error_does_not_wait(interpreter, tmp_path, make_batch):
    options = {"hang": [1], "log": str(tmp_path / "log")}
    begun = time.monotonic()
    worker = ScoringWorker(target="any:thing", python=interpreter, options=options)
    with suppress(LookupError), worker:
        futures = [worker.submit(levels(make_batch, 1)) for _ in range(2)]
        raise LookupError
    assert time.monotonic() - begun < 20
    assert isinstance(futures[0].exception(), UnavailableError) or futures[0].cancelled()
    assert futures[1].cancelled()


def test_a_worker_that_is_forgotten_ends_its_process(interpreter, tmp_path):
    options = {"log": str(tmp_path / "log")}
    worker = ScoringWorker(target="any:thing", python=interpreter, options=options)
    pid = worker.pid
    del worker
    gc.collect()
    assert gone(pid)


def test_a_batch_that_takes_too_long_is_scored_again_by_a_new_process(light, tmp_path):
    process = light(hang=[1, 3, 4])
    assert process.score(request(7), 0.5, retries=1).item() == 7
    with pytest.raises(UnavailableError, match=r"no answer in 0\.5 s"):
        process.score(request(8), 0.5, retries=1)
    pids = {int(pid) for pid in (tmp_path / "log").read_text().split()}
    assert gone(*pids - {process.pid})


def test_a_start_that_takes_too_long_is_given_up(light):
    with pytest.raises(UnavailableError, match=r"no answer in 0\.3 s"):
        light(seconds=0.3, start=60).start()


def test_a_process_of_another_schema_is_refused_with_both_versions(light):
    with pytest.raises(ValueError, match="schema 2 and this one 1"):
        light(schema=2).start()


def test_a_scorer_that_is_another_one_after_a_restart_is_refused(light):
    process = light(changes=True, die=[1])
    with pytest.raises(ValueError, match="the scorer is another one"):
        process.score(request(1), 20, retries=1)


def test_many_threads_get_their_own_scores_though_the_process_dies(light):
    process, found = light(die=[3, 10]), {}

    def ask(level):
        found[level] = process.score(request(level), 20, retries=1).item()

    threads = [threading.Thread(target=ask, args=(level,)) for level in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {level: level for level in range(24)}


def test_closing_ends_a_batch_that_is_being_scored_and_leaves_nothing(light):
    before = open_files()
    process = light(hang=[1])
    process.start()
    pid = process.pid
    threading.Timer(0.3, process.close).start()
    with pytest.raises(UnavailableError):
        process.score(request(1), 60, retries=5)
    process.close()
    assert gone(pid)
    assert open_files() == before
    with pytest.raises(UnavailableError, match="is closed"):
        process.score(request(1), 60, retries=0)


def test_an_interrupted_wait_leaves_no_answer_for_the_next_batch(light):
    process = light(hang=[1])
    process.start()
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            process.score(request(1), 60, retries=1)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert process.score(request(2), 20, retries=0).item() == 2


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "raise SystemExit", "os._exit(1)"])
def test_the_process_ends_with_ours_in_whatever_way(end, light, tmp_path):
    light()  # writes the script
    code = f"""
        import importlib.util, os, socket, subprocess, sys
        spec = importlib.util.spec_from_file_location("channel", {channel.__file__!r})
        channel = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(channel)
        ours, theirs = socket.socketpair()
        child = subprocess.Popen(
            [sys.executable, "-S", {str(tmp_path / "light.py")!r}],
            stdin=theirs.fileno(), start_new_session=True, stderr=subprocess.DEVNULL,
        )
        theirs.close()
        with channel.Memory([{json.dumps({"log": str(tmp_path / "log")})!r}.encode()]) as setup:
            setup.send(ours)
        channel.receive_reply(ours, 30)
        print(child.pid, flush=True)
        {end}
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    assert gone(int(ended.stdout))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "no_colon"}, "Write module:Class"),
        ({"target": "a:b", "timeout": 0}, "timeout is 0. Give seconds above 0"),
        ({"target": "a:b", "start_timeout": float("nan")}, "start_timeout is nan"),
        ({"target": "a:b", "retries": -1}, "retries is -1"),
        ({"target": "a:b", "queue_size": 0}, "queue_size is 0"),
        ({"target": "a:b", "python": "/nowhere/python"}, "there is no such program"),
    ],
)
def test_options_out_of_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ScoringWorker(**options)


def test_an_environment_of_its_own_wants_uv(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="pip install uv"):
        ScoringWorker(target="a:b", requirements=["numpy"])


@pytest.mark.slow
def test_a_real_worker_that_is_killed_in_the_middle_of_a_batch_loses_nothing(
    obedient, once, make_batch
):
    once.unlink(missing_ok=True)
    batches = [levels(make_batch, 0), levels(make_batch, 1, order="die once")]
    batches += [levels(make_batch, level) for level in range(2, 6)]
    pid, futures = obedient.pid, [obedient.submit(batch) for batch in batches]
    results = [future.result()["score", "obedient"].item() for future in futures]
    assert results == [level + 1 / 64 for level in range(6)]
    assert obedient.pid != pid


@pytest.mark.slow
def test_a_real_worker_that_dies_each_time_makes_videos_invalid(obedient, make_batch):
    batch = levels(make_batch, 1, order="die")
    scored = CompositeReward({"obedient": (obedient, 1.0)}, on_error="invalid")(batch)
    assert scored["next", "valid"].tolist() == [[False]]
    assert score(obedient, levels(make_batch, 2)) == [2 + 1 / 64]


@pytest.mark.slow
def test_what_cannot_be_made_is_refused_at_once_and_leaves_nothing(obedient, tmp_path, monkeypatch):
    (tmp_path / "obedient.py").write_text(OBEDIENT)
    monkeypatch.syspath_prepend(tmp_path)
    before = open_files()
    with pytest.raises(ValueError, match="missing is 3"):
        ScoringWorker(target="obedient:Obedient", options={"missing": 3})
    with pytest.raises(ValueError, match="there is no module 'nothing_here'"):
        ScoringWorker(target="nothing_here:Reward")
    assert open_files() == before


@pytest.mark.slow
def test_a_plain_callable_is_a_scorer_and_a_worker_ends_with_its_block(
    tmp_path, monkeypatch, make_batch
):
    (tmp_path / "obedient.py").write_text(OBEDIENT)
    monkeypatch.syspath_prepend(tmp_path)
    before = open_files()
    worker = ScoringWorker(target="obedient:plain", options={"name": "twice"}, name="twice")
    with worker:
        pid, future = worker.pid, worker.submit(levels(make_batch, 1, 2, order="x"))
    assert future.result()["score", "twice"].flatten().tolist() == [32, 32]
    assert gone(pid)
    with pytest.raises(RuntimeError, match="after shutdown"):
        worker.submit(levels(make_batch, 1))
    del worker, future
    assert open_files() == before


@pytest.mark.slow
def test_a_worker_in_an_environment_of_its_own_gives_the_same_scores(make_batch):
    """Needs the packages in uv's cache or a network, and some minutes where they are not there."""
    pixels = torch.randint(0, 256, (2, 9, 3, 48, 48), dtype=torch.uint8)
    here = SharpnessVQ()(make_batch(pixels))["score", "sharpness_vq"]
    worker = ScoringWorker(
        target="astrolabe_rewards.quality:SharpnessVQ",
        requirements=["opencv-python-headless"],
    )
    with worker:
        pid = worker.pid
        assert torch.equal(worker(make_batch(pixels))["score", "sharpness_vq"], here)
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert gone(pid, *map(int, children))


def scoring_function(batch):
    return batch


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        ({"target": "obedient:bare"}, r"obedient:bare\(batch\) cannot be called.*return bare"),
        ({"target": "obedient:Obedient", "options": {"twice": 1}}, "Mend the options"),
        ({"target": "obedient:torch"}, "obedient:torch is a module, which makes no scorer"),
        ({"target": "obedient:nothing"}, "made a NoneType, which is no scorer"),
        ({"target": "obedient:unnamed"}, "makes a callable without a name.*option 'name'"),
    ],
)
def test_a_target_that_makes_no_scorer_is_one_line(tmp_path, monkeypatch, setup, message):
    extra = "def bare(batch): ...\ndef nothing(): ...\ndef unnamed(): return lambda batch: batch\n"
    (tmp_path / "obedient.py").write_text(OBEDIENT + extra)
    monkeypatch.syspath_prepend(tmp_path)
    whole = {"options": {}, "name": "", "device": None, "path": []} | setup
    monkeypatch.delitem(sys.modules, "obedient", raising=False)
    with pytest.raises(TypeError, match=message) as told:
        build(whole)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nothing_here:Reward", "there is no module 'nothing_here'"),
        ("obedient.inner:Reward", r"there is no module 'obedient.inner'"),
        ("needy:Reward", r"importing it raised ModuleNotFoundError\(\"No module named 'needy_lib"),
        ("leaving:Reward", r"importing it raised SystemExit\(3\)"),
        ("obedient:Obedent", "has no 'Obedent'. Did you mean 'Obedient'"),
        ("obedient:Obedient.scare", "has no 'Obedient.scare'. Did you mean 'score'"),
    ],
)
def test_a_target_that_cannot_be_found_is_one_line(tmp_path, monkeypatch, target, message):
    (tmp_path / "obedient.py").write_text(OBEDIENT)
    (tmp_path / "needy.py").write_text("import needy_lib")
    (tmp_path / "leaving.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "obedient", raising=False)
    setup = {"target": target, "options": {}, "name": "", "device": None, "path": []}
    with pytest.raises(ValueError, match=message) as told:
        build(setup)
    assert str(told.value).startswith(f"the target {target!r} cannot be ")
    assert "\n" not in str(told.value)


def test_a_target_is_told_by_its_name():
    for target, name in ((scoring_function, "scoring_function"), (SharpnessVQ, "SharpnessVQ")):
        with pytest.raises(TypeError, match=f"'module:Class': '{target.__module__}:{name}'"):
            ScoringWorker(target=target)
