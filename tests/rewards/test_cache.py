import logging
import multiprocessing
import os
import sqlite3
import stat
import struct
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
import torch

from astrolabe_rewards import CompositeReward, Reward, SharpnessVQ
from astrolabe_rewards.cache import CachedReward, ScoreStore

NAME = "scores-v1.sqlite"


class Counting(Reward):
    """Scores by pixels, prompt and fps, and counts the videos of each call."""

    name = "counting"
    unit = "none"
    needs_text = True
    may_fail = True

    def __init__(self, gain=1.0 / 3):
        super().__init__()
        self.gain = gain
        self._asked = []

    def score(self, pixels, prompts, fps):
        self._asked.append(len(pixels))
        letters = torch.tensor([float(len(prompt)) for prompt in prompts])
        scores = self.gain * pixels.flatten(1).float().mean(1) + letters / 7 + fps / 11
        return torch.where(pixels.flatten(1)[:, 0] == 13, torch.nan, scores)


def videos(*levels, shape=(2, 3, 4, 4)):
    levels = torch.tensor(levels, dtype=torch.uint8)
    return levels.reshape(-1, 1, 1, 1, 1).expand(-1, *shape).contiguous()


@pytest.fixture
def make(tmp_path):
    """A new cache over the same folder, as another run would make it."""
    return lambda inner=None, **options: CachedReward(
        inner or Counting(), tmp_path / "cache", **options
    )


def test_known_scores_come_back_bit_for_bit_and_nothing_is_scored_again(make, make_batch):
    texts = ["a", "bb", "ccc"]
    fresh = make()(make_batch(videos(1, 2, 3), texts))["score", "counting"]
    again = make()
    known = again(make_batch(videos(1, 2, 3), texts))["score", "counting"]
    assert again.inner._asked == []
    assert (again.hits, again.misses) == (3, 0)
    assert known.dtype == torch.float32
    assert torch.equal(known.view(torch.int32), fresh.view(torch.int32))
    plain = Counting()(make_batch(videos(1, 2, 3), texts))["score", "counting"]
    assert torch.equal(known.view(torch.int32), plain.view(torch.int32))


def test_only_unknown_videos_are_scored_in_one_call(make, make_batch):
    cached = make()
    cached(make_batch(videos(2, 4), ["a", "a"]))
    scores = cached(make_batch(videos(1, 2, 3, 4, 1), ["a"] * 5))["score", "counting"]
    assert cached.inner._asked == [2, 2]
    assert (cached.hits, cached.misses) == (3, 4)
    expected = Counting()(make_batch(videos(1, 2, 3, 4, 1), ["a"] * 5))["score", "counting"]
    assert torch.equal(scores, expected)


@pytest.mark.parametrize("other", ["pixel", "shape", "fps", "prompt", "settings"])
def test_whatever_a_score_depends_on_tells_videos_apart(make, make_batch, other):
    make()(make_batch(videos(5), ["a"], fps=16.0))
    pixels = videos(5)
    if other == "pixel":
        pixels[0, 1, 2, 3, 3] = 6
    if other == "shape":
        pixels = videos(5, shape=(4, 3, 2, 4))
    cached = make(Counting(gain=0.5) if other == "settings" else None)
    text = "b" if other == "prompt" else "a"
    cached(make_batch(pixels, [text], fps=8.0 if other == "fps" else 16.0))
    assert (cached.hits, cached.misses) == (0, 1)


def test_prompts_count_only_where_they_are_read(make, make_batch):
    make(SharpnessVQ())(make_batch(videos(5, shape=(2, 3, 16, 16)), ["a"]))
    cached = make(SharpnessVQ())
    cached(make_batch(videos(5, shape=(2, 3, 16, 16)), ["b"]))
    assert (cached.hits, cached.misses) == (1, 0)


def test_prompts_of_any_letters_are_kept_apart(make, make_batch):
    texts = ["", "\0", "猫", "貓", "\ud800", "{}", "<|im_end|>", "x" * 10_000]
    make()(make_batch(videos(*[1] * len(texts)), texts))
    cached = make()
    cached(make_batch(videos(*[1] * len(texts)), texts))
    assert (cached.hits, cached.misses) == (len(texts), 0)


def test_scores_that_could_not_be_had_are_asked_for_again(make, make_batch):
    batch = make_batch(videos(13, 2), ["a", "a"])
    composite = CompositeReward({"counting": (make(), 1.0)}, on_error="invalid")
    assert composite(batch)["next", "valid"].flatten().tolist() == [False, True]
    cached = make()
    CompositeReward({"counting": (cached, 1.0)}, on_error="invalid")(batch)
    assert cached.inner._asked == [1]


def test_a_cached_reward_stands_for_the_inner_one(make, make_batch):
    cached = make()
    inner = cached.inner
    assert (cached.name, cached.unit, cached.needs_text) == ("counting", "none", True)
    assert cached.fingerprint() == inner.fingerprint()
    batch = make_batch(videos(1, 2).reshape(2, 1, 2, 3, 4, 4), [["a"], ["b"]])
    CompositeReward({"other": (cached, 1.0)})(batch)
    assert batch["score", "other"].shape == (2, 1, 1)


def test_two_rewards_share_a_folder_without_mixing(make, make_batch):
    batch = make_batch(videos(7), ["a"])
    first, second = make(Counting(gain=1.0)), make(Counting(gain=2.0))
    scores = [float(reward(batch.copy())["score", "counting"]) for reward in (first, second)]
    assert scores[1] - scores[0] == pytest.approx(7)


