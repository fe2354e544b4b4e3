"""A run that is killed at any of its calls that change files leaves its last good checkpoint."""

import os
import sys

import pytest

from astrolabe.checkpoint import restore
from astrolabe.checkpoint_files import damage
from astrolabe.saving import Saver

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}


def die_at(number, root):
    """Kill this process at its ``number``-th call that changes something below ``root``."""
    count = 0

    def watch(event, arguments):
        nonlocal count
        if event == "open":
            path, _, flags = arguments
            changes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            path, changes = (arguments[0], True) if event in CHANGES else ("", False)
        if changes and isinstance(path, str | os.PathLike) and str(path).startswith(root):
            count += 1
            if count == number:
                os._exit(9)

    sys.addaudithook(watch)


def killed(number, folder, work):
    """Whether a copy of this process died at that call."""
    child = os.fork()
    if child == 0:
        try:
            die_at(number, str(folder.path))
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


def test_killed_at_any_call_that_changes_files(folder, make_parts, learn):
    parts = make_parts()
    saver = Saver(folder, parts, keep=1)
    saver.save(1, {})
    assert saver.settle() == []
    learn(parts)

    def work():
        again = Saver(folder, parts, keep=1)
        again.save(2, {})
        assert again.settle() == []

    number, seen = 1, []
    while killed(number, folder, work):
        newest = folder.all_checkpoints()[-1]
        assert damage(newest) is None
        seen.append(newest.name)
        if newest.name != "step-000001":
            break  # all before it was tried; what follows removes older ones, tried below
        number += 1
    assert number > 10
    assert set(seen[:-1]) == {"step-000001"}


@pytest.mark.parametrize("number", range(1, 8))
def test_killed_while_an_older_one_is_removed(folder, make_parts, number):
    parts = make_parts()
    saver = Saver(folder, parts, keep=2)
    for step in (1, 2):
        saver.save(step, {})
        assert saver.settle() == []
    killed(number, folder, lambda: folder.rotate(1, 0))
    assert all(damage(path) is None for path in folder.all_checkpoints())
    assert restore(folder, parts) == (2, [])
    assert Saver(folder, parts, keep=1).saved == 2
    assert not list(folder.checkpoints.glob(".*"))
