from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from astrolabe.joining import _announce, _ask

LIMIT = timedelta(seconds=10)


def joined(store, size):
    """The name that each of some processes, here threads, agrees on."""
    with ThreadPoolExecutor(size) as pool:
        asked = [pool.submit(_ask, store, rank) for rank in range(1, size)]
        name = pool.submit(_announce, store, size, LIMIT)
        return [name.result(), *(one.result() for one in asked)]


def test_processes_agree_on_a_name_and_on_another_one_after_a_restart():
    store = HashStore()
    first, second = joined(store, 3), joined(store, 3)
    assert len(set(first)) == len(set(second)) == 1
    assert first[0] != second[0]


def test_what_a_process_left_that_died_while_joining_disturbs_nobody():
    store = HashStore()
    store.set("astrolabe/question/1", "of one that is gone")
    store.set("astrolabe/answer/of one that is gone", "an old name")
    names = joined(store, 3)
    assert len(set(names)) == 1
    assert names[0] != "an old name"


def test_those_who_do_not_come_are_named():
    with pytest.raises(RuntimeError, match=r"ranks \[1, 2\] did not join"):
        _announce(HashStore(), 3, timedelta(seconds=0.2))