def test_the_least_recently_used_scores_give_way(tmp_path):
    store = ScoreStore(tmp_path, max_mib=100 * 128 / 2**20)  # 100 rows
    keys = [struct.pack(">QQ", 0, index) for index in range(150)]
    for start in range(0, 100, 10):
        store.put(dict.fromkeys(keys[start : start + 10], 1.0))
    assert len(store.get(keys[:10])) == 10  # used, so younger than the next ten
    store.put(dict.fromkeys(keys[100:110], 2.0))
    assert len(store.get(keys[:10])) == 10
    assert store.get(keys[10:20]) == {}
    assert len(store.get(keys)) == 90


def test_the_file_stays_under_its_size(tmp_path):
    store = ScoreStore(tmp_path, max_mib=1)
    for _ in range(12):
        store.put({os.urandom(16): 0.5 for _ in range(2000)})
    with closing(sqlite3.connect(tmp_path / NAME)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (rows,) = connection.execute("SELECT count(*) FROM scores").fetchone()
    assert 0.8 * 8192 <= rows <= 8192
    assert (tmp_path / NAME).stat().st_size <= 2**20


def hammer(folder, worker, rounds, damaged, failures):
    """Put and get overlapping scores; a wrong or lost score is reported."""
    try:
        store = ScoreStore(folder, max_mib=8)
        for turn in range(rounds):
            shared = {struct.pack(">QQ", turn, index): float(index) for index in range(20)}
            own = {struct.pack(">QQ", 10**6 + worker, turn): worker + turn / 7}
            store.put(shared | own)
            found = store.get([*shared, *own])
            for key, score in (shared | own).items():
                wanted = struct.unpack("<f", struct.pack("<f", score))[0]
                if found.get(key, None if not damaged else wanted) != wanted:
                    failures.put(f"{worker}: {key.hex()} is {found.get(key)}, not {wanted}")
    except BaseException as error:
        failures.put(repr(error))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # from Python 3.12 on
@pytest.mark.parametrize("damaged", [False, True])
def test_four_processes_share_a_folder(tmp_path, damaged):
    context = multiprocessing.get_context("fork")
    failures = context.Queue()
    if damaged:
        (tmp_path / NAME).write_bytes(os.urandom(8192))
    workers = [
        context.Process(target=hammer, args=(tmp_path, number, 40, damaged, failures))
        for number in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert failures.empty()
    assert len(list(tmp_path.glob("*.damaged-*"))) == damaged
    store = ScoreStore(tmp_path, max_mib=8)
    own = [struct.pack(">QQ", 10**6 + number, 39) for number in range(4)]
    assert len(store.get(own)) == 4
    assert len(store.get([struct.pack(">QQ", 39, index) for index in range(20)])) == 20


@pytest.mark.parametrize("how", ["noise", "cut", "zeroed", "score"])
def test_a_damaged_cache_is_set_aside_and_begun_anew(make, make_batch, tmp_path, caplog, how):
    path = tmp_path / "cache" / NAME
    batch = make_batch(videos(*range(100)), ["a"] * 100)
    first = make()(batch.copy())["score", "counting"].clone()
    data = bytearray(path.read_bytes())
    if how == "noise":
        data[:] = os.urandom(len(data))
    if how == "cut":
        del data[len(data) // 2 :]
    if how == "zeroed":
        data[4096:] = bytes(len(data) - 4096)
    if how == "score":
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE scores SET score = X'0000803F00000000'")
    else:
        path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        cached = make()
        second = cached(batch.copy())["score", "counting"]
    assert torch.equal(torch.nan_to_num(second), torch.nan_to_num(first))
    assert cached.misses == 100
    assert "is damaged; it is set aside as" in caplog.text
    assert len(list(path.parent.glob(f"{NAME}.damaged-*"))) >= 1
    third = make()
    third(batch.copy())
    assert third.misses == 1  # the one that is NaN


def test_a_folder_that_cannot_be_written_is_refused(make_batch):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # pytest's own is closed to others
        Path(folder).chmod(stat.S_IRWXU | stat.S_IROTH | stat.S_IXOTH)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # root may write anywhere
        else:
            Path(folder).chmod(stat.S_IRUSR | stat.S_IXUSR)
        try:
            with pytest.raises(OSError, match=r"cannot be written .*Choose another folder"):
                CachedReward(Counting(), folder)
        finally:
            os.seteuid(user)
            Path(folder).chmod(stat.S_IRWXU)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(OSError, match=r"the score cache .* cannot be written"):
        CachedReward(Counting(), tmp_path / "cache")


@pytest.mark.parametrize("size", [0, -1, float("nan")])
def test_a_size_of_nothing_is_refused(tmp_path, size):
    with pytest.raises(ValueError, match="Give more than 0"):
        CachedReward(Counting(), tmp_path, max_mib=size)


def test_a_cache_that_goes_away_costs_no_score(make, make_batch, tmp_path, caplog):
    cached = make()
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    (tmp_path / "cache").rmdir()
    with caplog.at_level(logging.WARNING):
        scores = cached(make_batch(videos(1), ["a"]))["score", "counting"]
    assert torch.equal(scores, Counting()(make_batch(videos(1), ["a"]))["score", "counting"])
    assert "is left aside" in caplog.text
